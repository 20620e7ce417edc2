"""Chunked passes: the loss and the gradient of the whole batch, with the activations of one chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import PLAIN, tiny
from tiny import FIVE, tiny_batch, tiny_config, tiny_model, tiny_objectives, tiny_params, tiny_recipe

from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, merge_rows, named_key, split_rows
from xmodal_jax.models.crossmodal import init_params
from xmodal_jax.objectives import parts
from xmodal_jax.parallel.rules import path_name
from xmodal_jax.training.flops import step_flops
from xmodal_jax.training.loop import train
from xmodal_jax.training.optimizer import make_optimizer
from xmodal_jax.training.step import Recipe, create_state, total_loss

ROWS, CHUNK = 16, 4
GROUPED = FIVE | {"itm": {"negatives": 1, "group": 2}}


def recipe_of(chunk, **sections):
    """The tiny recipe on 16 rows with all five objectives, ITM inside groups of two."""
    return tiny_recipe(tiny_config(batch_size=ROWS, chunk=chunk, objectives=GROUPED, **sections))


def started(recipe):
    """State before the first step."""
    return jax.jit(lambda: create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0))()


def losses(recipe, state):
    """((loss, terms), gradients) of one batch."""
    batch, key = jax.tree.map(jnp.asarray, tiny_batch(0, ROWS)), jax.random.key(1)
    run = jax.jit(jax.value_and_grad(lambda params: total_loss(recipe, params, state, batch, key), has_aux=True))
    return run(state.params)


def test_pieces_come_apart_and_together():
    x = jnp.arange(24).reshape(12, 2)
    pieces = split_rows(x, 3)
    np.testing.assert_array_equal(pieces[1], x[1::3])
    np.testing.assert_array_equal(merge_rows(pieces), x)


def test_a_batch_in_chunks_has_the_loss_and_gradient_of_the_batch():
    whole, chunked = recipe_of(0), recipe_of(CHUNK)
    state = started(whole)
    ((loss, terms), grads), ((other, others), mine) = (losses(recipe, state) for recipe in (whole, chunked))
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    for name, term in terms.items():
        np.testing.assert_allclose(others[name].values, term.values, rtol=1e-4, atol=1e-6, err_msg=name)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(mine), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=2e-6, err_msg=path_name(path))


class Dropping:
    """A model of one parameter and dropout: tokens are pixels times the scale, some of them dropped."""

    config = tiny_config()

    def apply(self, variables, encoder, x, *rest, method, **options):
        """The tower drops; the joint passes its tokens on."""
        if method == "joint":
            return x, x[:, 0]
        key = rest[0]
        kept = jax.random.bernoulli(key, 0.5, x.shape) if key is not None else jnp.ones(x.shape, bool)
        return jnp.where(kept, x * variables["params"]["scale"], 0.0)


def test_with_dropout_it_is_the_chunks_computed_one_by_one():
    image = jnp.arange(1.0, 1 + ROWS * 6).reshape(ROWS, 2, 3)

    def chunked(scale, weights):
        fwd = Forward(Dropping(), {"scale": scale}, {"image": image}, jax.random.key(3), chunk=CHUNK)
        return (fwd.encode("image").embed * weights).sum(), fwd.encode("image").embed

    pieces = ROWS // CHUNK
    keys = jax.random.split(named_key(jax.random.key(3), "image:image"), pieces)

    def one_by_one(scale, weights):
        rows = []
        for k in range(pieces):
            tower = jax.random.split(keys[k])[0]
            rows.append(
                Dropping().apply({"params": {"scale": scale}}, "image", image[k::pieces], tower, method="raw")[:, 0]
            )
        embed = jnp.stack(rows, 1).reshape(ROWS, 3)
        return (embed * weights).sum(), embed

    weights = jax.random.normal(jax.random.key(5), (ROWS, 3))
    (_, embed), slope = jax.value_and_grad(chunked, has_aux=True)(jnp.float32(2.0), weights)
    (_, expected), reference = jax.value_and_grad(one_by_one, has_aux=True)(jnp.float32(2.0), weights)
    assert 0.3 < float((embed == 0).mean()) < 0.7
    np.testing.assert_array_equal(embed, expected)
    np.testing.assert_allclose(slope, reference, rtol=1e-6)


def test_eight_times_the_batch_at_nearly_the_memory_of_one_chunk():
    """Contrastive learning on a ViT: temporary memory of the gradient, by XLA's own account."""
    sections = {
        "image": {
            "kind": "vit",
            "size": 32,
            "patch": 4,
            "width": 32,
            "layers": 6,
            "heads": 2,
            "hidden": 128,
            "neck_layers": 0,
        },
        "text": {"layers": 1},
        "data": {"features": ()},
        "objectives": {"itc": {"queue": 0}},
    }

    def temporary(rows, chunk):
        config = tiny_config(batch_size=rows, chunk=chunk, **sections)
        model, objectives = tiny_model(config), tiny_objectives(config.objectives)
        batch = tiny_batch(0, rows) | {"image": np.zeros((rows, 32, 32, 3), np.uint8)}
        first = {name: batch[name][:1] for name in ("image", "text")}
        params = jax.eval_shape(lambda: init_params(model, jax.random.key(0), first, parts(objectives)))
        recipe = Recipe(config, model, objectives, make_optimizer(config.optimizer, params, 1))
        state = jax.eval_shape(lambda params: create_state(recipe, params, 0), params)

        def loss(params, state, batch):
            return total_loss(recipe, params, state, batch, jax.random.key(0))[0]

        compiled = jax.jit(jax.grad(loss)).lower(params, state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, eight, chunked = temporary(16, 0), temporary(128, 0), temporary(128, 16)
    assert eight > 5 * one
    assert chunked < 1.5 * one, (one, eight, chunked)


def test_flops_count_every_chunk():
    whole, chunked = recipe_of(0), recipe_of(CHUNK)
    state, batch = jax.eval_shape(lambda: started(whole)), tiny_batch(0, ROWS)
    assert step_flops(chunked, state, batch) == pytest.approx(step_flops(whole, state, batch), rel=1e-6)


def test_pairs_from_the_whole_batch_do_not_chunk():
    recipe = tiny_recipe(tiny_config(batch_size=ROWS, chunk=CHUNK, objectives=FIVE))
    state = jax.eval_shape(lambda: started(recipe))
    with pytest.raises(ValueError, match="set config.objectives.itm.group to a divisor of config.chunk"):
        jax.eval_shape(lambda state: losses(recipe, state), state)


def test_chunks_that_do_not_fit_are_refused(shapes_data, tmp_path):
    cases = {
        "chunk=3": "does not divide config.batch_size=16",
        "chunk=4": "which 8 devices .* cannot share",
        "chunk=8": "group is 0, and passes take 8 rows at a time",
    }
    for override, sentence in cases.items():
        with pytest.raises(UserError, match=sentence):
            train(tiny(PLAIN, shapes_data, "objectives={'itc': {}, 'itm': {}}", "batch_size=16", override), tmp_path)
