"""Distillation against PyTorch's own KL and cosine: value and gradient; equal similarities cost nothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, unit
from tiny import FACTS, ROWS

from xmodal_jax.errors import UserError
from xmodal_jax.objectives import build_objectives
from xmodal_jax.objectives.base import at
from xmodal_jax.objectives.distill import Distill

EMBED, HEAT = 6, 0.2
CASES = {
    "relation": {},
    "feature": {"relation": 0.0, "feature": 1.0},
    "both": {"relation": 0.7, "feature": 0.3, "teacher_temperature": 0.05},
}


@pytest.fixture(scope="module")
def arrays():
    """Embeddings of a student and of a teacher in the same space."""
    draw = np.random.default_rng(5)
    names = ("image", "text", "image/teacher", "text/teacher")
    return {name: unit(draw, ROWS, EMBED) for name in names} | {"id": np.arange(ROWS, dtype=np.int32)}


def reference(image, text, heat, arrays, relation=1.0, feature=0.0, teacher_temperature=0.07):
    """KL(teacher || student) over rows and columns (Hinton et al. 2015) and 1 - cosine, averaged, in PyTorch."""
    seen, said = torch.tensor(arrays["image/teacher"]), torch.tensor(arrays["text/teacher"])
    target, logits = seen @ said.T / teacher_temperature, image @ text.T / heat

    def kl(p, q):
        return torch.nn.functional.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")

    cosine = torch.nn.functional.cosine_similarity
    apart = (1 - cosine(image, seen)).mean() + (1 - cosine(text, said)).mean()
    return relation * 0.5 * (kl(target, logits) + kl(target.T, logits.T)) + feature * 0.5 * apart


def ours(objective, arrays):
    """The term, and the gradients of its mean for image, text and temperature."""

    def loss(image, text, heat):
        term = objective(Given(image, text, heat), {name: jnp.asarray(x) for name, x in arrays.items()}, None)
        return term.mean(), term

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, term), grads = run(arrays["image"], arrays["text"], jnp.float32(HEAT))
    return term, grads


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_pytorchs(arrays, case):
    term, grads = ours(Distill(**CASES[case]), arrays)
    inputs = [torch.tensor(x, requires_grad=True) for x in (arrays["image"], arrays["text"], HEAT)]
    loss = reference(*inputs, arrays, **CASES[case])
    loss.backward()
    assert term.values.shape == term.weight.shape == (ROWS,)
    np.testing.assert_allclose(term.mean(), loss.item(), rtol=1e-5)

    # torch's cosine also has the gradient along the unit vector, which the head's normalisation takes out
    def tangent(grad, x):
        return grad - (grad * x).sum(1, keepdims=True) * x

    for mine, theirs in zip(grads[:2], inputs[:2], strict=True):
        x = theirs.detach().numpy()
        np.testing.assert_allclose(tangent(np.asarray(mine), x), tangent(theirs.grad.numpy(), x), rtol=1e-4, atol=1e-6)
    heat = 0.0 if inputs[2].grad is None else inputs[2].grad
    np.testing.assert_allclose(grads[2], heat, rtol=1e-4, atol=1e-6)


def test_a_student_like_its_teacher_costs_nothing_whatever_the_width(arrays):
    turn = np.linalg.qr(np.random.default_rng(6).normal(size=(EMBED + 3, EMBED + 3)))[0][:EMBED].astype(np.float32)
    turned = {name: arrays[side] @ turn for name, side in (("image/teacher", "image"), ("text/teacher", "text"))}
    term, grads = ours(Distill(teacher_temperature=HEAT), arrays | turned)
    np.testing.assert_allclose(term.values, 0.0, atol=1e-6)
    for grad in grads:
        np.testing.assert_allclose(grad, 0.0, atol=1e-5)
    best = (arrays["image"] @ arrays["text"].T).argmax(1)
    np.testing.assert_allclose(term.metrics["teacher_accuracy"], (best == np.arange(ROWS)).mean())


def test_the_feature_term_needs_the_teachers_width(arrays):
    wide = {name: np.repeat(arrays[name], 2, 1) for name in ("image/teacher", "text/teacher")}
    with pytest.raises(
        UserError, match="width 12 and config.joint.embed is 6; write feature=0, or config.joint.embed=12"
    ):
        ours(Distill(feature=0.5), arrays | wide)
    assert np.isfinite(ours(Distill(), arrays | wide)[0].mean())


def test_the_config_names_it_its_fields_and_a_start():
    made = build_objectives({"start": {"kind": "distill", "weight": ((0, 1.0), (100, 0.0))}})["start"]
    assert made.reads == ("image", "text", "image/teacher", "text/teacher")
    assert made.parts == {"temperature"} and made.memory(None, FACTS) == {}
    np.testing.assert_allclose([at(made.weight, step) for step in (0, 50, 100, 200)], [1.0, 0.5, 0.0, 0.0])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"relation": -1.0}, "config.objectives.distill.relation is -1.0; write 0 or more"),
        ({"relation": 0.0}, "config.objectives.distill.relation and config.objectives.distill.feature are 0"),
        ({"teacher_temperature": 0.0}, "config.objectives.distill.teacher_temperature is 0.0; write a number above 0"),
    ],
)
def test_impossible_values_are_refused(fields, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        build_objectives({"distill": fields})
