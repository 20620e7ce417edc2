"""Cascaded graph convolution over similarities against loops over one pair, with each option on and off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from similarity_loops import attention, dense, read, reasoned, sigmoid, unit, vector
from test_sgr import EMBED, ROWS, sides
from tiny import tiny_config

from xmodal_jax.errors import UserError
from xmodal_jax.models.graph import GraphScorer, GraphScorerConfig

WIDTH = 10


def made(config):
    """The network and random parameters, no bias zero."""
    scorer, draw = GraphScorer(config, WIDTH, EMBED), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: scorer.init(jax.random.key(0), *sides()))["params"]
    return scorer, jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.5, x.shape), jnp.float32), shapes)


def convolved(layer, nodes):
    """A convolution: what a node read is added to it."""
    return [node + more for node, more in zip(nodes, reasoned(layer, nodes), strict=True)]


def global_node(config, graph, whole, words, regions):
    """What is read out of both sides' nodes."""
    if not config.cascade:
        ends = []
        for name, nodes in (("words_graph", words), ("regions_graph", regions)):
            nodes = [whole, *nodes]
            for number in range(config.layers):
                nodes = convolved(graph[name][str(number)], nodes)
            ends.append(nodes[0])
        return np.concatenate(ends)
    layers = [graph["joint_graph"][str(number)] for number in range(config.layers)]
    if len(layers) >= 2:
        whole, *words = convolved(layers[0], [whole, *words])
    if len(layers) >= 3:
        whole, *regions = convolved(layers[1], [whole, *regions])
    nodes = [whole, *words, *regions]
    for layer in layers[min(len(layers) - 1, 2) :]:
        nodes = convolved(layer, nodes)
    return nodes[0]


def by_loops(config, params, one, two, left, right):
    """The score of row `left` with row `right`."""

    def tokens(side, row, name):
        found = [np.asarray(x, np.float64) for x in side.tokens[row][side.mask[row]]]
        return [unit(x) for x in (attention(params[name], found, config.heads) if config.intra else found)]

    graph, regions, words = params["graph"], tokens(one, left, "first"), tokens(two, right, "second")
    if config.inter:
        of_words, of_regions = read(words, regions, config.sharpness), read(regions, words, config.sharpness)
    else:
        of_words, of_regions = (
            [unit(sum(regions) / len(regions))] * len(words),
            [unit(sum(words) / len(words))] * len(regions),
        )
    whole = vector(graph["global"], np.asarray(one.embed[left]), np.asarray(two.embed[right]))
    words = [vector(graph["words"], *pair) for pair in zip(words, of_words, strict=True)]
    regions = [vector(graph["regions"], *pair) for pair in zip(regions, of_regions, strict=True)]
    return sigmoid(dense(graph["readout"], global_node(config, graph, whole, words, regions))[0])


CASES = {
    "whole": {},
    "no intra": {"intra": False},
    "no inter": {"inter": False},
    "parallel": {"cascade": False, "layers": 2},
    "one layer": {"layers": 1},
    "two layers": {"layers": 2, "intra": False},
    "four layers": {"layers": 4},
    "nothing": {"intra": False, "inter": False, "cascade": False, "layers": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_scores_of_all_pairs_are_those_of_loops(case):
    config = GraphScorerConfig(width=8, heads=2, **CASES[case])
    scorer, params = made(config)
    one, two = sides()
    want = [[by_loops(config, params, one, two, i, j) for j in range(ROWS)] for i in range(ROWS)]

    def run(params):
        left, right = (scorer.apply({"params": params}, x, n == 0, method="prepare") for n, x in enumerate((one, two)))
        return scorer.apply({"params": params}, left, right, method="pairwise")

    np.testing.assert_allclose(jax.jit(run)(params), want, atol=2e-5)
    aligned = jax.jit(lambda p: scorer.apply({"params": p}, one, two))(params)
    np.testing.assert_allclose(aligned, np.diagonal(want), atol=2e-5)
    assert np.ptp(want) > 1e-3


def test_options_that_are_off_have_no_parameters():
    off = made(GraphScorerConfig(width=8, heads=2, intra=False, cascade=False))[1]
    on = made(GraphScorerConfig(width=8, heads=2))[1]
    assert set(off) == {"graph"} and set(on) == {"graph", "first", "second"}
    assert {"words_graph", "regions_graph"} <= set(off["graph"]) and "joint_graph" in on["graph"]


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="config.scorer.heads is 3, which does not divide the width 16; write a div"):
        tiny_config(scorer={"kind": "graph", "heads": 3})
    tiny_config(scorer={"kind": "graph", "heads": 3, "intra": False})
    tiny_config(scorer={"kind": "graph", "heads": 3, "space": 9})
