"""Pair scores: how well two inputs match, by more than the cosine of their embeddings.

One `config.scorer` serves objectives (`Forward.score`, `Forward.scores`), evaluation and search. `SCORERS` is the only
place that names the kinds for the config.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.models.fusion import Fusion
from xmodal_jax.models.graph import GraphScorerConfig
from xmodal_jax.models.heads import MatchHead
from xmodal_jax.models.pair_score import Prepared, ScorerConfig, Side, SplitScorer, every_pair
from xmodal_jax.models.sgr import SGRScorerConfig
from xmodal_jax.types import Array


@dataclass(frozen=True)
class FusionScorerConfig(ScorerConfig):
    """A scorer by the log-odds of the matching head on fused tokens (ITM)."""

    kind: str = "fusion"
    """Kind of scorer: fusion with the matching head."""

    part: ClassVar[str] = "match"
    split: ClassVar[bool] = True
    noun: ClassVar[str] = "ITM"

    def serves(self, encoders: tuple[str, str], fused: tuple[str, str]) -> bool:
        """Return True only for the encoder that fusion reads and the one that asks."""
        return encoders == fused

    def built(self, width: int, embed: int, fusion: Fusion, match: MatchHead) -> "FusionScorer":
        """Wrap the model's own fusion and head: the scorer has no parameters beside theirs."""
        return FusionScorer(fusion, match)


class FusionScorer(SplitScorer):
    """ITM's log-odds, where the tokens of the second side read those of the first.

    Prepared, the first side is the keys and values of all layers, the second the first layer's self-attention.
    """

    fusion: Fusion
    match: MatchHead

    def prepare(self, side: Side, first: bool, key: Array | None = None) -> Prepared:
        """Return keys and values [b,N,layers,heads,d], or the second side's tokens [b,L,D] after self-attention."""
        if first:
            read = self.fusion.cache_memory(side.tokens)
            return Prepared(jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), read), side.embed, side.mask)
        assert side.mask is not None, "fusion's query has a mask, as all words do"
        return Prepared(self.fusion.cache_query(side.tokens, side.mask), side.embed, side.mask)

    def aligned(self, one: Prepared, two: Prepared) -> Array:
        """Return log-odds [b] of aligned rows."""
        assert two.mask is not None, "`prepare` has seen to it"
        read = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), one.tokens)
        return self._odds(self.fusion.fuse_cached(read, two.tokens, two.mask, one.mask), two.mask, one.whole, two.whole)

    def pairwise(self, one: Prepared, two: Prepared) -> Array:
        """Return log-odds [b,M] of all pairs, each with a copy of its rows: attention has no product over all pairs."""
        return self.aligned(*every_pair(one, two)).reshape(len(one.whole), len(two.whole))

    def __call__(self, one: Side, two: Side) -> Array:
        """Return log-odds [b] of aligned rows of two sides, without a cache."""
        assert two.mask is not None, "fusion's query has a mask, as all words do"
        fused = self.fusion(one.tokens, two.tokens, two.mask, memory_mask=one.mask)
        return self._odds(fused, two.mask, one.embed, two.embed)

    def _odds(self, fused: Array, mask: Array, one: Array, two: Array) -> Array:
        """Return the match logit minus the mismatch logit [b] of fused tokens."""
        logits = self.match(fused, mask, one, two)
        return logits[:, 1] - logits[:, 0]


SCORERS: dict[str, type[ScorerConfig]] = {
    "fusion": FusionScorerConfig,
    "sgr": SGRScorerConfig,
    "graph": GraphScorerConfig,
}
