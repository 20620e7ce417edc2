"""Targets refurbished by the posteriors of pairs, in each objective that takes them, and the losses that are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, unit
from tiny import FACTS, ROWS, tiny_batch, tiny_config, tiny_model, tiny_objectives

from xmodal_jax.errors import UserError
from xmodal_jax.objectives.contrastive import ITC
from xmodal_jax.objectives.robust import UNSEEN, Refurbish, mean_hinge, negatives_of
from xmodal_jax.objectives.sigmoid import SigLIP

EMBED, PAIRS = 6, 40
PAIR = np.array([3, 9, 4, 11, 30, 7, 22, 1], np.int32)  # numbers of the pairs of the batch


BIAS = {"logit_bias": lambda: jnp.float32(-1.0)}


@pytest.fixture(scope="module")
def sides():
    """Image and text embeddings of the tiny batch; rows 0 and 1 have one caption."""
    draw = np.random.default_rng(3)
    return unit(draw, ROWS, EMBED), unit(draw, ROWS, EMBED)


@pytest.fixture(scope="module")
def trust():
    """Posteriors of all pairs."""
    return np.random.default_rng(8).random(PAIRS).astype(np.float32)


def term_of(objective, sides, memory=None, heads=None, **more):
    """The term of an objective on the tiny batch with numbers of its pairs, and the gradients for both sides."""
    batch = tiny_batch() | {"pair": PAIR} | more

    def loss(image, text):
        term = objective(
            Given(image, text, jnp.float32(0.2), memory=memory or {}, step=7, heads=heads or {}), batch, None
        )
        return term.mean(), term

    (_, term), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*sides)
    return term, grads


def remembered(trust):
    """The memory of a `refurbish` entry with these posteriors."""
    return {"refurbish": {"clean": jnp.asarray(trust)[:, None], "loss": jnp.zeros((PAIRS, 1))}}


def matches():
    """Which rows of the tiny batch match, bool [B,B]."""
    return torch.tensor(~np.asarray(negatives_of(tiny_batch(), ("image", "text"))))


def test_itc_spreads_what_a_pair_is_not_trusted_over_the_others(sides, trust):
    """And leaves out other keys that match: rows 0 and 1 have one caption."""
    plain = ITC(student_keys=True, queue=0, alpha=0.0, robust="refurbish")
    term, grads = term_of(plain, sides, remembered(trust))
    inputs = [torch.tensor(x, requires_grad=True) for x in sides]
    scores, match, own = inputs[0] @ inputs[1].T / 0.2, matches(), torch.tensor(trust[PAIR])
    rows, eye = [], torch.eye(ROWS, dtype=torch.bool)
    for logits in (scores, scores.T):
        for i in range(ROWS):
            columns = [i, *[j for j in range(ROWS) if not match[i, j]]]
            chance = torch.softmax(logits[i, columns], 0)
            target = (own[i] + (1 - own[i]) * chance[0]).detach()
            wanted = torch.cat([target[None], (1 - target).expand(len(columns) - 1) / (len(columns) - 1)])
            rows.append(-0.5 * (wanted * torch.log(chance)).sum())
    rows = torch.stack(rows).reshape(2, ROWS).sum(0)
    rows.mean().backward()
    assert (match & ~eye).any()
    np.testing.assert_allclose(term.values, rows.detach(), rtol=1e-5)
    for mine, theirs in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_wrong_caption_of_the_same_picture_in_the_queue_is_no_positive(sides):
    """A row that matches its own pair has no loss, whatever the queue has under its id."""
    eye, far = np.split(np.eye(2 * ROWS, dtype=np.float32), 2)
    batch = tiny_batch() | {"pair": PAIR, "text/key": np.arange(ROWS, dtype=np.int32)}
    ring = {"image": far, "text": far, "id": batch["id"], "text/key": batch["text/key"] + 50}
    memory = remembered(np.ones(PAIRS, np.float32)) | {"keys": ring}
    objective = ITC(student_keys=True, queue=ROWS, alpha=0.0, robust="refurbish")
    given = Given(eye, eye, jnp.float32(0.01), Given(eye, eye), memory, 0)
    given.batch = batch
    losses = objective(given, batch, None).values
    assert np.abs(losses).max() < 1e-3
    plain = ITC(student_keys=True, queue=ROWS, alpha=0.0)(given, batch, None).values
    assert np.abs(plain).min() > 10


def test_siglip_softens_the_labels_of_own_keys(sides, trust):
    term, grads = term_of(SigLIP(robust="refurbish"), sides, remembered(trust), BIAS)
    inputs = [torch.tensor(x, requires_grad=True) for x in sides]
    logits, match, own = inputs[0] @ inputs[1].T / 0.2 - 1.0, matches(), torch.tensor(trust[PAIR])[:, None]
    eye = torch.eye(ROWS, dtype=torch.bool)
    label = torch.where(eye, own + (1 - own) * torch.sigmoid(logits.detach()), torch.zeros(()))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    loss = (loss * (eye | ~match)).sum(1)
    loss.mean().backward()
    np.testing.assert_allclose(term.values, loss.detach(), rtol=1e-5)
    for mine, theirs in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-6)


OBJECTIVES = {
    "itc": {"queue": 0, "alpha": 0.4},
    "siglip": {},
    "hinge": {},
    "itm": {},
    "itm listwise": {"kind": "itm", "loss": "listwise", "every": 2},
    "hash": {},
    "hash_triplet": {},
    "hash_contrast": {"table": 64},
    "hash_supcon": {"by_label": False},
    "fused": {"queue": 0, "every": 2},
}


def stepped(section, trust, make):
    """The losses of a step of the tiny model over `section` beside a `refurbish` entry with these posteriors."""
    section = {"refurbish": {}} | section
    recipe, state, batch = make(section)
    rows = jnp.full_like(state.memory["refurbish"]["clean"], trust)
    state.memory["refurbish"]["clean"] = rows
    from xmodal_jax.training.step import run_objectives

    terms, _ = run_objectives(recipe, state.params, state, batch, jax.random.key(3))
    return {name: (float(term.mean()), np.asarray(term.weight)) for name, term in terms.items()}


@pytest.fixture(scope="module")
def make():
    """Makes the recipe, the first state and a batch of the tiny model with given objectives."""
    from tiny import tiny_params, tiny_recipe

    from xmodal_jax.objectives import parts
    from xmodal_jax.training.step import create_state

    distinct = {"pair": PAIR, "text/key": np.arange(ROWS, dtype=np.int32)}  # no row matches another

    def made(section):
        config = tiny_config(objectives=section, data={"unit": "pair"})
        recipe = tiny_recipe(config)
        params = tiny_params(tiny_model(config), 0, parts(recipe.objectives))
        batch = {name: jnp.asarray(x) for name, x in (tiny_batch() | distinct).items()}
        return recipe, create_state(recipe, params, 0), batch

    return made


@pytest.mark.parametrize("name", OBJECTIVES)
def test_full_trust_changes_nothing_and_none_does(make, name):
    kind = OBJECTIVES[name].get("kind", name)
    own, entry = OBJECTIVES[name], name.replace(" ", "_")
    section = {entry: {"kind": kind, **own}}
    soft = {entry: {"kind": kind, **own, "robust": "refurbish"}}
    plain = stepped(section, 1.0, make)[entry]
    full = stepped(soft, 1.0, make)[entry]
    np.testing.assert_allclose(full[0], plain[0], rtol=1e-5)
    loss, weight = stepped(soft, 0.0, make)[entry]
    assert not np.isclose(loss, plain[0], rtol=1e-5) or (weight == 0).all()


def test_losses_of_visited_pairs_go_into_the_table(sides):
    start = Refurbish(name="refurbish").memory(tiny_model(tiny_config()), FACTS)
    batch = tiny_batch()
    expected = mean_hinge(jnp.asarray(sides[0] @ sides[1].T), negatives_of(batch, ("image", "text")), 0.2)
    term, grads = term_of(Refurbish(name="refurbish"), sides, start)
    place, rows = term.write["refurbish"]
    np.testing.assert_array_equal(place, PAIR)
    np.testing.assert_allclose(rows["loss"][:, 0], expected, rtol=1e-5)
    assert (np.asarray(term.values) == 0).all() and all((np.asarray(grad) == 0).all() for grad in grads)


def test_a_pair_visited_again_keeps_a_share_of_its_old_loss(sides):
    memory = Refurbish(name="refurbish").memory(tiny_model(tiny_config()), FACTS)
    old = memory["refurbish"]["loss"].at[PAIR[:4]].set(0.5)
    memory["refurbish"] = memory["refurbish"] | {"loss": old}
    fresh = term_of(Refurbish(name="refurbish"), sides, memory)[0].write["refurbish"][1]["loss"]
    kept = term_of(Refurbish(name="refurbish", average=0.75), sides, memory)[0].write["refurbish"][1]["loss"]
    np.testing.assert_allclose(kept[:4], 0.75 * 0.5 + 0.25 * fresh[:4], rtol=1e-6)
    np.testing.assert_allclose(kept[4:], fresh[4:])


def test_rows_without_a_field_are_not_kept(sides):
    memory = Refurbish(name="refurbish").memory(tiny_model(tiny_config()), FACTS)
    term, _ = term_of(Refurbish(name="refurbish"), sides, memory, **{"text/valid": np.arange(ROWS) != 2})
    place, _ = term.write["refurbish"]
    assert place[2] == len(memory["refurbish"]["loss"]) and (np.asarray(place)[[0, 1, 3]] == PAIR[[0, 1, 3]]).all()


def known(losses, seen):
    """The memory of a `refurbish` entry that has seen some of these losses."""
    objective = Refurbish(name="refurbish", warmup=10, period=1)
    memory = objective.memory(tiny_model(tiny_config()), FACTS)
    rows = jnp.where(jnp.asarray(seen), jnp.asarray(losses), UNSEEN)[:, None]
    return objective, memory | {"refurbish": {"loss": rows, "clean": jnp.ones_like(rows), "cursor": jnp.zeros(())}}


def test_a_refresh_trusts_the_low_losses_and_what_it_has_not_seen():
    rng = np.random.default_rng(2)
    losses = np.r_[rng.beta(2, 12, 300), 0.5 + rng.beta(6, 6, 200)].astype(np.float32)
    seen = np.arange(500) % 5 > 0
    objective, memory = known(losses, seen)
    after = jax.jit(objective.refresh)(memory, jnp.int32(10))
    clean = np.asarray(after["refurbish"]["clean"][:, 0])
    assert (clean[~seen] == 1).all()
    assert (clean[:300][seen[:300]] > 0.5).mean() > 0.98 and (clean[300:][seen[300:]] < 0.5).mean() > 0.98
    mean, share = (np.asarray(after["refurbish_mixture"][name]) for name in ("mean", "share"))
    low, high = np.percentile(losses[seen], (5, 95))
    low_ones, high_ones = (own[(own >= low) & (own <= high)].mean() for own in (losses[:300], losses[300:]))
    np.testing.assert_allclose(mean, (low_ones, high_ones), atol=0.05)  # what lies outside is left out
    np.testing.assert_allclose(share, (0.6, 0.4), atol=0.06)  # by moments, which are not the likelihood's


def test_nothing_changes_before_the_end_of_the_warm_up():
    objective, memory = known(np.linspace(0, 1, 100, dtype=np.float32), np.ones(100, bool))
    after = objective.refresh(memory, jnp.int32(9))
    assert all(
        (np.asarray(a) == np.asarray(b)).all() for a, b in zip(*map(jax.tree.leaves, (memory, after)), strict=True)
    )


@pytest.mark.parametrize("losses", [np.full(100, 0.3), np.r_[np.zeros(95), np.linspace(1e-4, 0.01, 5)]])
def test_losses_that_are_alike_are_all_trusted(losses):
    objective, memory = known(losses.astype(np.float32), np.ones(100, bool))
    after = objective.refresh(memory, jnp.int32(10))
    assert (np.asarray(after["refurbish"]["clean"]) == 1).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


def test_a_fit_without_any_loss_leaves_numbers():
    objective, memory = known(np.zeros(100, np.float32), np.zeros(100, bool))
    after = objective.refresh(memory, jnp.int32(10))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


@pytest.mark.parametrize(("warmup", "period", "first"), [(586, 117, 585), (47, 23, 46), (8851, 4425, 8850), (0, 5, 5)])
def test_the_first_fit_is_the_one_nearest_to_the_end_of_the_warm_up(warmup, period, first):
    _, memory = known(np.linspace(0, 1, 100, dtype=np.float32), np.ones(100, bool))
    objective = Refurbish(name="refurbish", warmup=warmup, period=period)
    fits = [bool((objective.refresh(memory, jnp.int32(n * period))["refurbish"]["clean"] < 1).any()) for n in (1, 2, 5)]
    steps = [n * period for n in (1, 2, 5)]
    assert fits == [step >= first for step in steps]


def test_a_row_without_a_negative_is_not_kept(sides):
    memory = Refurbish(name="refurbish").memory(tiny_model(tiny_config()), FACTS)
    term, _ = term_of(Refurbish(name="refurbish"), sides, memory, id=np.full(ROWS, 7, np.int32))
    assert (np.asarray(term.write["refurbish"][0]) == len(memory["refurbish"]["loss"])).all()


OTHER = {"unit": "pair", "fields": {"image": {}, "text": {}, "text2": {"of": "text"}}}


@pytest.mark.parametrize(
    ("section", "data", "said"),
    [
        ({"itc": {"robust": "refurbish"}}, {"unit": "pair"}, "no entry of kind 'refurbish'"),
        ({"itc": {}, "refurbish": {"robust": "itc"}}, {"unit": "pair"}, "'robust' is not a field"),
        ({"itc": {"robust": "refurbish"}, "refurbish": {}}, {}, "write config.data.unit='pair'"),
        ({"itc": {"robust": "refurbish", "ring": True}, "refurbish": {}}, {"unit": "pair"}, "ring=False"),
        ({"itc": {"robust": "itc"}}, {"unit": "pair"}, "no entry of kind 'refurbish'"),
        (
            {"refurbish": {}, "itc": {"pair": ("image", "text2"), "robust": "refurbish"}},
            OTHER,
            "another caption than that",
        ),
        ({"refurbish": {"pair": ("image", "text2")}}, OTHER, "another caption than that of the pair"),
        ({"refurbish": {"clip": 60.0}}, {"unit": "pair"}, "write a rate from 0 to 49"),
        ({"refurbish": {"mixture": "normal"}}, {"unit": "pair"}, "write one of beta, gaussian"),
    ],
)
def test_what_does_not_fit_is_refused(section, data, said):
    with pytest.raises(UserError, match=said):
        tiny_objectives(section, tiny_config(objectives=section, data=data))


def test_a_class_of_ones_own_may_keep_the_losses(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from xmodal_jax.objectives.robust import Refurbish, Robust\n\n\n"
        "@dataclass(frozen=True)\nclass Squared(Refurbish):\n"
        "    def losses(self, fwd, batch):\n        return super().losses(fwd, batch) ** 2\n\n\n"
        "@dataclass(frozen=True)\nclass Other(Robust):\n    pass\n"
    )
    for name, fits in (("Squared", True), ("Other", False)):
        section = {"itc": {"robust": "mine"}, "mine": {"kind": f"{tmp_path / 'mine.py'}:{name}"}}
        config = tiny_config(objectives=section, data={"unit": "pair"})
        if fits:
            assert type(tiny_objectives(section, config)["mine"]).__name__ == "Squared"
            continue
        with pytest.raises(UserError, match="no entry of kind 'refurbish' with that name"):
            tiny_objectives(section, config)
