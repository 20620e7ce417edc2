"""Answers as classification against PyTorch: value, gradient, rows that do not count; and the head of the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, unit
from tiny import FACTS, ROWS, tiny_batch, tiny_config, tiny_params, tiny_recipe

from xmodal_jax.assemble import classes_of
from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward
from xmodal_jax.models.heads import AnswerHead
from xmodal_jax.objectives import build_objectives, fit_objectives, parts
from xmodal_jax.objectives.answer import VQA
from xmodal_jax.training.step import create_state, total_loss, train_step

EMBED, COUNT, STEPS = 6, 5, 200
ALONE = {"answer": {}}


@pytest.fixture(scope="module")
def arrays():
    """Embeddings, a linear head over both side by side, and scores of labels; row 2 has none, row 3 no picture."""
    draw = np.random.default_rng(5)
    target = draw.choice(np.float32([0, 0, 0, 0.3, 0.6, 0.9, 1]), (ROWS, COUNT))
    target[2], target[[0, 1, 3, 4, 5, 6, 7], 1] = 0.0, 0.9
    head = {"kernel": draw.normal(size=(2 * EMBED, COUNT)), "bias": draw.normal(size=COUNT)}
    return {
        "image": unit(draw, ROWS, EMBED),
        "text": unit(draw, ROWS, EMBED),
        "head": {name: own.astype(np.float32) for name, own in head.items()},
        "batch": tiny_batch() | {"labels": target, "image/valid": np.arange(ROWS) != 3},
    }


def test_the_loss_and_its_gradient_are_pytorchs(arrays):
    """As METER and ViLT write it: the mean binary cross-entropy with soft targets, times the number of answers."""
    batch = arrays["batch"]

    @jax.jit
    def loss(image, text, head):
        def logits(fused, key):
            return fused[:, 0] @ head["kernel"] + head["bias"][None]

        given = Given(image, text, heads={"answer_logits": logits})
        term = VQA()(given, batch, jax.random.key(0))
        return term.mean(), term

    inputs = (arrays["image"], arrays["text"], arrays["head"])
    (value, term), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)
    image, text = (torch.tensor(x, requires_grad=True) for x in inputs[:2])
    head = {name: torch.tensor(x, requires_grad=True) for name, x in arrays["head"].items()}
    kept = np.delete(np.arange(ROWS), [2, 3])
    logits = (torch.cat([image, text], 1) @ head["kernel"] + head["bias"])[kept]
    target = torch.tensor(batch["labels"][kept])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target) * COUNT
    expected.backward()
    assert term.weight.tolist() == [float(row in kept) for row in range(ROWS)]
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=2e-5)
    best = batch["labels"][kept][np.arange(len(kept)), logits.argmax(1).numpy()]
    np.testing.assert_allclose(term.metrics["accuracy"], best.mean(), rtol=1e-6)
    mine, theirs = [*grads[:2], *grads[2].values()], [image, text, *(head[name] for name in grads[2])]
    for own, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_the_head_is_vilts(arrays):
    """Linear, LayerNorm, GELU, Linear on the first token, with PyTorch's layers."""
    fused = np.random.default_rng(1).normal(size=(ROWS, 3, EMBED)).astype(np.float32)
    head = AnswerHead(COUNT)
    params = head.init(jax.random.key(0), fused)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(2).normal(size=x.shape).astype(np.float32), params)
    up, down = torch.nn.Linear(EMBED, 2 * EMBED), torch.nn.Linear(2 * EMBED, COUNT)
    norm = torch.nn.LayerNorm(2 * EMBED, eps=1e-12)
    with torch.no_grad():
        for layer, own in ((up, params["up"]), (down, params["down"])):
            layer.weight.copy_(torch.tensor(np.array(own["kernel"]).T))
            layer.bias.copy_(torch.tensor(np.array(own["bias"])))
        norm.weight.copy_(torch.tensor(np.array(params["norm"]["scale"])))
        norm.bias.copy_(torch.tensor(np.array(params["norm"]["bias"])))
        gelu = torch.nn.functional.gelu(norm(up(torch.tensor(fused[:, 0]))), approximate="tanh")
        expected = down(gelu).numpy()
    np.testing.assert_allclose(head.apply({"params": params}, fused), expected, rtol=2e-5, atol=2e-6)
    other = np.concatenate([fused[:, :1], fused[:, 1:] + 1], axis=1)
    np.testing.assert_array_equal(head.apply({"params": params}, other), head.apply({"params": params}, fused))


def recipe_of(**sections):
    """A recipe of answers alone; FACTS has three labels."""
    return tiny_recipe(tiny_config(objectives=ALONE, **sections))


def scored_batch(seed=1):
    """A batch whose best answer follows from picture and question together: the parity of two marks of theirs."""
    draw, batch = np.random.default_rng(seed), tiny_batch(seed)
    seen, asked = draw.integers(0, 2, ROWS), draw.integers(5, 7, ROWS)
    batch["image"] += (4 * seen[:, None, None]).astype(np.float16)
    batch["text"][:, 1] = asked
    labels = np.zeros((ROWS, 3), np.float32)
    labels[np.arange(ROWS), (seen + asked) % 2], labels[:, 2] = 1.0, 0.3
    return {name: jnp.asarray(rows) for name, rows in (batch | {"labels": labels}).items()}


def test_the_model_has_a_head_for_answers_if_it_is_asked_for():
    recipe = recipe_of()
    used = parts(recipe.objectives)
    assert used == {"fusion", "answer"} and classes_of(used, FACTS) == (("labels", 3),)
    params = tiny_params(recipe.model, 0, used)
    assert params["answer"]["down"]["kernel"].shape == (32, 3) and "match" not in params
    state, batch = create_state(recipe, params, 0), scored_batch()
    loss = jax.jit(jax.grad(lambda own: total_loss(recipe, own, state, batch, jax.random.key(0))[0]))
    grads = loss(params)
    moved = {name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(own)) for name, own in grads.items()}
    assert all(moved[name] > 0 for name in ("answer", "fusion", "image", "text"))
    assert "answer" not in tiny_params(tiny_recipe(tiny_config()).model)


def test_the_picture_and_the_question_are_both_read():
    recipe = recipe_of()
    params, batch = tiny_params(recipe.model, 0, parts(recipe.objectives)), scored_batch()

    @jax.jit
    def logits(batch):
        fwd = Forward(recipe.model, params, batch, None)
        return fwd.call("answer_logits", fwd.fuse(fwd.encode("image"), fwd.encode("text")).tokens)

    plain = logits(batch)
    assert plain.shape == (ROWS, 3) and plain.dtype == jnp.float32
    for field in ("image", "text"):
        other = np.asarray(logits(batch | {field: batch[field][::-1]}))
        assert np.abs(other - plain).max() > 1e-4, field


def test_what_needs_both_is_learned():
    recipe = recipe_of(steps=STEPS)
    state = create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0)
    step, seen = jax.jit(lambda state, batch: train_step(recipe, state, batch)), []
    for number in range(STEPS):
        state, metrics = step(state, scored_batch(number % 8))
        seen.append((float(metrics["loss/answer"]), float(metrics["answer/accuracy"])))
    first, last = np.mean(seen[:8], 0), np.mean(seen[-8:], 0)
    assert last[0] < 0.8 * first[0] and last[1] > max(first[1], 0.9)


def test_data_without_labels_are_refused():
    none = dataclasses.replace(FACTS, labels=0)
    with pytest.raises(UserError, match="answer reads 'labels' of the batch, .*no labels: prepare one that has"):
        fit_objectives(build_objectives(ALONE), tiny_config(), none)
