"""A Vision Transformer over segments of a log-mel spectrogram, as CLIP4VLA (Ruan et al. 2023) reads sound.

Each segment is a picture of M bands by W time steps, and its [CLS] token is one token of the sound. A type token behind
the patches says whether the sound is speech; it has a position of its own, so that a tower of pictures, whose other
parameters have the same names and shapes, can start this one (`config.init_paths`).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.config_build import limited
from xmodal_jax.data.spectrogram import LOGS, NORMS, SCALES, LogMel, Segments
from xmodal_jax.errors import UserError
from xmodal_jax.models.encoder import EncoderConfig
from xmodal_jax.models.layers import layer_norm, real_parts, scan_blocks
from xmodal_jax.models.pooling import POOL_CHOICES
from xmodal_jax.models.vit import ViT, ViTConfig
from xmodal_jax.types import Array, DataFacts

TYPES = ("none", "share", "label", "both")


@dataclass(frozen=True)
class SpectrogramConfig(EncoderConfig):
    """An encoder of sound: a Vision Transformer over segments of the log-mel spectrogram."""

    kind: str = "spectrogram"
    """Kind of encoder: Vision Transformer over spectrograms."""
    pool: str = limited("unit", among=POOL_CHOICES)
    """How the tokens of the segments become the embedding; "unit" is CLIP4VLA's: normalise, mean, normalise."""
    tower: ViTConfig = ViTConfig()
    """The tower of each segment, of kind "vit"; of its fields patch, width, layers, heads, hidden, dropout and remat
    are read."""
    segments: int = limited(6, least=1)
    """Segments P of a sound; longer sounds are sampled."""
    steps: int = limited(224, least=1)
    """Time steps W of a segment; `tower.patch` must divide them."""
    mels: int = limited(224, least=1)
    """Mel bands M; `tower.patch` must divide them."""
    rate: int = limited(16_000, least=1_000)
    """Samples a second, Hz."""
    window: int = limited(512, least=2)
    """Samples of a window of the spectrogram."""
    hop: int = limited(128, least=1)
    """Samples from one time step to the next."""
    high: float = limited(8_000.0, least=1.0)
    """Highest frequency of the bands, Hz; at most half of `rate`."""
    scale: str = limited("slaney", among=SCALES)
    """Mel scale."""
    norm: str = limited("slaney", among=NORMS)
    """Normalisation of the mel bands."""
    log: str = limited("decibel", among=LOGS)
    """Compression: "decibel", standardised by segment (CLIP4VLA), "whisper" or "shifted" (data/spectrogram.py)."""
    channels: int = limited(3, among=(1, 3))
    """3: left, mono and right as the colours of a picture; 1: mono as all three, a third of the bytes."""
    types: str = limited("share", among=TYPES)
    """Type token: "none"; "share", a mix of both by `verbal`; "label", by `wordless`; "both", both behind each other.
    """
    verbal: float = limited(0.5, least=0.0, most=1.0)
    """Share of the token of speech in the type token of all rows, where `types` is "share"."""
    wordless: tuple[str, ...] = ()
    """Media, or MEDIUM/VIEW, that are not speech, where `types` is "label"; all others are."""
    neck_layers: int = limited(0, least=0)
    """Transformer blocks over the tokens before fusion reads them; 0: none."""

    reads: ClassVar[str] = "sound"

    @property
    def token_width(self) -> int:
        """Width D of the tokens."""
        return self.tower.width

    @property
    def dropout(self) -> float:  # type: ignore[override]
        """Dropout rate of the tower."""
        return self.tower.dropout

    @property
    def form(self) -> Segments:
        """The segments that the reader makes."""
        mel = LogMel(
            self.rate, self.window, self.hop, self.mels, self.high, scale=self.scale, norm=self.norm, log=self.log
        )
        return Segments(self.segments, self.steps, self.channels, mel, self.types == "label", self.wordless)

    def module(self, dtype: jnp.dtype) -> "SpectrogramTower":
        """Build the tower."""
        own, names = self.tower, ("patch", "width", "layers", "heads", "hidden", "dropout", "remat")
        shape = {name: getattr(own, name) for name in names}
        return SpectrogramTower(
            **shape, dtype=dtype, mels=self.mels, steps=self.steps, types=self.types, verbal=self.verbal
        )

    def input(self, facts: DataFacts) -> tuple[tuple[int, ...], str]:
        """Return shape and dtype of the segments of a sound."""
        return self.form.shape, "float16"

    def mask(self, x: Array) -> Array:
        """Return the mask bool [B,P] of the segments that are not padding."""
        return real_parts(x[:, :, :, : self.steps])

    def local_map(self, tokens: int) -> np.ndarray:
        """Return the averages that make local features: each segment is one."""
        return np.eye(tokens, dtype=np.float32)

    def check(self, where: str) -> None:
        """Refuse sizes that do not fit each other."""
        super().check(where)
        patch = self.tower.patch
        for name in ("mels", "steps"):
            if getattr(self, name) % patch:
                raise UserError(
                    f"{where}.{name} is {getattr(self, name)}; write a multiple of {where}.tower.patch={patch}"
                )
        if self.high > self.rate / 2:
            raise UserError(f"{where}.high is {self.high:g}; write at most half of {where}.rate={self.rate}")
        if self.tower.kind != "vit" or self.tower.init:
            raise UserError(
                f"{where}.tower is of kind '{self.tower.kind}' with init '{self.tower.init}'; write kind 'vit' without "
                f"init: config.init and config.init_paths start it from a run whose tower reads pictures"
            )
        if self.wordless and self.types != "label":
            raise UserError(f"{where}.wordless is {self.wordless}, and types '{self.types}'; write types='label'")


class SpectrogramTower(ViT):
    """A tower of sound: segments [B,P,M,W] or [B,P,M,W,3] -> the [CLS] token of each, [B,P,D], after the final norm.

    With `types` "label" there is one more time step, which says how much of the row is speech.
    """

    mels: int = 224
    steps: int = 224
    types: str = "share"
    verbal: float = 0.5

    def setup(self) -> None:
        """Create the parameters of the tower, the two type tokens (not speech, speech) and their position."""
        super().setup()
        if self.types != "none":
            draw = jax.random.normal
            self.type_tokens = self.param("types", lambda key: 0.02 * draw(key, (2, self.width)))
            self.type_position = self.param("type_position", lambda key: 0.02 * draw(key, (1, 1, self.width)))

    @property
    def patches(self) -> int:
        """Number of patches of a segment."""
        return (self.mels // self.patch) * (self.steps // self.patch)

    def normalise(self, image: Array) -> Array:
        """Return a spectrogram as it is, in float32: its reader has standardised it."""
        return image.astype(jnp.float32)

    def share(self, x: Array) -> Array:
        """Return how much of each segment is speech, float32 [B * P]."""
        if self.types == "label":
            return x[:, :, 0, self.steps].reshape(x.shape[0] * x.shape[1], -1)[:, 0].astype(jnp.float32)
        return jnp.full((x.shape[0] * x.shape[1],), self.verbal, jnp.float32)

    def typed(self, tokens: Array, share: Array) -> Array:
        """Put the type token of each segment's share [b] of speech behind its tokens [b,N,D]; or both tokens."""
        if self.types == "none":
            return tokens
        table, count = self.type_tokens, len(tokens)
        if self.types == "both":
            own = jnp.broadcast_to(table[None], (count, *table.shape))
        else:
            own = (table[0][None] + share[:, None] * (table[1] - table[0])[None])[:, None]
        return jnp.concatenate([tokens, (own + self.type_position).astype(tokens.dtype)], axis=1)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """Encode segments x as tokens [B,P,D]; `key` turns dropout on."""
        keys = jax.random.split(key) if key is not None else (None, None)
        pictures = x[:, :, :, : self.steps].reshape(-1, self.mels, self.steps, *x.shape[4:])
        if pictures.ndim == 3:
            pictures = jnp.broadcast_to(pictures[..., None], (*pictures.shape, 3))
        tokens = self.typed(self.embed_patches(pictures, keys[0]), self.share(x))
        tokens = scan_blocks(self.style, self.stack, tokens, None, key=keys[1])
        return layer_norm(self.norm, tokens[:, 0], self.eps).reshape(*x.shape[:2], self.width)
