"""The base of encoders that read pixels: picture size, and statistics of red, green and blue."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.types import DataFacts

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class PixelConfig(EncoderConfig):
    """An encoder of pictures uint8 [B,S,S,3]."""

    size: int = limited(128, least=8)
    """Pixels of a side of the picture, S."""
    pixel_mean: tuple[float, ...] = ()
    """Means of red, green and blue in 0..1; (): those of the weights, or else of the kind."""
    pixel_std: tuple[float, ...] = ()
    """Standard deviations of red, green and blue in 0..1; (): as for `pixel_mean`."""

    reads: ClassVar[str] = "pixels"
    standard: ClassVar[Statistics]
    """Mean and standard deviation that the kind's published weights were trained with."""

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of pixels in 0..1 as the tower reads them."""
        return self.pixel_mean or self.standard[0], self.pixel_std or self.standard[1]

    def pixels(self, dtype: jnp.dtype) -> dict[str, Any]:
        """Return the arguments that every tower of pixels is built with."""
        return {"mean": self.statistics[0], "std": self.statistics[1], "dtype": dtype}

    @property
    def extent(self) -> int:
        """Pixels of a side."""
        return self.size

    def input(self, facts: DataFacts) -> tuple[tuple[int, ...], str]:
        """Return shape [S,S,3] and dtype of a picture."""
        return (self.size, self.size, 3), "uint8"

    def check(self, where: str) -> None:
        """Refuse statistics that are not those of three colours."""
        super().check(where)
        for name in ("pixel_mean", "pixel_std"):
            value = getattr(self, name)
            if len(value) in (0, 3) and all(abs(x) < 1e6 and (x > 0 or name == "pixel_mean") for x in value):
                continue
            raise UserError(
                f"{where}.{name} is {value}; write three numbers in units of 0..1 such as (0.5, 0.5, 0.5), or () for "
                "those of the weights"
            )
