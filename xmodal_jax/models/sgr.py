"""Similarity graph reasoning (Diao et al. 2021, SGRAF's SGR; NCR and BiCro train on it).

Each word attends to the regions. A similarity vector of each word with its region, and one of the two whole inputs, are
the nodes of a graph, over which the global node is refined and then read out as the score.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax

from xmodal_jax.config_build import limited
from xmodal_jax.models.pair_score import Prepared
from xmodal_jax.models.similarity import (
    SimilarityConfig,
    TokenSides,
    attended,
    cosines,
    guided_attention,
    readout,
    readout_params,
    reason,
    reasoning_params,
    similarity,
    similarity_params,
    with_whole,
)
from xmodal_jax.types import Array, Params


@dataclass(frozen=True)
class SGRScorerConfig(SimilarityConfig):
    """A scorer by similarity graph reasoning; the second of a pair has the words, the first the regions."""

    kind: str = "sgr"
    """Kind of scorer: similarity graph reasoning."""
    steps: int = limited(3, least=1)
    """Steps of reasoning over the graph."""

    noun: ClassVar[str] = "SGR"

    def module(self, width: int, embed: int) -> "SGRScorer":
        """Build the network."""
        return SGRScorer(self, width, embed)


def sgr_score(config: SGRScorerConfig, params: Params, one: Prepared, two: Prepared) -> Array:
    """Score one pair of regions [N,D] and words [L,D], a scalar.

    The last step computes the global node alone: no other is read after it.
    """
    regions, words = one.tokens, two.tokens
    assert one.mask is not None and two.mask is not None, "`prepare` makes masks"
    weights = guided_attention(cosines(words, regions), two.mask, one.mask, config.sharpness)
    locals = similarity(params["local"], words, attended(weights, regions))
    whole = similarity(params["global"], one.whole["embed"], two.whole["embed"])
    nodes, real = with_whole(whole[None, :], locals, two.mask)
    *before, last = (params["reasoning"][str(step)] for step in range(config.steps))
    for step in before:
        nodes = reason(step, nodes, real)
    return readout(params["readout"], reason(last, nodes, real, 1)[0], config.sigmoid)


class SGRScorer(TokenSides):
    """The network of `sgr_score`: its parameters, and what it prepares of each side."""

    config: SGRScorerConfig

    def set_up(self) -> None:
        """Create the layers of the pair part."""
        width, steps = self.config.width, self.config.steps

        def draw(key: Array) -> Params:
            parts = jax.random.split(key, steps + 3)
            return {
                "local": similarity_params(parts[0], self.compared, width),
                "global": similarity_params(parts[1], self.embed, width),
                "reasoning": {str(step): reasoning_params(parts[3 + step], width) for step in range(steps)},
                "readout": readout_params(parts[2], width),
            }

        self.graph = self.param("graph", draw)

    def pair(self) -> Callable[[Prepared, Prepared], Array]:
        """Return `sgr_score` with these parameters."""
        return partial(sgr_score, self.config, self.graph)
