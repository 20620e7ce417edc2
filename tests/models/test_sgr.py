"""Similarity graph reasoning against loops over one pair, and its range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from similarity_loops import dense, read, reasoned, sigmoid, unit, vector

from xmodal_jax.models.pair_score import Side
from xmodal_jax.models.sgr import SGRScorer, SGRScorerConfig

WIDTH, EMBED, ROWS = 10, 6, 3
REGIONS, WORDS = (5, 3, 4), (4, 6, 1)  # real tokens of each row, of 5 and 6


def sides(seed=0):
    """Two sides whose rows have different numbers of tokens; what is behind them is noise."""
    draw = np.random.default_rng(seed)

    def side(count, lengths):
        embed = np.stack([unit(x) for x in draw.normal(size=(ROWS, EMBED))])
        tokens = draw.normal(size=(ROWS, count, WIDTH))
        mask = np.arange(count)[None, :] < np.array(lengths)[:, None]
        return Side(jnp.asarray(tokens, jnp.float32), jnp.asarray(embed, jnp.float32), jnp.asarray(mask))

    return side(5, REGIONS), side(6, WORDS)


def made(config):
    """The network and random parameters, no bias zero."""
    scorer, draw = SGRScorer(config, WIDTH, EMBED), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: scorer.init(jax.random.key(0), *sides()))["params"]
    return scorer, jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.6, x.shape), jnp.float32), shapes)


def by_loops(config, params, one, two, left, right):
    """The score of row `left` with row `right`."""

    def tokens(side, row, name):
        found = [np.asarray(x, np.float64) for x in side.tokens[row][side.mask[row]]]
        return [unit(dense(params[f"{name}_project"], x) if config.space else x) for x in found]

    graph, regions, words = params["graph"], tokens(one, left, "first"), tokens(two, right, "second")
    partners = read(words, regions, config.sharpness)
    embeds = (np.asarray(side.embed[row], np.float64) for side, row in ((one, left), (two, right)))
    nodes = [vector(graph["global"], *embeds)]
    nodes += [vector(graph["local"], *pair) for pair in zip(words, partners, strict=True)]
    for step in range(config.steps):
        nodes = reasoned(graph["reasoning"][str(step)], nodes)
    score = dense(graph["readout"], nodes[0])[0]
    return sigmoid(score) if config.sigmoid else score


CASES = {
    "as SGRAF has it": {},
    "one step, any number": {"steps": 1, "sigmoid": False},
    "in a space of its own": {"space": 7, "sharpness": 4.0, "steps": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_scores_of_all_pairs_are_those_of_loops(case):
    config = SGRScorerConfig(width=8, **CASES[case])
    scorer, params = made(config)
    one, two = sides()
    want = [[by_loops(config, params, one, two, i, j) for j in range(ROWS)] for i in range(ROWS)]

    def run(params):
        left, right = (scorer.apply({"params": params}, x, n == 0, method="prepare") for n, x in enumerate((one, two)))
        return scorer.apply({"params": params}, left, right, method="pairwise")

    found = jax.jit(run)(params)
    np.testing.assert_allclose(found, want, atol=2e-5)
    aligned = jax.jit(lambda p: scorer.apply({"params": p}, one, two))(params)
    np.testing.assert_allclose(aligned, np.diagonal(want), atol=2e-5)
    assert np.ptp(want) > 1e-2


def test_a_score_is_between_zero_and_one_and_starts_near_the_middle():
    config = SGRScorerConfig(width=32)
    scorer = SGRScorer(config, WIDTH, EMBED)
    one, two = sides()
    params = scorer.init(jax.random.key(0), one, two)
    found = np.asarray(scorer.apply(params, one, two))
    assert (found > 0.2).all() and (found < 0.8).all()
    assert set(params["params"]["graph"]["reasoning"]["0"]["key"]) == {"kernel"}  # a bias would have no gradient


def test_gradients_are_finite_where_both_sides_are_the_same_and_where_nothing_is_real():
    """Squared differences of zero, norms of zero: rows that a batch may well have."""
    scorer, params = made(SGRScorerConfig(width=8))
    one, two = sides()
    same = Side(one.tokens, one.embed, jnp.zeros_like(one.mask))
    for left, right in ((one, one), (same, two), (one, Side(two.tokens * 0, two.embed * 0, two.mask))):

        def total(params, left=left, right=right):
            return scorer.apply({"params": params}, left, right).sum()

        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(total)(params)))
