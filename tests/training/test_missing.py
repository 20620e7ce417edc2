"""Rows in which a field is missing count nowhere, in one compiled program, whatever share of the batch they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ROWS, tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.objectives import OBJECTIVES, parts
from xmodal_jax.training.step import create_state, total_loss, train_step
from xmodal_jax.types import NEVER

FIELDS = {"image": {"required": False}, "text": {"required": False}, "image2": {"of": "image", "required": False}}
SECTIONS = {
    "itc": {"queue": 8},
    "siglip": {"queue": 8},
    "ims": {},
    "lmim": {"momentum": False},
    "itm": {},
    "mlm": {"rate": 0.3},
    "lm": {},
    "hash": {},
    "hash_triplet": {},
    "hash_euclidean": {},
    "hash_contrast": {"table": 64, "negatives": 8},
    "hash_supcon": {},
    "hash_quality": {"balance": 1.0, "decorrelation": 1.0},
    "hash_distance": {},
    "fused": {"queue": 8},
    "mvjrc": {"queue": 8},
    "distill": {"feature": 1.0},
    "hinge": {},
    "complementary": {},
    "refurbish": {},
    "multilabel": {"target": "labels"},
    "transfer": {"pair": ("image", "text")},
    "answer": {},
}
VARIANTS = {name: {name: fields} for name, fields in SECTIONS.items()} | {
    "itc in a ring": {"itc": {"queue": 8, "ring": True}},
    "siglip in a ring": {"siglip": {"queue": 8, "ring": True}},
    "itc of second views": {"itc": {"queue": 8, "second_view_keys": True}},
    "lm by language": {"lm": {"languages": True}},
    "exact sums": {"hash": {"exact": True}},
    "mvjrc swapped": {"mvjrc": {"queue": 8, "swapped": True}},
    "listwise": {"itm": {"loss": "listwise", "negatives": 2}},
}
DRAWN = {"itm", "mlm", "hash_contrast", "listwise", "mvjrc swapped"}  # which rows meet depends on the size of the batch


def test_every_kind_is_here():
    assert set(SECTIONS) == set(OBJECTIVES)


def made(section):
    """The recipe and a state of one variant."""
    config = tiny_config(
        data={"fields": FIELDS, "embeddings": "made", "unit": "pair", "languages": ("en", "de")},
        objectives=section,
        batch_size=ROWS,
    )
    recipe = tiny_recipe(config)
    return recipe, create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0)


def batch_of(missing, seed=0):
    """A batch in which the rows `missing[field]` lack a field: zeros, caption key NEVER."""
    batch, draw = tiny_batch(seed), np.random.default_rng(seed)
    batch["image2"] = draw.normal(size=batch["image"].shape).astype(np.float16)
    teacher = draw.normal(size=(2, ROWS, 8)).astype(np.float32)
    teacher /= np.linalg.norm(teacher, axis=-1, keepdims=True)
    batch |= {"image/teacher": teacher[0], "text/teacher": teacher[1]}
    batch["pair"] = np.arange(ROWS, dtype=np.int32)
    batch["labels"] = draw.integers(0, 2, (ROWS, 3)).astype(np.float32)
    for field in FIELDS:
        valid = ~np.isin(np.arange(ROWS), missing.get(field, ()))
        batch[f"{field}/valid"] = valid
        batch[field] = np.where(valid.reshape(-1, *(1,) * (batch[field].ndim - 1)), batch[field], 0).astype(
            batch[field].dtype
        )
    batch["text/language"] = np.where(batch["text/valid"], np.arange(ROWS) % 2, NEVER).astype(np.int32)
    batch["text/key"] = np.where(batch["text/valid"], batch["text/key"], NEVER).astype(np.int32)
    return jax.tree.map(jnp.asarray, batch)


SHARES = [
    {},
    {"image": (1, 4)},
    {"text": (2,), "image": (3,)},
    {"image2": (0, 5)},
    {"text": range(ROWS)},
    {"image": range(ROWS), "image2": range(ROWS)},
    dict.fromkeys(FIELDS, range(ROWS)),
]


@pytest.mark.parametrize("name", VARIANTS)
def test_missing_rows_count_nowhere_in_one_program(name):
    """Losses and gradients are finite, do not depend on a missing row, and one program serves all shares."""
    recipe, state = made(VARIANTS[name])
    traced = []

    def loss(params, floats, batch):
        traced.append(name)
        return total_loss(recipe, params, state, batch | floats, jax.random.key(0))[0]

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for missing in SHARES:
        batch = batch_of(missing)
        floats = {field: batch[field].astype(jnp.float32) for field in ("image", "image2")}
        value, (grads, pixels) = run(state.params, floats, batch)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, grads, pixels))), missing
        for field, slope in pixels.items():
            assert (np.asarray(slope)[~np.asarray(batch[f"{field}/valid"])] == 0).all(), (missing, field)
        if all(len(missing.get(field, ())) == ROWS for field in ("image", "text")):
            assert float(value) == 0 and all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))
        other = dict(batch)
        for field in ("image", "image2", "text"):
            gone = ~np.asarray(batch[f"{field}/valid"])
            noise = np.asarray(batch[field]).copy()
            noise[gone] = 7
            other[field] = jnp.asarray(noise)
        again, _ = run(state.params, {field: other[field].astype(jnp.float32) for field in floats}, other)
        np.testing.assert_allclose(again, value, rtol=2e-6, err_msg=str(missing))
    assert len(traced) == 1


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in DRAWN | {"ims", "lmim", "multilabel"}])
def test_the_loss_is_that_of_the_rows_that_are_whole(name):
    recipe, state = made(VARIANTS[name])

    def loss(batch):
        return total_loss(recipe, state.params, state, batch, jax.random.key(0))[0]

    batch = batch_of({"image": (1, 4), "text": (6,), "image2": (1, 4)})
    whole = np.array([row for row in range(ROWS) if row not in (1, 4, 6)])
    np.testing.assert_allclose(jax.jit(loss)(batch), jax.jit(loss)({k: v[whole] for k, v in batch.items()}), rtol=1e-5)


def test_a_missing_key_never_comes_back_from_the_queue():
    """After a step the ring holds every row, and the next batch's loss does not see the fields that were missing."""
    recipe, state = made(VARIANTS["itc"])
    step = jax.jit(functools.partial(train_step, recipe))
    batch = batch_of({"image": (1, 4)})
    after, _ = step(state, batch)
    ring = after.memory["keys"]
    assert set(ring) == {"image", "text", "id", "text/key", "image/valid", "text/valid", "cursor"}
    np.testing.assert_array_equal(ring["image/valid"], batch["image/valid"])

    def loss(state):
        return total_loss(recipe, state.params, state, batch_of({}, 1), jax.random.key(0))[0]

    run = jax.jit(lambda memory: loss(state.replace(memory=memory)))
    other = {name: ring[name].at[jnp.array([1, 4])].add(1.0) for name in ("image", "text")}
    assert float(run({"keys": ring})) == float(run({"keys": ring | other}))
    assert float(run({"keys": ring})) != float(run({"keys": ring | {"text": ring["text"].at[0].add(1.0)}}))


def test_a_step_with_nothing_in_it_changes_no_parameter_but_by_decay():
    recipe, state = made({"itc": {"queue": 0}})
    after, metrics = jax.jit(functools.partial(train_step, recipe))(state, batch_of(dict.fromkeys(FIELDS, range(ROWS))))
    assert int(after.skipped) == 0 and float(metrics["grad_norm"]) == 0
