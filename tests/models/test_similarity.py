"""What scorers over similarity vectors share, in a whole model: padding, all pairs in blocks, memory, meshes, training.

Every scorer here is in a tiny model with cached grid tokens behind a neck, and words by a transformer or a GRU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import LENGTH, ROWS, TOKENS, WIDTH, tiny_batch, tiny_config, tiny_model, tiny_params

from xmodal_jax.checks import refuse_unserved
from xmodal_jax.encode.embed import Embedded, PairScorer
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward
from xmodal_jax.models.crossmodal import CrossModal
from xmodal_jax.models.pair_score import Side
from xmodal_jax.objectives.base import Objective
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.settings import MeshConfig

KINDS = {
    "sgr": {"kind": "sgr", "width": 12, "space": 14},
    "graph": {"kind": "graph", "width": 12, "heads": 2},
    "parallel": {"kind": "graph", "width": 12, "heads": 2, "cascade": False, "inter": False},
}
GRU = {"kind": "gru", "width": WIDTH, "words": 6}


def model_of(kind, text=None, **more):
    """A tiny model with this scorer."""
    return tiny_model(tiny_config(scorer=KINDS[kind] | more, text=text or {}, objectives={}))


def lively(params, seed=0):
    """Parameters with nothing at zero: biases would hide what depends on them."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(draw.normal(0, 0.2, x.shape), x.dtype), params)


@functools.cache
def made(kind):
    """(model, parameters) of the scorer alone."""
    model = model_of(kind)
    return model, lively(jax.jit(lambda: tiny_params(model, used=frozenset({"scorer"})))())


def forward_of(kind, key=None, **more):
    """A Forward on the tiny batch."""
    model, params = made(kind)
    model = model_of(kind, **more) if more else model
    return Forward(model, params, jax.tree.map(jnp.asarray, tiny_batch()), key)


def hinge(scores):
    """A mean over all pairs."""
    return jax.nn.relu(0.2 + scores - jnp.diagonal(scores)[:, None]).mean()


def sides(rows=ROWS, draw=0):
    """Two sides of tokens, each with padding."""
    draw = np.random.default_rng(draw)

    def side(count):
        mask = np.arange(count)[None, :] < draw.integers(1, count + 1, rows)[:, None]
        embed = draw.normal(size=(rows, 8))
        embed = embed / np.linalg.norm(embed, axis=1, keepdims=True)
        tokens = draw.normal(size=(rows, count, WIDTH))
        return Side(*(jnp.asarray(x, jnp.float32) for x in (tokens, embed)), jnp.asarray(mask))

    return side(TOKENS), side(LENGTH)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_what_is_in_padding_nor_its_length_changes_a_score(kind):
    model, params = made(kind)
    run = jax.jit(lambda one, two: model.apply({"params": params}, one, two, method="score"))
    one, two = sides()
    plain = run(one, two)

    def padded(side):
        tokens = jnp.where(side.mask[:, :, None], side.tokens, 7.0 + 3.0 * side.tokens)
        tokens = jnp.concatenate([tokens, 5.0 * tokens[:, :2]], axis=1)
        return Side(tokens, side.embed, jnp.pad(side.mask, ((0, 0), (0, 2))))

    for changed in ((padded(one), two), (one, padded(two)), (padded(one), padded(two))):
        np.testing.assert_allclose(run(*changed), plain, atol=1e-6)
    assert not np.allclose(run(Side(one.tokens, one.embed), two), plain, atol=1e-4), "the mask is what hides it"


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_regions_does_not_matter(kind):
    model, params = made(kind)
    run = jax.jit(lambda one, two: model.apply({"params": params}, one, two, method="score"))
    one, two = sides()
    order = jnp.asarray(np.random.default_rng(1).permutation(TOKENS))
    other = Side(one.tokens[:, order], one.embed, one.mask[:, order])
    np.testing.assert_allclose(run(other, two), run(one, two), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_aligned_rows_are_the_diagonal_of_all_pairs_whatever_the_block(kind, dropout):
    key = jax.random.key(3) if dropout else None
    fwd = forward_of(kind, key, dropout=dropout)
    image, text = fwd.encode("image"), fwd.encode("text")
    every = [jax.jit(lambda block=block: forward_scores(fwd, block))() for block in (2, ROWS)]
    np.testing.assert_allclose(every[0], every[1], atol=1e-5)
    np.testing.assert_allclose(jnp.diagonal(every[0]), fwd.score(image, text), atol=1e-5)
    rows = jnp.array([3, 3, 0]), jnp.array([1, 2, 7])
    np.testing.assert_allclose(fwd.score(image, text, rows), every[0][rows], atol=1e-5)
    if not dropout:
        np.testing.assert_allclose(fwd.score(image.rows(rows[0]), text.rows(rows[1])), every[0][rows], atol=1e-5)
    assert fwd.passes.count("side:first:image:image") == 1, "what a side needs is computed once"


def forward_scores(fwd, block):
    """All pairs by another Forward like `fwd`, of this trace."""
    own = Forward(fwd.model, fwd.params, fwd.batch, fwd.key)
    return own.scores(own.encode("image"), own.encode("text"), block)


def test_dropout_is_there_only_with_a_key():
    plain, key = forward_scores(forward_of("graph", None, dropout=0.5), 8), jax.random.key(0)
    dropped = forward_scores(forward_of("graph", key, dropout=0.5), 8)
    assert not np.allclose(plain, dropped, atol=1e-4)
    np.testing.assert_allclose(plain, forward_scores(forward_of("graph", None), 8), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [{}, GRU], ids=["bert", "gru"])
def test_all_that_the_scorer_reads_is_made_and_has_a_gradient(kind, text):
    """With parts = {"scorer"} alone: the neck of grid tokens, the words' tower, both heads and the scorer."""
    model = model_of(kind, text)
    params = lively(jax.jit(lambda: tiny_params(model, used=frozenset({"scorer"})))())
    batch = jax.tree.map(jnp.asarray, tiny_batch())
    assert {"neck", "head"} <= set(params["image"]) and "fusion" not in params

    @jax.jit
    @jax.grad
    def gradient(params):
        fwd = Forward(model, params, batch, None)
        return hinge(fwd.scores(fwd.encode("image"), fwd.encode("text"), 4)) * 100

    found = flatten_dict(gradient(params), sep="/")
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    still = {path for path, leaf in found.items() if float(jnp.abs(leaf).max()) < 1e-9}
    # a key's bias adds the same to all logits of a softmax
    assert {path for path in still if not path.endswith("key/bias")} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_scored_as_in_training_when_they_are_re_ranked(kind, monkeypatch):
    model, params = made(kind)
    fwd = forward_of(kind)
    image, text = fwd.encode("image"), fwd.encode("text")
    every = np.asarray(fwd.scores(image, text, ROWS))
    left = Embedded(np.asarray(image.embed), np.asarray(image.tokens), None)
    right = Embedded(np.asarray(text.embed), np.asarray(text.tokens), np.asarray(text.mask))
    one, two = (rows.ravel().astype(np.int32) for rows in np.indices(every.shape))
    for room in (1 << 30, 0):  # both sides prepared, or the left side anew for each block
        monkeypatch.setattr("xmodal_jax.encode.embed.READ_BYTES", room)
        score = PairScorer(model, params, left, right)
        assert score.projected == bool(room)
        np.testing.assert_allclose(np.asarray(score(one, two)).reshape(every.shape), every, atol=1e-5)
    short = np.flatnonzero(score.lengths <= 5)[:1].astype(np.int32)
    monkeypatch.setattr("xmodal_jax.encode.embed.LENGTH_STEP", 1)
    assert score.length_of(short) <= 5
    np.testing.assert_allclose(score(np.zeros_like(short), short), every[0, short], atol=1e-5)


def test_a_choice_of_negatives_has_no_gradient_but_their_scores_have():
    model, params = made("sgr")
    batch = jax.tree.map(jnp.asarray, tiny_batch())

    def loss(params, chosen):
        fwd = Forward(model, params, batch, None)
        one, two = fwd.encode("image"), fwd.encode("text")
        scores = fwd.score_all(fwd.sides(one, two), 4, gradient=not chosen)
        hardest = jnp.argmax(jnp.where(jnp.eye(ROWS, dtype=bool), -jnp.inf, scores), axis=1)
        pairs = jnp.arange(ROWS), hardest
        own, others = scores.diagonal(), scores[pairs]
        if chosen:
            own, others = fwd.score(one, two), fwd.score(one, two, pairs)
        return jax.nn.relu(0.2 + others - own).mean() + (scores.sum() if chosen else 0.0)

    whole, few = (jax.jit(jax.grad(loss), static_argnums=1)(params, chosen) for chosen in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), few, whole)


@functools.cache
def temporary(kind, block, rows=64):
    """Bytes that the gradient of all pairs needs beside its inputs and results."""
    model = model_of(kind)
    params = jax.eval_shape(lambda: tiny_params(model, used=frozenset({"scorer"})))
    batch = jax.tree.map(jnp.asarray, tiny_batch(0, rows))

    def loss(params):
        fwd = Forward(model, params, batch, None)
        return hinge(fwd.scores(fwd.encode("image"), fwd.encode("text"), block))

    return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("kind", ["sgr", "graph"])
def test_memory_grows_with_the_block_not_with_all_pairs_tokens(kind):
    pairs = 4 * 64 * 64 * (TOKENS + LENGTH) * WIDTH  # bytes of the tokens of all pairs
    small, middle, whole = (temporary(kind, block) for block in (1, 8, 64))
    assert small < middle < whole
    assert small < pairs < whole and small < whole / 8
    assert middle - small < (whole - small) / 4


@pytest.mark.parametrize("kind", ["sgr", "graph"])
def test_eight_devices_score_and_learn_as_one(kind):
    model, params = made(kind)
    found = []
    for shape in ((1, 1, 1), (2, 2, 2), (8, 1, 1)):
        mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
        placed = jax.device_put(params, shardings(params, mesh))
        batch = jax.device_put(tiny_batch(), batch_sharding(mesh))

        def loss(params, batch):
            fwd = Forward(model, params, batch, None)
            scores = fwd.scores(fwd.encode("image"), fwd.encode("text"), 4)
            return hinge(scores), scores

        with jax.set_mesh(mesh):
            found.append(jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(placed, batch)))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6), other, found[0])


class Scored(Objective):
    """An objective on the pair score."""

    parts, reads = frozenset({"scorer"}), ("image", "text")


class Backwards(Scored):
    """The same on the fields in the other order."""

    reads = ("text", "image")


def test_what_the_scorer_cannot_take_is_refused():
    config = tiny_config(scorer={"kind": "sgr"})
    refuse_unserved(config, {"rank": Scored()})
    sentence = "config.objectives.rank scores .'text', 'image'., of the encoders .* kind 'sgr' scores .'image', 'text'."
    with pytest.raises(UserError, match=sentence):
        refuse_unserved(config, {"rank": Backwards()})
    with pytest.raises(
        UserError, match="needs fusion, scorer|needs fusion of config.encoders.text, whose kind 'tfidf'"
    ):
        refuse_unserved(tiny_config(scorer={"kind": "sgr"}, text={"kind": "tfidf"}), {"rank": Scored()})
    with pytest.raises(UserError, match="config.scorer takes .'image', 'text'."):
        tiny_config(scorer={"kind": "graph", "heads": 2}, eval={"pairs": (("text", "image"),)})


def test_a_model_without_an_objective_on_it_has_no_scorer():
    model = CrossModal(tiny_config(scorer=KINDS["sgr"]))
    assert "scorer" not in jax.eval_shape(lambda: tiny_params(model))
