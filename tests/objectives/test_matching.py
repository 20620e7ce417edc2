"""ITM: which negatives are drawn and how often, and both losses against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROWS, tiny_batch

from xmodal_jax.errors import UserError
from xmodal_jax.objectives import build_objectives
from xmodal_jax.objectives.base import same
from xmodal_jax.objectives.matching import ITM, draw_negatives, draw_pairs, in_groups

EMBED = 5
HEAD = np.random.default_rng(11).normal(size=(2 * EMBED, 2)).astype(np.float32)


def forward(image, text):
    """Given embeddings and a linear matching head on (image, text)."""
    return Given(image, text, heads={"match_logits": lambda tokens, mask, image, text, key: tokens[:, 0] @ HEAD})


@pytest.fixture(scope="module")
def sides():
    """Image and text embeddings of the tiny batch."""
    draw = np.random.default_rng(5)
    return unit(draw, ROWS, EMBED), unit(draw, ROWS, EMBED)


def test_draws_follow_the_softmax_over_allowed_columns():
    logits = jnp.array([[2.0, 1.0, 0.0, -1.0, 3.0], [0.0, 0.0, 5.0, -2.0, 1.0]])
    allowed = jnp.array([[False, True, True, True, True], [True, False, True, True, True]])
    draws = 20000
    keys = jax.random.split(jax.random.key(0), draws)
    picked = np.asarray(jax.jit(jax.vmap(lambda key: draw_negatives(key, logits, allowed, 1)[:, 0]))(keys))
    for row in range(2):
        share = np.bincount(picked[:, row], minlength=5) / draws
        weight = np.exp(np.asarray(logits[row])) * np.asarray(allowed[row])
        expected = weight / weight.sum()
        assert share[row] == 0
        assert 0.5 * np.abs(share - expected).sum() < 0.015  # total variation
        kept = expected > 0
        chi_square = draws * ((share - expected)[kept] ** 2 / expected[kept]).sum()
        assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


def test_several_draws_of_a_row_are_without_replacement():
    keys = jax.random.split(jax.random.key(1), 200)
    allowed = ~jnp.eye(6, dtype=bool)
    picked = np.asarray(jax.jit(jax.vmap(lambda key: draw_negatives(key, jnp.zeros((6, 6)), allowed, 3)))(keys))
    assert all(len(set(row)) == 3 for row in picked.reshape(-1, 3))


def test_logits_that_underflow_a_softmax_still_draw():
    logits = jnp.array([[0.0, -1e4, -1e4 - 1.0]])
    allowed = jnp.array([[False, True, True]])
    picked = [int(draw_negatives(jax.random.key(i), logits, allowed, 1)[0, 0]) for i in range(20)]
    assert set(picked) == {1, 2}


draw_two = jax.jit(lambda key, allowed: draw_pairs(key, jnp.zeros((2, 4, 4)), allowed, 2))


def numbered(pairs, every=1):
    """Pairs as rows of the whole batch: image rows and text rows int [b, 1 + 2n], usable [b]."""
    groups, size, _ = pairs.first.shape
    first = size * np.arange(groups)[:, None, None]
    flat = [(every * (np.asarray(side) + first)).reshape(groups * size, -1) for side in (pairs.first, pairs.second)]
    return (*flat, np.asarray(pairs.usable).reshape(-1))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=8, max_size=8),
    st.lists(st.integers(0, 5), min_size=8, max_size=8),
    st.integers(0, 99),
)
def test_negatives_never_share_id_or_caption_and_stay_in_their_group(ids, keys, seed):
    batch = {"id": jnp.array(ids, jnp.int32), "text/key": jnp.array(keys, jnp.int32)}
    grouped = {name: in_groups(x, 4) for name, x in batch.items()}
    pairs = draw_two(jax.random.key(seed), ~jax.vmap(same)(grouped, grouped))
    images, texts, enough = numbered(pairs)
    for row in range(8):
        others = [
            column
            for column in range(row // 4 * 4, row // 4 * 4 + 4)
            if ids[row] != ids[column] and keys[row] != keys[column]
        ]
        assert (images[row] // 4 == row // 4).all() and (texts[row] // 4 == row // 4).all()
        assert enough[row] == (len(others) >= 2)
        if enough[row]:
            assert set(images[row, 1:3]) <= set(others) and set(texts[row, 3:]) <= set(others)


@pytest.fixture(scope="module")
def computed(sides):
    """Terms, pairs and gradients of both losses with two negatives a direction."""
    batch, key = tiny_batch(), jax.random.key(2)
    results = {}
    for name in ("binary", "listwise"):
        objective = ITM(negatives=2, loss=name)

        def loss(image, text, objective=objective):
            term = objective(forward(image, text), batch, key)
            return term.mean(), term

        (_, term), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*sides)
        results[name] = term, grads, numbered(objective.pairs(forward(*sides), batch, key))
    return results


@pytest.mark.parametrize("name", ["binary", "listwise"])
def test_value_and_gradient_are_pytorchs(computed, sides, name):
    term, grads, (image_rows, text_rows, _) = computed[name]
    inputs = [torch.tensor(x, requires_grad=True) for x in sides]
    joined = torch.cat([inputs[0][np.array(image_rows)], inputs[1][np.array(text_rows)]], dim=-1)
    logits = joined @ torch.tensor(HEAD)
    if name == "binary":
        label = torch.zeros(ROWS, 5, dtype=torch.long)
        label[:, 0] = 1
        rows = torch.nn.functional.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none")
        rows = rows.reshape(ROWS, 5).mean(1)
    else:
        odds, first = logits[..., 1] - logits[..., 0], torch.zeros(ROWS, dtype=torch.long)
        rows = (
            sum(
                torch.nn.functional.cross_entropy(odds[:, columns], first, reduction="none")
                for columns in ([0, 1, 2], [0, 3, 4])
            )
            / 2
        )
    rows.mean().backward()
    np.testing.assert_allclose(term.values, rows.detach(), rtol=1e-5)
    for mine, theirs in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-6)


def test_pairs_are_one_positive_then_images_then_texts(computed):
    image_rows, text_rows, usable = (np.asarray(x) for x in computed["binary"][2])
    own = np.arange(ROWS)[:, None]
    assert image_rows.shape == text_rows.shape == (ROWS, 5)
    np.testing.assert_array_equal(text_rows[:, :3], np.repeat(own, 3, 1))
    np.testing.assert_array_equal(image_rows[:, [0, 3, 4]], np.repeat(own, 3, 1))
    assert usable.all()
    pairs = {0, 1}  # rows with one caption
    assert all(
        len(pairs & {row, column}) < 2
        for row, column in zip(own[:, 0].repeat(2), image_rows[:, 1:3].ravel(), strict=True)
    )


def test_images_and_texts_are_drawn_by_their_own_direction(sides):
    image = np.eye(ROWS, dtype=np.float32)
    text = 0.1 * np.eye(ROWS, dtype=np.float32)
    text[:, 3] += 1.0  # every text is near image 3, so image 3 is everybody's hard negative image
    batch = tiny_batch() | {"text/key": np.arange(ROWS, dtype=np.int32)}
    image_rows, text_rows, _ = numbered(ITM(hardness=10.0).pairs(Given(image, text), batch, jax.random.key(0)))
    others = np.arange(ROWS) != 3
    assert (np.asarray(image_rows)[others, 1] == 3).all()
    assert len(set(np.asarray(text_rows)[:, 2].tolist())) > 2


def test_no_gradient_flows_through_the_drawing(sides):
    heads = {"match_logits": lambda tokens, *_, key: jnp.zeros((tokens.shape[0], 2)) + 0.0 * tokens[:, 0, :2]}

    def loss(image):
        return ITM()(Given(image, sides[1], heads=heads), tiny_batch(), jax.random.key(0)).mean()

    assert (np.asarray(jax.grad(loss)(jnp.asarray(sides[0]))) == 0).all()


def test_the_head_gets_the_embeddings_of_each_pair_without_gradient(sides):
    objective, key = ITM(negatives=2), jax.random.key(0)
    heads = {
        "match_logits": lambda tokens, mask, image, text, key: jnp.stack([image[:, 0] * text[:, 1], image[:, 1]], 1)
    }
    forward = Given(*sides, heads=heads)
    image_rows, text_rows, _ = numbered(objective.pairs(forward, tiny_batch(), key))
    image, text = sides[0][image_rows], sides[1][text_rows]
    odds = image[..., 1] - image[..., 0] * text[..., 1]
    np.testing.assert_allclose(objective(forward, tiny_batch(), key).values, objective.binary(odds), rtol=1e-5)

    def loss(text):
        return objective(Given(sides[0], text, heads=heads), tiny_batch(), key).mean()

    assert (np.asarray(jax.grad(loss)(jnp.asarray(sides[1]))) == 0).all()


def test_every_second_row_is_matched_against_others_of_its_kind(sides):
    objective, key = ITM(negatives=2, every=2), jax.random.key(0)
    image_rows, text_rows, usable = numbered(objective.pairs(forward(*sides), tiny_batch(), key), every=2)
    assert image_rows.shape == (ROWS // 2, 5) and usable.shape == (ROWS // 2,)
    np.testing.assert_array_equal(image_rows[:, 0], np.arange(0, ROWS, 2))
    assert (image_rows % 2 == 0).all() and (text_rows % 2 == 0).all()
    odds = np.concatenate([sides[0][image_rows], sides[1][text_rows]], -1) @ HEAD
    term = objective(forward(*sides), tiny_batch(), key)
    np.testing.assert_allclose(term.values, objective.binary(odds[..., 1] - odds[..., 0]), rtol=1e-5)


def test_rows_without_enough_negatives_weigh_nothing(sides):
    batch = tiny_batch() | {
        "id": np.array([7, 7, 7, 7, 1, 2, 3, 4], np.int32),
        "text/key": np.arange(8, dtype=np.int32),
    }
    term = ITM(negatives=2, group=4)(forward(*sides), batch, jax.random.key(0))
    np.testing.assert_array_equal(term.weight, [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(term.mean(), np.asarray(term.values)[4:].mean(), rtol=1e-6)
    assert term.metrics["rows"] == 0.5


def test_a_group_that_does_not_fit_is_refused(sides):
    for objective, sentence in (
        (
            ITM(name="match", group=3),
            "config.objectives.match.group is 3, which does not divide the batch of 8 rows; write a divisor",
        ),
        (ITM(name="itm", every=3), "itm.every is 3, which must divide the 8 rows .* write a divisor of 8 up to 4"),
        (
            ITM(name="itm", every=8),
            "leave more than the 1 of config.objectives.itm.negatives; write a divisor of 8 up to 4",
        ),
        (ITM(name="itm", negatives=8), "itm.negatives is 8, and a group of 8 rows has 7 at most; write fewer"),
    ):
        with pytest.raises(UserError, match=sentence):
            objective.pairs(forward(*sides), tiny_batch(), jax.random.key(0))


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"negatives": 0}, "itm.negatives is 0; write 1 or more"),
        ({"loss": "hinge"}, "itm.loss is 'hinge'; write one of binary, listwise"),
        ({"group": -8}, "itm.group is -8; write 0 or more"),
        ({"every": 0}, "itm.every is 0; write 1 or more"),
        ({"group": 4, "negatives": 4}, "itm.negatives is 4, and a group of 4 rows has 3 at most"),
        ({"group": 4, "every": 4}, "itm.every is 4, .* write a divisor of 4 up to 2"),
    ],
)
def test_impossible_values_are_refused(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        build_objectives({"itm": fields})
