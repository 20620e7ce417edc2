"""The protocol of pair scores: sides, the work done once for each, and the config that every kind derives from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.fusion import Fusion
from xmodal_jax.models.heads import MatchHead
from xmodal_jax.types import Array


class Side(NamedTuple):
    """One side of aligned pairs."""

    tokens: Array
    """Tokens [b,N,D]."""
    embed: Array
    """Unit embeddings [b,E]."""
    mask: Array | None = None
    """True for real tokens, bool [b,N]; None if all are real."""


class Prepared(NamedTuple):
    """One side of pairs after all work that needs no other side; rows are the first axis of every array."""

    tokens: Any
    """Tree of arrays [b,N,...] with an entry for each token."""
    whole: Any
    """Tree of arrays [b,...] of whole inputs, such as their embeddings."""
    mask: Array | None = None
    """True for real tokens, bool [b,N]; None if all are real."""

    def pick(self, rows: Array, length: int | None = None) -> "Prepared":
        """Gather rows int [b], and of their tokens the first `length` (default: all)."""
        tokens, mask = jax.tree.map(lambda x: x[rows, :length], (self.tokens, self.mask))
        return Prepared(tokens, jax.tree.map(lambda x: x[rows], self.whole), mask)


def every_pair(one: Any, two: Any) -> tuple[Any, Any]:
    """Repeat rows of trees of arrays [b,...] and [M,...] so that b * M aligned rows are all pairs, b outermost."""
    left, right = (jax.tree.leaves(side)[0].shape[0] for side in (one, two))
    first, second = jnp.repeat(jnp.arange(left), right), jnp.tile(jnp.arange(right), left)
    return jax.tree.map(lambda x: x[first], one), jax.tree.map(lambda x: x[second], two)


class SplitScorer(nn.Module):
    """A scorer in two parts: `prepare` works on a side alone, once a row; the function of `pair` on what it made.

    A subclass defines these two. `pair` is written for one pair, without the axis of rows: `jax.vmap` makes of it
    aligned rows, and all pairs without a copy of either side, since a product of a left and a right row becomes one
    product of matrices. A subclass whose pair part has rows already may define `aligned` and `pairwise` instead.
    """

    def prepare(self, side: Side, first: bool, key: Array | None = None) -> Prepared:
        """Return what the pair part reads of a side, the `first` or the second of the pairs; `key`: dropout."""
        raise NotImplementedError

    def pair(self) -> Callable[[Prepared, Prepared], Array]:
        """Return the function of one pair, from a row of each side to a scalar; it must not call the module."""
        raise NotImplementedError

    def aligned(self, one: Prepared, two: Prepared) -> Array:
        """Return the scores [b] of aligned rows."""
        return jax.vmap(self.pair())(one, two)

    def pairwise(self, one: Prepared, two: Prepared) -> Array:
        """Return the scores [b,M] of all pairs of b rows and M rows."""
        return jax.vmap(jax.vmap(self.pair(), (None, 0)), (0, None))(one, two)

    def __call__(self, one: Side, two: Side) -> Array:
        """Return the scores [b] of aligned rows of two sides."""
        return self.aligned(self.prepare(one, True), self.prepare(two, False))


@dataclass(frozen=True)
class ScorerConfig:
    """The fields and methods that every kind of scorer has; a user's own kind defines `module`."""

    kind: str = ""
    """Kind of scorer: a name in `models.scorer.SCORERS`, or a class of one's own such as "my_scorer.py:MyConfig"."""

    part: ClassVar[str] = "scorer"
    """The part of the model that an objective must use for the scorer to be trained."""
    split: ClassVar[bool] = False
    """True if its network is a `SplitScorer`, whose work on a side is done once for all pairs of that side."""
    reads_tokens: ClassVar[bool] = True
    """False if it reads embeddings alone, so that no neck is made for it."""
    noun: ClassVar[str] = "pair score"
    """Name of the score in tables of evaluation."""
    default_weight: ClassVar[float | None] = None
    """Weight beside the cosine where `config.eval.weight` is 0; None: the learned temperature, right for log-odds."""

    def serves(self, encoders: tuple[str, str], fused: tuple[str, str]) -> bool:
        """Return True if it scores inputs of these two encoders; `fused` are those of `config.fusion.pair`."""
        return True

    def check_width(self, where: str, width: int) -> None:
        """Refuse fields that do not fit tokens of this width; `where` names the section."""

    def module(self, width: int, embed: int) -> nn.Module:
        """Build the network (one: Side, two: Side) -> scores [b], for tokens of `width` and embeddings of `embed`."""
        raise NotImplementedError

    def built(self, width: int, embed: int, fusion: Fusion, match: MatchHead) -> nn.Module:
        """Build the network with the model's fusion and matching head at hand; by default call `module`."""
        return self.module(width, embed)
