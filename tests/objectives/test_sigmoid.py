"""SigLIP against its formula in PyTorch: value and gradient, several positives, a queue; the ring; the bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, ring_of, unit
from tiny import ROWS, tiny_batch, tiny_config, tiny_model, tiny_objectives, tiny_params

from xmodal_jax.objectives import parts
from xmodal_jax.objectives.sigmoid import SigLIP
from xmodal_jax.parallel.mesh import make_mesh
from xmodal_jax.settings import MeshConfig

EMBED, QUEUE, FILLED = 6, 8, 5
CASES = {"paper": {}, "queue": {"queue": QUEUE}, "teacher keys and queue": {"queue": QUEUE, "student_keys": False}}


@pytest.fixture(scope="module")
def arrays():
    """Embeddings of student, teacher and a queue of 8 rows, 5 filled, two with an id or caption of the batch."""
    draw = np.random.default_rng(4)
    batch = tiny_batch()  # rows 0 and 1 have one caption
    ring = ring_of(draw, batch, QUEUE, FILLED, EMBED)
    names = ("image", "text", "teacher_image", "teacher_text")
    return {name: unit(draw, ROWS, EMBED) for name in names} | {"batch": batch, "ring": ring}


def reference(image, text, temperature, bias, arrays, queue=0, student_keys=True):
    """Compute -sum log sigmoid(z (t x.y + b)) / B (Zhai et al. 2023, algorithm 1) both ways, without empty rows."""
    count = FILLED if queue else 0
    match = False
    for name in ("id", "text/key"):
        column = np.concatenate([arrays["batch"][name], arrays["ring"][name][:count]])
        match = match | (arrays["batch"][name][:, None] == column[None, :])
    sign = torch.tensor(np.where(match, 1.0, -1.0)).float()
    loss = 0
    for query, other, side in ((image, text, "text"), (text, image, "image")):
        own = other if student_keys else torch.tensor(arrays[f"teacher_{side}"])
        keys = torch.cat([own, torch.tensor(arrays["ring"][side][:count])])
        logits = query @ keys.T / temperature + bias
        loss = loss - 0.5 * torch.nn.functional.logsigmoid(sign * logits).sum(1).mean()
    return loss


def ours(objective, arrays):
    """The term, and the gradients of its mean for image, text, temperature and bias."""
    teacher = Given(arrays["teacher_image"], arrays["teacher_text"])
    memory = {objective.keys: arrays["ring"]} if objective.queue else {}

    def loss(image, text, temperature, bias):
        heads = {"logit_bias": lambda: bias}
        term = objective(Given(image, text, temperature, teacher, memory, 0, heads), arrays["batch"], None)
        return term.mean(), term

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    (_, term), grads = run(arrays["image"], arrays["text"], jnp.float32(0.1), jnp.float32(-2.0))
    return term, grads


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_papers(arrays, case):
    term, grads = ours(SigLIP(**CASES[case]), arrays)
    inputs = [torch.tensor(x, requires_grad=True) for x in (arrays["image"], arrays["text"], 0.1, -2.0)]
    loss = reference(*inputs, arrays, **CASES[case])
    loss.backward()
    np.testing.assert_allclose(term.mean(), loss.item(), rtol=1e-5)
    for mine, theirs in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_with_ring_it_is_the_same_objective(arrays, case):
    term, grads = ours(SigLIP(**CASES[case]), arrays)
    with jax.set_mesh(make_mesh(MeshConfig(2, 4, 1))):
        found, ring_grads = ours(SigLIP(**CASES[case], ring=True), arrays)
    assert set(found.enqueue) == ({"keys"} if CASES[case] else set())
    left, right = jax.tree.leaves((found, ring_grads)), jax.tree.leaves((term, grads))
    for mine, theirs in zip(left, right, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_the_bias_exists_only_with_the_objective_and_starts_at_the_papers_value():
    model = tiny_model(tiny_config())
    assert model.init(jax.random.key(0), method="logit_bias")["params"]["sigmoid"] == {"bias": -10.0}
    for section, there in (({"siglip": {}}, True), ({"itc": {}}, False)):
        params = jax.eval_shape(functools.partial(tiny_params, model, 0, parts(tiny_objectives(section))))
        assert ("sigmoid" in params) == there


def test_the_start_costs_little_for_each_negative(arrays):
    """With bias -10 a row's loss is about that of its positives, 10 - cosine / 0.1 each, not of its negatives."""
    far = arrays | {"batch": arrays["batch"] | {"text/key": np.arange(ROWS, dtype=np.int32)}}
    heads = {"logit_bias": lambda: jnp.float32(-10.0)}
    term = SigLIP()(Given(arrays["image"], arrays["text"], 1.0, None, {}, 0, heads), far["batch"], None)
    cosine = (arrays["image"] * arrays["text"]).sum(1)
    np.testing.assert_allclose(term.values, 10.0 - cosine, atol=ROWS * np.exp(-9.0))
