"""Contrast of fused representations against PyTorch: ReCap's fused keys and MTGFE's MVJRC, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, unit
from tiny import FACTS, ROWS, tiny_batch, tiny_config, tiny_model

from xmodal_jax.config_file import freeze
from xmodal_jax.errors import UserError
from xmodal_jax.objectives import build_objectives
from xmodal_jax.objectives.fused import Fused
from xmodal_jax.objectives.multiview import MVJRC
from xmodal_jax.training.memory import start
from xmodal_jax.types import NEVER

EMBED, QUEUE, FILLED, HEAT = 6, 7, 5, 0.2


@pytest.fixture(scope="module")
def arrays():
    """Unit rows of student and teacher, two views, a fusion matrix each, and a queue with two rows of the batch's."""
    draw = np.random.default_rng(8)
    batch = tiny_batch()  # rows 0 and 1 have one caption
    ring = {"fused": unit(draw, QUEUE, EMBED), "cursor": np.int32(FILLED)}
    ring |= {"id": np.arange(QUEUE, dtype=np.int32) + 900, "text/key": np.arange(QUEUE, dtype=np.int32) + 900}
    ring["id"][1], ring["text/key"][3] = batch["id"][2], batch["text/key"][6]
    ring["id"][FILLED:] = NEVER
    names = ("image", "text", "teacher_image", "teacher_text", "teacher_image2")
    found = {name: unit(draw, ROWS, EMBED) for name in names}
    found |= {name: draw.normal(size=(2 * EMBED, EMBED)).astype(np.float32) for name in ("fusion", "teacher_fusion")}
    return found | {"batch": batch, "ring": ring}


def given(image, text, fusion, **more):
    """A Forward whose fused embedding is a matrix on both embeddings side by side."""

    def rows(x):
        return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))

    heads = {
        "fused_embed": lambda fused: rows(fused[:, 0] @ fusion),
        "joined_embed": lambda fused, image, text: rows(image + text + fused[:, 0] @ fusion),
    }
    return Given(image, text, HEAT, heads=heads, **more)


def ours(objective, arrays):
    """The term, and the gradients of its mean for image, text and fusion."""
    teacher = given(*(jnp.asarray(arrays[f"teacher_{name}"]) for name in ("image", "text", "fusion")))
    teacher.embeds["image2"] = jnp.asarray(arrays["teacher_image2"])
    memory = {objective.keys: arrays["ring"]} if objective.queue else {}

    def loss(image, text, fusion):
        term = objective(given(image, text, fusion, teacher=teacher, memory=memory), arrays["batch"], None)
        return term.mean(), term

    inputs = tuple(jnp.asarray(arrays[name]) for name in ("image", "text", "fusion"))
    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)


def matches(arrays, count):
    """Same id or caption: [B, B + count]."""
    match = False
    for name in ("id", "text/key"):
        column = np.concatenate([arrays["batch"][name], arrays["ring"][name][:count]])
        match = match | (arrays["batch"][name][:, None] == column[None, :])
    return match


def theirs(arrays, joined=False):
    """Torch inputs that want a gradient, and the fused rows of student, teacher, and the teacher's second view.

    `joined`: fused rows are corrections of the sum of both embeddings.
    """
    inputs = [torch.tensor(arrays[name], requires_grad=True) for name in ("image", "text", "fusion")]

    def anchor(image, text):
        return image + text if joined else 0

    def add(image, text, fusion):
        return anchor(image, text) + torch.cat([image, text], 1) @ fusion

    def fuse(*rows):
        return torch.nn.functional.normalize(add(*rows), dim=1)

    constant = {name: torch.tensor(value) for name, value in arrays.items() if name.startswith("teacher")}
    keys = [
        fuse(constant[name], constant["teacher_text"], constant["teacher_fusion"])
        for name in ("teacher_image", "teacher_image2")
    ]
    return inputs, fuse(*inputs), *keys


@pytest.mark.parametrize("count", [0, FILLED])
def test_fused_keys(arrays, count):
    grads, term = ours(Fused(queue=QUEUE if count else 0), arrays)
    (image, text, fusion), fused, key, _ = theirs(arrays, joined=True)
    columns = torch.cat([key, torch.tensor(arrays["ring"]["fused"][:count])])
    match = matches(arrays, count)
    hard = torch.tensor(match / match.sum(1, keepdims=True)).float()
    own = torch.tensor(match[:, :ROWS] / match[:, :ROWS].sum(1, keepdims=True)).float()

    def ask(rows, keys, target):
        return -(torch.log_softmax(rows @ keys.T / HEAT, 1) * target).sum(1)

    loss = (
        ask(image, columns, hard) + ask(text, columns, hard) + ask(fused, torch.tensor(arrays["teacher_image"]), own)
    ) / 3
    np.testing.assert_allclose(term.values, loss.detach(), rtol=1e-5)
    loss.mean().backward()
    for mine, other in zip(grads, (image, text, fusion), strict=True):
        np.testing.assert_allclose(mine, other.grad, atol=1e-5)
    if count:
        np.testing.assert_allclose(term.enqueue["fused"]["fused"], key, atol=1e-6)
        np.testing.assert_array_equal(term.enqueue["fused"]["id"], arrays["batch"]["id"])


@pytest.mark.parametrize("count", [0, FILLED])
def test_views_of_one_pair_and_no_false_negatives(arrays, count):
    objective = MVJRC(queue=QUEUE if count else 0, temperature=0.1)
    grads, term = ours(objective, arrays)
    inputs, fused, _, second = theirs(arrays)
    columns = torch.cat([second, torch.tensor(arrays["ring"]["fused"][:count])])
    match, loss = matches(arrays, count), []
    for i in range(ROWS):
        keep = [j for j in range(len(columns)) if j == i or not match[i, j]]
        there = torch.logsumexp(fused[i] @ columns[keep].T / 0.1, 0) - fused[i] @ second[i] / 0.1
        keep = [j for j in range(ROWS) if j == i or not match[i, j]]
        back = torch.logsumexp(second[i] @ fused[keep].T / 0.1, 0) - fused[i] @ second[i] / 0.1
        loss.append(0.5 * (there + back))
    loss = torch.stack(loss)
    np.testing.assert_allclose(term.values, loss.detach(), rtol=1e-5)
    loss.mean().backward()
    for mine, other in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, other.grad, atol=1e-5)
    assert set(term.enqueue) == ({"multiview"} if count else set())


def test_queues_are_rings_of_their_own():
    section = {"itc": {"queue": 16}, "fused": {"queue": 8}, "mvjrc": {"queue": 4}}
    model = tiny_model(tiny_config(objectives=section, data={"fields": {"image2": {"of": "image"}}}))
    rings = start(build_objectives(section), model, FACTS)
    assert {name: len(ring["id"]) for name, ring in rings.items()} == {"keys": 16, "fused": 8, "multiview": 4}
    two = {"fused": {"queue": 8}, "again": {"kind": "fused", "queue": 8}}
    sentence = r"fused \(of fused\) and .*again \(of again\) put different keys into one ring, 'fused/fused'"
    with pytest.raises(UserError, match=sentence):
        build_objectives(two)
    two["again"]["keys"] = "again"
    assert set(start(build_objectives(two), model, FACTS)) == {"fused", "again"}


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"fused": {"queue": -1}}, "config.objectives.fused.queue is -1; write 0 or more"),
        ({"mvjrc": {"temperature": 0.0}}, "config.objectives.mvjrc.temperature is 0.0"),
        ({"mvjrc": {"queue": -1}}, "config.objectives.mvjrc.queue is -1; write 0 or more"),
    ],
)
def test_impossible_values_are_refused(section, sentence):
    with pytest.raises(UserError, match=sentence):
        build_objectives(section)


def test_a_bridge_needs_embeddings_that_read_tokens():
    from xmodal_jax.assemble import assemble_without_data
    from xmodal_jax.config_file import load

    def changed(*items):
        return assemble_without_data(freeze(load("configs/recap.py:tiny", list(items))))

    assert "bridge" in {part for item in changed().objectives.values() for part in item.parts}
    with pytest.raises(UserError, match=r"objectives.fused.bridge is True, but config.encoders.image.pool='mean'"):
        changed("encoders.image.pool=mean")
    with pytest.raises(UserError, match=r"objectives.lm.bridge is True, but config.bridge.sides is \('text',\)"):
        changed("bridge.sides=('text',)", "encoders.text.pool=mean+attention")
    with pytest.raises(UserError, match="fused.bridge is True, and config.fusion.aggregated adds embeddings"):
        changed("fusion.aggregated=True")  # keys of a closed bridge would not be the teacher's
    with pytest.raises(UserError, match="config.bridge.kind is 'rope'; write one of cross, gate"):
        changed("bridge.kind=rope")


@pytest.mark.parametrize("kind", [Fused, MVJRC])
def test_every_second_row_alone(arrays, kind):
    """The term is that of a batch that holds the second rows only."""
    half = {name: value[::2] if len(value) == ROWS else value for name, value in arrays.items() if name != "batch"}
    half["batch"] = {name: value[::2] for name, value in arrays["batch"].items()}
    _, expected = ours(kind(queue=QUEUE), half)
    _, term = ours(kind(queue=QUEUE, every=2), arrays)
    np.testing.assert_allclose(term.values, expected.values, rtol=1e-5)
    for name, rows in expected.enqueue.items():
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), term.enqueue[name], rows)


def test_an_uneven_every_is_refused():
    for every, sentence in ((0, "; write 1 or more"), (3, ", which does not divide the batch of 8")):
        with pytest.raises(UserError, match=f"config.objectives.lm.every is {every}{sentence}"):
            build_objectives({"lm": {"every": every}}, ROWS)


def test_a_swapped_picture_is_one_more_negative_of_its_own_row(arrays):
    grads, term = ours(MVJRC(temperature=0.1, swapped=True), arrays)
    inputs, fused, _, second = theirs(arrays)
    constant = {name: torch.tensor(arrays[name]) for name in ("teacher_image2", "teacher_text", "teacher_fusion")}
    before = np.roll(np.arange(ROWS), 1)
    mixed = torch.cat([constant["teacher_image2"][before], constant["teacher_text"]], 1) @ constant["teacher_fusion"]
    wrong, match, loss = torch.nn.functional.normalize(mixed, dim=1), matches(arrays, 0), []
    for i in range(ROWS):
        keep = [j for j in range(ROWS) if j == i or not match[i, j]]
        logits = [fused[i] @ second[keep].T] + ([] if match[i, before[i]] else [fused[i] @ wrong[i : i + 1].T])
        there = torch.logsumexp(torch.cat(logits) / 0.1, 0) - fused[i] @ second[i] / 0.1
        back = torch.logsumexp(second[i] @ fused[keep].T / 0.1, 0) - fused[i] @ second[i] / 0.1
        loss.append(0.5 * (there + back))
    assert match[1, before[1]]  # rows 0 and 1 have one caption: no negative there
    loss = torch.stack(loss)
    np.testing.assert_allclose(term.values, loss.detach(), rtol=1e-5)
    loss.mean().backward()
    for mine, other in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, other.grad, atol=1e-5)
