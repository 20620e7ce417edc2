"""A tower whose tokens are already in the data: region or grid tokens computed once by a frozen network."""

from dataclasses import dataclass, replace
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config_build import limited
from xmodal_jax.data.config import DataConfig
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.models.grid import group_parts, local_map
from xmodal_jax.types import Array, DataFacts


@dataclass(frozen=True)
class FeaturesConfig(EncoderConfig):
    """An encoder of tokens that are already in the data: the caches that `data.features` or its field names."""

    kind: str = "features"
    """Kind of encoder: feature caches."""
    neck_layers: int = limited(0, least=0)
    """Transformer blocks over the tokens before fusion reads them; 0: none."""
    groups: tuple[int, ...] = ()
    """Token counts of the feature caches; filled in from the data card."""
    padded: bool = False
    """Whether tokens that are all zero are padding; filled in from the data card: of clips, and not of pictures."""

    reads: ClassVar[str] = "tokens"

    def module(self, dtype: jnp.dtype) -> "FeatureTokens":
        """Build the tower, which has no parameters."""
        return FeatureTokens()

    def input(self, facts: DataFacts) -> tuple[tuple[int, ...], str]:
        """Return shape [N,D] and dtype of the tokens of all caches together."""
        return facts.tokens, "float16"

    def filled(self, name: str, data: DataConfig, facts: DataFacts) -> "FeaturesConfig":
        """Return the config with the token counts of the caches, and whether they are padded."""
        return replace(self, groups=facts.groups, padded=facts.padded)

    def mask(self, x: Array) -> Array | None:
        """Return the mask bool [B,N] of the tokens of x [B,N,D] that are not zero, or None if all are real."""
        return (x != 0).any(-1) if self.padded else None

    def local_map(self, tokens: int) -> np.ndarray:
        """Return the averages that make local features: of grids without their summaries; other groups are sets."""
        return local_map(group_parts(self.groups, tokens))


class FeatureTokens(nn.Module):
    """A tower without parameters: cached tokens float16 [B,N,D] -> float32 [B,N,D].

    SCAN's 36 x 2048 regions work alike.
    """

    @nn.compact
    def __call__(self, tokens: Array, key: Array | None = None) -> Array:
        """Cast the tokens; `key` is unused."""
        del key
        return tokens.astype(jnp.float32)
