"""Cascaded graph convolution over similarity vectors (MVSEN; Qin et al. 2024), in our reading of its abstract.

Tokens read their like (intra-modal interaction), then those of the other side (inter-modal). Every word and every
region has a similarity vector with what it read. The words' graph, the regions' graph and the graph of both follow one
another in a cascade that hands the global node on; it is read out as the score.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from xmodal_jax.config_build import limited
from xmodal_jax.errors import UserError
from xmodal_jax.models.layers import attention_params, dropout, layer_norm, self_attention
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
class GraphScorerConfig(SimilarityConfig):
    """A scorer by graph convolution over similarities of words and regions; the second of a pair has the words."""

    kind: str = "graph"
    """Kind of scorer: cascaded graph convolution."""
    layers: int = limited(3, least=1)
    """Graph convolutions. In a cascade the first is over the words, the second over the regions, further ones are over
    both; of two the last is over both, as a single one is. Without a cascade each side has as many.
    """
    heads: int = limited(8, least=1)
    """Heads of the self-attention inside each side; they divide `space`, or `fusion.width` where that is 0."""
    intra: bool = True
    """Let regions read regions and words read words (self-attention) before they are compared."""
    inter: bool = True
    """Compare each word with the regions that it attends to, each region with its words; False: with their mean."""
    cascade: bool = True
    """Run the graphs one after the other; False: those of words and regions apart, read out together."""

    noun: ClassVar[str] = "graph"

    def check_width(self, where: str, width: int) -> None:
        """Refuse heads that do not divide the width."""
        compared = self.space or width
        if self.intra and compared % self.heads:
            raise UserError(
                f"{where}.heads is {self.heads}, which does not divide the width {compared}; write a divisor"
            )

    def module(self, width: int, embed: int) -> "GraphScorer":
        """Build the network."""
        return GraphScorer(self, width, embed)


def local_nodes(config: GraphScorerConfig, params: Params, one: Prepared, two: Prepared) -> tuple[Array, Array]:
    """Return the similarity vectors of words [L,S] and of regions [N,S]."""
    regions, words = one.tokens, two.tokens
    if not config.inter:
        return (
            similarity(params["words"], words, one.whole["mean"][None, :]),
            similarity(params["regions"], regions, two.whole["mean"][None, :]),
        )
    assert one.mask is not None and two.mask is not None, "`prepare` makes masks"
    cosine = cosines(words, regions)
    to_regions = guided_attention(cosine, two.mask, one.mask, config.sharpness)
    to_words = guided_attention(cosine.T, one.mask, two.mask, config.sharpness)
    return (
        similarity(params["words"], words, attended(to_regions, regions)),
        similarity(params["regions"], regions, attended(to_words, words)),
    )


def convolved(params: Params, nodes: Array, real: Array, count: int | None = None) -> Array:
    """Return the first `count` nodes [count,S] after one convolution: what they read is added to them."""
    return nodes[:count] + reason(params, nodes, real, count)


def cascaded(layers: list[Params], whole: Array, *sides: tuple[Array, Array]) -> Array:
    """Return the global node [1,S] after the graphs of the sides, each (nodes, mask), and then that of all.

    A side has a convolution of its own as long as one is left for all.
    """
    layers, done = list(layers), []
    for nodes, mask in sides:
        if len(layers) > 1:
            found = convolved(layers.pop(0), *with_whole(whole, nodes, mask))
            whole, nodes = found[:1], found[1:]
        done.append((nodes, mask))
    nodes, real = (jnp.concatenate(parts) for parts in zip(*done, strict=True))
    return chained(layers, whole, nodes, real)


def chained(layers: list[Params], whole: Array, nodes: Array, mask: Array) -> Array:
    """Return the global node [1,S] after convolutions of one graph; the last computes that node alone."""
    nodes, real = with_whole(whole, nodes, mask)
    for layer in layers[:-1]:
        nodes = convolved(layer, nodes, real)
    return convolved(layers[-1], nodes, real, 1)


def graph_score(config: GraphScorerConfig, params: Params, one: Prepared, two: Prepared) -> Array:
    """Score one pair of regions [N,D] and words [L,D], a scalar."""
    assert one.mask is not None and two.mask is not None, "`prepare` makes masks"
    whole = similarity(params["global"], one.whole["embed"], two.whole["embed"])[None, :]
    words, regions = local_nodes(config, params, one, two)
    if config.cascade:
        layers = list_of(params["joint_graph"])
        found = cascaded(layers, whole, (words, two.mask), (regions, one.mask))[0]
    else:
        ends = (
            chained(list_of(params["words_graph"]), whole, words, two.mask)[0],
            chained(list_of(params["regions_graph"]), whole, regions, one.mask)[0],
        )
        found = jnp.concatenate(ends)
    return readout(params["readout"], found, config.sigmoid)


def list_of(layers: Params) -> list[Params]:
    """Return the convolutions of a graph in their order."""
    return [layers[str(number)] for number in range(len(layers))]


def graph_params(key: Array, config: GraphScorerConfig, compared: int, embed: int) -> Params:
    """Draw the layers of the pair part, for tokens of width `compared` and embeddings of width `embed`."""
    keys, width = iter(jax.random.split(key, 4 + 2 * config.layers)), config.width

    def graph() -> Params:
        return {str(number): reasoning_params(next(keys), width) for number in range(config.layers)}

    names = ("joint_graph",) if config.cascade else ("words_graph", "regions_graph")
    return {
        "words": similarity_params(next(keys), compared, width),
        "regions": similarity_params(next(keys), compared, width),
        "global": similarity_params(next(keys), embed, width),
        "readout": readout_params(next(keys), len(names) * width),
    } | {name: graph() for name in names}


class GraphScorer(TokenSides):
    """The network of `graph_score`: its parameters, and what it prepares of each side."""

    config: GraphScorerConfig

    def set_up(self) -> None:
        """Create the self-attention of each side and the layers of the pair part."""
        if self.config.intra:
            self.own = {name: self.param(name, attention_params, self.compared) for name in ("first", "second")}
        self.graph = self.param("graph", graph_params, self.config, self.compared, self.embed)

    def context(self, tokens: Array, mask: Array, first: bool, key: Array | None) -> Array:
        """Return tokens [b,N,D] after self-attention, with the norm after the sum."""
        if not self.config.intra:
            return tokens
        own = self.own["first" if first else "second"]
        read = self_attention(own, tokens, mask[:, None, None, :], self.config.heads)
        return layer_norm(own["norm"], tokens + dropout(read, self.config.dropout, key))

    def pair(self) -> Callable[[Prepared, Prepared], Array]:
        """Return `graph_score` with these parameters."""
        return partial(graph_score, self.config, self.graph)
