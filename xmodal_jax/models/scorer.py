"""Pair scores: how well two inputs match, by more than the cosine of their embeddings.

One `config.scorer` serves objectives (`Forward.score`, `Forward.scores`), evaluation and search.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import flax.linen as nn

from xmodal_jax.models.fusion import Fusion
from xmodal_jax.models.heads import MatchHead
from xmodal_jax.types import Array, Params


class Side(NamedTuple):
    """One side of aligned pairs."""

    tokens: Array
    """Tokens [b,N,D]."""
    embed: Array
    """Unit embeddings [b,E]."""
    mask: Array | None = None
    """True for real tokens, bool [b,N]; None if all are real."""


@dataclass(frozen=True)
class ScorerConfig:
    """The fields and methods that every kind of scorer has; a user's own kind defines `module`."""

    kind: str = ""
    """Kind of scorer: "fusion", or a class of one's own such as "my_scorer.py:MyConfig"."""

    part: ClassVar[str] = "scorer"
    """The part of the model that an objective must use for the scorer to be trained."""
    cached: ClassVar[bool] = False
    """True if it has `cache_memory`, `cache_query` and `fuse_cached`, as FusionScorer, to reuse work per side."""

    def serves(self, encoders: tuple[str, str], fused: tuple[str, str]) -> bool:
        """Return True if it scores inputs of these two encoders; `fused` are those of `config.fusion.pair`."""
        return True

    def module(self, width: int, embed: int) -> nn.Module:
        """Build the network (one: Side, two: Side) -> scores [b], for tokens of `width` and embeddings of `embed`."""
        raise NotImplementedError

    def built(self, width: int, embed: int, fusion: Fusion, match: MatchHead) -> nn.Module:
        """Build the network with the model's fusion and matching head at hand; by default call `module`."""
        return self.module(width, embed)


@dataclass(frozen=True)
class FusionScorerConfig(ScorerConfig):
    """A scorer by the log-odds of the matching head on fused tokens (ITM)."""

    kind: str = "fusion"
    """Kind of scorer: fusion with the matching head."""

    part: ClassVar[str] = "match"
    cached: ClassVar[bool] = True

    def serves(self, encoders: tuple[str, str], fused: tuple[str, str]) -> bool:
        """Return True only for the encoder that fusion reads and the one that asks."""
        return encoders == fused

    def built(self, width: int, embed: int, fusion: Fusion, match: MatchHead) -> "FusionScorer":
        """Wrap the model's own fusion and head: the scorer has no parameters beside theirs."""
        return FusionScorer(fusion, match)


class FusionScorer(nn.Module):
    """ITM's log-odds, where the tokens of the second side read those of the first."""

    fusion: Fusion
    match: MatchHead

    def __call__(self, one: Side, two: Side) -> Array:
        """Return log-odds [b] of aligned rows."""
        assert two.mask is not None, "fusion's query has a mask, as all words do"
        fused = self.fusion(one.tokens, two.tokens, two.mask, memory_mask=one.mask)
        return self._odds(fused, two.mask, one.embed, two.embed)

    def fuse_cached(
        self, read: Params, begun: Array, one: Array, two: Array, mask: Array, read_mask: Array | None = None
    ) -> Array:
        """Return the same log-odds from `Fusion.cache_memory` and `Fusion.cache_query`, embeddings [b,E] and masks."""
        return self._odds(self.fusion.fuse_cached(read, begun, mask, read_mask), mask, one, two)

    def _odds(self, fused: Array, mask: Array, one: Array, two: Array) -> Array:
        """Return the match logit minus the mismatch logit [b] of fused tokens."""
        logits = self.match(fused, mask, one, two)
        return logits[:, 1] - logits[:, 0]


SCORERS: dict[str, type[ScorerConfig]] = {"fusion": FusionScorerConfig}
