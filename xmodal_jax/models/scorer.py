"""Pair scores: how well two inputs belong together, by more than the cosine of their embeddings.

One `config.scorer` serves objectives (`Forward.score`, `Forward.scores`), evaluation and search.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import flax.linen as nn

from xmodal_jax.models.fusion import Fusion
from xmodal_jax.models.heads import MatchHead
from xmodal_jax.types import Array, Params


class Side(NamedTuple):
    """One side of aligned pairs: tokens [b,N,D], unit embeddings [b,E], mask bool [b,N] of real tokens (None: all are)."""

    tokens: Array
    embed: Array
    mask: Array | None = None


@dataclass(frozen=True)
class ScorerConfig:
    """What every kind of scorer says of itself. A user's own kind writes `module`."""

    kind: str = ""

    part: ClassVar[str] = "scorer"  # the part of the model that an objective must use for the scorer to be trained
    cached: ClassVar[bool] = (
        False  # whether it keeps what each side is read as: `cache_memory`, `cache_query`, `fuse_cached` of FusionScorer
    )

    def serves(self, encoders: tuple[str, str], fused: tuple[str, str]) -> bool:
        """Whether it scores inputs of these two encoders; `fused`: those of `config.fusion.pair`."""
        return True

    def module(self, width: int, embed: int) -> nn.Module:
        """The network: (one: Side, two: Side) -> scores [b], for tokens of `width` and embeddings of width `embed`."""
        raise NotImplementedError

    def built(self, width: int, embed: int, fusion: Fusion, match: MatchHead) -> nn.Module:
        """`module`, for a kind that may share the model's fusion and matching head."""
        return self.module(width, embed)


@dataclass(frozen=True)
class FusionScorerConfig(ScorerConfig):
    """The log-odds of the matching head on fused tokens (ITM)."""

    kind: str = "fusion"

    part: ClassVar[str] = "match"
    cached: ClassVar[bool] = True

    def serves(self, encoders: tuple[str, str], fused: tuple[str, str]) -> bool:
        """Those that fusion reads and that ask, alone."""
        return encoders == fused

    def built(self, width: int, embed: int, fusion: Fusion, match: MatchHead) -> "FusionScorer":
        """The model's own fusion and head: the scorer has no parameters beside theirs."""
        return FusionScorer(fusion, match)


class FusionScorer(nn.Module):
    """ITM's log-odds: the tokens of the second side read those of the first."""

    fusion: Fusion
    match: MatchHead

    def __call__(self, one: Side, two: Side) -> Array:
        """Log-odds [b] of aligned rows."""
        fused = self.fusion(one.tokens, two.tokens, two.mask, memory_mask=one.mask)
        return self._odds(fused, one.embed, two)

    def fuse_cached(
        self, read: Params, begun: Array, one: Array, two: Array, mask: Array, read_mask: Array | None = None
    ) -> Array:
        """The same from what `Fusion.cache_memory` and `Fusion.cache_query` keep of each side, embeddings [b,E] and masks [b,L], [b,N]."""
        return self._odds(self.fusion.fuse_cached(read, begun, mask, read_mask), one, Side(begun, two, mask))

    def _odds(self, fused: Array, one: Array, two: Side) -> Array:
        logits = self.match(fused, two.mask, one, two.embed)
        return logits[:, 1] - logits[:, 0]


SCORERS: dict[str, type[ScorerConfig]] = {"fusion": FusionScorerConfig}
