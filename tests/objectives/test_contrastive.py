"""ITC against ALBEF's formula in PyTorch: value and gradient, with the queue, soft targets and several positives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, ring_of, unit
from tiny import FACTS, ROWS, tiny_batch, tiny_config, tiny_model

from xmodal_jax.errors import UserError
from xmodal_jax.objectives import build_objectives
from xmodal_jax.objectives.contrastive import ITC, KEYS, direction, hard_targets, soft_cross_entropy
from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.settings import MeshConfig
from xmodal_jax.types import NEVER

EMBED, QUEUE, FILLED = 6, 10, 7


@pytest.fixture(scope="module")
def arrays():
    """Embeddings of student, teacher and a queue of 10 rows, 7 filled, two with an id or caption of the batch."""
    draw = np.random.default_rng(3)
    batch = tiny_batch()
    ring = ring_of(draw, batch, QUEUE, FILLED, EMBED)
    names = ("image", "text", "teacher_image", "teacher_text")
    return {name: unit(draw, ROWS, EMBED) for name in names} | {"batch": batch, "ring": ring}


def albef(image, text, temperature, arrays, alpha, queued=True, student_keys=False):
    """ALBEF's contrastive loss (Li et al. 2021, section 3.2) in PyTorch: empty queue rows are left out, not masked."""
    batch, ring = arrays["batch"], arrays["ring"]
    count = FILLED if queued else 0
    keys = {}
    for side, own in (("image", image), ("text", text)):
        rows = own if student_keys else torch.tensor(arrays[f"teacher_{side}"])
        keys[side] = torch.cat([rows, torch.tensor(ring[side][:count])])
    match = False
    for name in ("id", "text/key"):
        column = np.concatenate([batch[name], ring[name][:count]])
        match = match | (batch[name][:, None] == column[None, :])
    hard = torch.tensor(match / match.sum(1, keepdims=True)).float()
    loss = 0
    for query, teacher, side in ((image, "teacher_image", "text"), (text, "teacher_text", "image")):
        with torch.no_grad():
            soft = torch.softmax(torch.tensor(arrays[teacher]) @ keys[side].T / temperature, dim=1)
            targets = alpha * soft + (1 - alpha) * hard
        loss = loss - 0.5 * (torch.log_softmax(query @ keys[side].T / temperature, dim=1) * targets).sum(1)
    return loss


def ours(objective, arrays, step=0, queued=True):
    """Per-row losses and the gradients of their mean for image, text and temperature."""
    teacher = Given(arrays["teacher_image"], arrays["teacher_text"])
    memory = {KEYS: arrays["ring"]} if queued else {}

    @jax.jit
    def loss(image, text, temperature):
        fwd = Given(image, text, temperature, teacher, memory, step, batch=arrays["batch"])
        term = objective(fwd, arrays["batch"], None)
        return term.mean(), term

    run = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, term), grads = run(arrays["image"], arrays["text"], jnp.float32(0.1))
    return term, grads


def expected(arrays, **options):
    """The same from `albef`."""
    inputs = [torch.tensor(arrays["image"]), torch.tensor(arrays["text"]), torch.tensor(0.1)]
    for x in inputs:
        x.requires_grad_()
    rows = albef(*inputs, arrays, **options)
    rows.mean().backward()
    return rows.detach().numpy(), [x.grad.numpy() for x in inputs]


CASES = {
    "queue and soft targets": (ITC(queue=QUEUE, alpha=0.4), {"alpha": 0.4}),
    "hard targets": (ITC(queue=QUEUE, alpha=0.0), {"alpha": 0.0}),
    "no queue": (ITC(queue=0, alpha=0.4), {"alpha": 0.4, "queued": False}),
    "student keys": (ITC(queue=QUEUE, alpha=0.4, student_keys=True), {"alpha": 0.4, "student_keys": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_albefs(arrays, case):
    objective, options = CASES[case]
    term, grads = ours(objective, arrays, queued=options.get("queued", True))
    rows, reference = expected(arrays, **options)
    np.testing.assert_allclose(term.values, rows, rtol=2e-5)
    for mine, theirs in zip(grads, reference, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ring", [False, True])
def test_keys_and_queue_may_be_of_the_second_view(arrays, ring):
    """TCL: the teacher sees the other view of a picture, as key, as soft target and in the queue."""
    second = unit(np.random.default_rng(9), ROWS, EMBED)
    objective = ITC(queue=QUEUE, alpha=0.4, second_view_keys=True, ring=ring)
    teacher, config = Given(None, arrays["teacher_text"]), tiny_config(data={"fields": {"image2": {"of": "image"}}})
    teacher.embeds["image2"] = second
    sides = arrays["image"], arrays["text"]
    fwd = Given(*sides, 0.1, teacher, {KEYS: arrays["ring"]}, batch=arrays["batch"], config=config)
    term = objective(fwd, arrays["batch"], None)
    rows, _ = expected(arrays | {"teacher_image": second}, alpha=0.4)
    np.testing.assert_allclose(term.values, rows, rtol=2e-5)
    np.testing.assert_array_equal(term.enqueue[KEYS]["image"], second)
    assert set(term.metrics) == {"accuracy", "temperature", "drift_text"}, "the teacher never sees the first view"


@pytest.mark.parametrize("field", ["student_keys", "bridge"])
def test_keys_of_the_second_view_are_the_teachers(field):
    with pytest.raises(UserError, match="x.second_view_keys is True, .* student_keys or bridge they are others"):
        ITC(second_view_keys=True, **{field: True}).check("x")


@pytest.mark.parametrize("case", CASES)
def test_with_ring_it_is_the_same_objective(arrays, case):
    objective, options = CASES[case]
    term, grads = ours(objective, arrays, queued=options.get("queued", True))
    with jax.set_mesh(make_mesh(MeshConfig(2, 4, 1))):  # a queue of 10 rows on 8 shards is filled up
        found, ring_grads = ours(dataclasses.replace(objective, ring=True), arrays, queued=options.get("queued", True))
    for mine, theirs in zip(jax.tree.leaves((found, ring_grads)), jax.tree.leaves((term, grads)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_without_queue_or_soft_targets_it_is_clips_loss(arrays):
    batch = arrays["batch"] | {"text/key": np.arange(ROWS, dtype=np.int32)}
    term, _ = ours(ITC(queue=0, alpha=0.0, student_keys=True), arrays | {"batch": batch}, queued=False)
    logits, target = torch.tensor(arrays["image"]) @ torch.tensor(arrays["text"]).T / 0.1, torch.arange(ROWS)
    both = [torch.nn.functional.cross_entropy(side, target, reduction="none") for side in (logits, logits.T)]
    np.testing.assert_allclose(term.values, (both[0] + both[1]) / 2, rtol=2e-5)


def test_alpha_ramps_from_zero(arrays):
    objective = ITC(queue=QUEUE, alpha=0.4, alpha_steps=10)
    for step, alpha in ((0, 0.0), (5, 0.2), (30, 0.4)):
        rows, _ = expected(arrays, alpha=alpha)
        np.testing.assert_allclose(ours(objective, arrays, jnp.int32(step))[0].values, rows, rtol=2e-5)


def test_what_an_empty_row_holds_changes_nothing(arrays):
    ring = {name: np.array(value) for name, value in arrays["ring"].items()}
    ring["image"][FILLED:], ring["text"][FILLED:] = 50.0, -50.0
    objective = ITC(queue=QUEUE)
    first, second = ours(objective, arrays)[0], ours(objective, arrays | {"ring": ring})[0]
    np.testing.assert_array_equal(first.values, second.values)


def test_the_queue_gets_the_teachers_keys_of_the_batch(arrays):
    for objective in (ITC(queue=QUEUE), ITC(queue=QUEUE, student_keys=True)):
        rows = ours(objective, arrays)[0].enqueue[KEYS]
        np.testing.assert_array_equal(rows["image"], arrays["teacher_image"])
        np.testing.assert_array_equal(rows["text"], arrays["teacher_text"])
        np.testing.assert_array_equal(rows["id"], arrays["batch"]["id"])
        np.testing.assert_array_equal(rows["text/key"], arrays["batch"]["text/key"])
    assert ours(ITC(queue=0), arrays, queued=False)[0].enqueue == {}


def test_accuracy_counts_any_positive(arrays):
    perfect = arrays | {"image": arrays["teacher_text"]}
    assert ours(ITC(queue=QUEUE), perfect)[0].metrics["accuracy"] == 1.0
    scores = arrays["image"] @ np.concatenate([arrays["teacher_text"], arrays["ring"]["text"][:FILLED]]).T
    columns = {name: np.concatenate([arrays["batch"][name], arrays["ring"][name]]) for name in ("id", "text/key")}
    best = scores.argmax(1)
    right = [any(arrays["batch"][n][i] == columns[n][j] for n in columns) for i, j in enumerate(best)]
    assert ours(ITC(queue=QUEUE), arrays)[0].metrics["accuracy"] == np.float32(np.mean(right))


def test_memory_is_one_record_of_empty_rows():
    model = tiny_model(tiny_config())
    ring = ITC(queue=5).memory(model, FACTS)[KEYS]
    assert {name: leaf.shape for name, leaf in ring.items()} == {
        "image": (5, 8),
        "text": (5, 8),
        "id": (5,),
        "text/key": (5,),
    }
    assert (np.asarray(ring["id"]) == NEVER).all()
    assert ITC(queue=0).memory(model, FACTS) == {}
    config = tiny_config(data={"fields": {"text": {"required": False}}})
    ring = ITC(queue=5, keys="own").memory(tiny_model(config), FACTS)["own"]
    assert set(ring) == {"image", "text", "id", "text/key", "text/valid"} and not ring["text/valid"].any()


def test_hard_targets_spread_evenly():
    rows = hard_targets(jnp.array([[True, False, True], [False, True, False]]))
    np.testing.assert_array_equal(rows, [[0.5, 0, 0.5], [0, 1, 0]])


def test_soft_cross_entropy_of_its_own_softmax_is_the_entropy(rng):
    logits = rng.normal(size=(3, 5)).astype(np.float32)
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(soft_cross_entropy(logits, share), -(share * np.log(share)).sum(1), rtol=1e-5)


def test_a_teacher_of_extreme_logits_stays_finite(arrays):
    valid, positive = jnp.ones(ROWS, bool), jnp.eye(ROWS, dtype=bool)
    losses, _ = direction(
        arrays["image"], arrays["text"], positive, valid, jnp.float32(1e-4), arrays["text"], jnp.float32(0.5)
    )
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    "field, value, sentence", [("queue", -1, "write 0 or more"), ("alpha", 1.5, "write a rate from 0 to 1")]
)
def test_impossible_values_are_refused(field, value, sentence):
    with pytest.raises(UserError, match=f"itc.{field} is {value}; .*{sentence}"):
        build_objectives({"itc": {field: value}})
