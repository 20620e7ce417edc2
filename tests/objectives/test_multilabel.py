"""Multi-label classification against PyTorch: value, gradient, rows that do not count; and its classifiers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, unit
from tiny import FACTS, ROWS, tiny_batch, tiny_config, tiny_params

from xmodal_jax.assemble import classes_of
from xmodal_jax.errors import UserError
from xmodal_jax.models.crossmodal import CrossModal, classified
from xmodal_jax.objectives import build_objectives, fit_objectives, parts
from xmodal_jax.objectives.multilabel import MultiLabel, binary_cross_entropy, f1
from xmodal_jax.parallel.rules import RULES, place
from xmodal_jax.training.optimizer import make_optimizer
from xmodal_jax.training.step import Recipe, create_state, total_loss, train_step

EMBED, COUNT, STEPS = 6, 5, 40
BOTH = ("image", "text")


@pytest.fixture(scope="module")
def arrays():
    """Embeddings, classifiers, and a batch whose rows 2 and 5 have no labels and no captions."""
    draw = np.random.default_rng(5)
    target = (draw.random((ROWS, COUNT)) < 0.3).astype(np.float32)
    target[[2, 5]], target[[0, 1, 3, 4, 6, 7], 0] = 0.0, 1.0
    valid = np.ones(ROWS, bool)
    valid[[2, 5]] = False
    rows = {"labels": target, "concepts": target, "concepts/valid": valid, "image/valid": np.arange(ROWS) != 3}
    return {
        "image": unit(draw, ROWS, EMBED),
        "text": unit(draw, ROWS, EMBED),
        "weights": {name: draw.normal(size=(EMBED, COUNT)).astype(np.float32) for name in ("image", "text", "")},
        "batch": tiny_batch() | rows,
    }


def reference(arrays, image, text, weights, balance, shared):
    """PyTorch's loss of each row, the mean over the sides that it has; rows without a target left out by the caller."""
    target, factor = torch.tensor(arrays["batch"]["labels"]), torch.full((COUNT,), balance)
    sides = {"image": image, "text": text}
    losses = {
        side: torch.nn.functional.binary_cross_entropy_with_logits(
            rows @ weights["" if shared else side], target, pos_weight=factor, reduction="none"
        ).mean(1)
        for side, rows in sides.items()
    }
    seen = torch.tensor(arrays["batch"]["image/valid"])
    return torch.where(seen, (losses["image"] + losses["text"]) / 2, losses["text"])


@pytest.mark.parametrize(
    ("target", "shared", "balance"), [("labels", False, 1.0), ("concepts", True, 4.0), ("concepts", False, 0.5)]
)
def test_the_loss_and_its_gradient_are_pytorchs(arrays, target, shared, balance):
    batch, objective = arrays["batch"], MultiLabel(target=target, shared=shared, balance=balance)

    @jax.jit
    def loss(image, text, weights):
        def classify(embed, told, encoder):
            assert told == target
            return embed @ weights[encoder]

        term = objective(Given(image, text, heads={"classify": classify}), batch, None)
        assert set(term.metrics) == {"image", "text", "image_f1", "text_f1"}
        return term.mean(), term

    inputs = (arrays["image"], arrays["text"], arrays["weights"])
    (value, term), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)
    theirs = [torch.tensor(x, requires_grad=True) for x in inputs[:2]]
    heads = {name: torch.tensor(x, requires_grad=True) for name, x in arrays["weights"].items()}
    rows = reference(arrays, *theirs, heads, balance, shared)
    counted = np.delete(np.arange(ROWS), [2, 5])
    assert term.weight.tolist() == [float(row in counted) for row in range(ROWS)]
    expected = rows[counted].mean()
    expected.backward()
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=2e-5)
    np.testing.assert_allclose(term.values[counted], rows[counted].detach().numpy(), rtol=2e-5)
    mine = [*grads[:2], *(grads[2][name] for name in heads)]
    for own, other in zip(mine, [*theirs, *heads.values()], strict=True):
        np.testing.assert_allclose(own, 0 if other.grad is None else other.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_f1_counts_rows_with_a_weight_alone(arrays):
    draw = np.random.default_rng(0)
    logits, target = draw.normal(size=(ROWS, COUNT)).astype(np.float32), arrays["batch"]["labels"]
    weight = np.array([1, 0, 0, 1, 1, 0, 1, 1], np.float32)
    told, there = (logits > 0)[weight > 0], target[weight > 0] > 0
    precision, recall = (told & there).sum() / told.sum(), (told & there).sum() / there.sum()
    np.testing.assert_allclose(f1(logits, target, weight), 2 * precision * recall / (precision + recall), rtol=1e-6)
    assert float(f1(-jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.ones(2))) == 0.0


def test_large_logits_stay_finite():
    logits, target = jnp.array([[1e4, -1e4]]), jnp.array([[0.0, 1.0]])
    value, grad = jax.value_and_grad(lambda x: binary_cross_entropy(x, target)[0])(logits)
    assert float(value) == 1e4 and grad.tolist() == [[0.5, -0.5]]


def recipe_of(section, **data):
    """A recipe whose data has five labels and five concepts."""
    config = tiny_config(objectives={"multilabel": section}, data={"concepts": "mined"} | data)
    facts = dataclasses.replace(FACTS, labels=COUNT, concepts=COUNT)
    objectives = fit_objectives(build_objectives(config.objectives, ROWS), config, facts)
    model = CrossModal(config, (), classes_of(parts(objectives), facts))
    abstract = jax.eval_shape(lambda: tiny_params(model, 0, parts(objectives)))
    return Recipe(config, model, objectives, make_optimizer(config.optimizer, abstract, STEPS), facts=facts)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"target": "labels"}, {"labels_image", "labels_text"}),
        ({"sides": ("text", "text2"), "target": "concepts"}, {"concepts_text"}),
        ({"shared": True, "target": "concepts"}, {"concepts"}),
    ],
)
def test_the_model_has_the_classifiers_that_are_asked_for(section, expected):
    recipe = recipe_of(section, fields={"text2": {"of": "text"}})
    params = tiny_params(recipe.model, 0, parts(recipe.objectives))
    assert set(params["classifier"]) == expected
    assert {leaf.shape for leaf in jax.tree.leaves(params["classifier"])} == {(8, COUNT), (COUNT,)}
    batch = {name: jnp.asarray(rows) for name, rows in full_batch().items()}
    state = create_state(recipe, params, 0)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda own: total_loss(recipe, own, state, batch, jax.random.key(0))[0])(params)

    grads = gradient(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads["classifier"]))


def full_batch():
    draw = np.random.default_rng(1)
    target = (draw.random((ROWS, COUNT)) < 0.4).astype(np.float32)
    batch = tiny_batch() | {"labels": target, "concepts": target, "concepts/valid": np.ones(ROWS, bool)}
    return batch | {"text2": batch["text"], "text2/key": batch["text/key"]}


def test_no_classifier_without_the_objective():
    assert "classifier" not in tiny_params(CrossModal(tiny_config()), 0)
    assert classified(frozenset({"fusion", "classifier:labels:", "classifier:concepts:text"})) == [
        ("concepts", "text"),
        ("labels", ""),
    ]
    assert classes_of(frozenset({"fusion"}), FACTS) == ()


def test_labels_are_learned():
    recipe = recipe_of({"target": "labels", "balance": 2.0})
    state = create_state(recipe, tiny_params(recipe.model, 0, parts(recipe.objectives)), 0)
    batch = {name: jnp.asarray(rows) for name, rows in full_batch().items() if not name.startswith("text2")}
    step, seen = jax.jit(lambda state, batch: train_step(recipe, state, batch)), []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        seen.append({name.split("/")[-1]: float(value) for name, value in metrics.items() if "multilabel" in name})
    assert seen[-1]["image"] < 0.8 * seen[0]["image"] and seen[-1]["text"] < 0.8 * seen[0]["text"]
    assert seen[-1]["image_f1"] > seen[0]["image_f1"]


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"target": "words"}, "multilabel.target is 'words'; write one of concepts, labels"),
        ({"balance": 0.0}, "multilabel.balance is 0.0; write a number above 0"),
        ({"sides": ()}, r"multilabel.sides is \(\); write each field once"),
    ],
)
def test_impossible_values_are_refused(section, complaint):
    with pytest.raises(UserError, match=complaint):
        build_objectives({"multilabel": section})


def test_a_target_that_the_data_has_not_is_refused():
    built, none = build_objectives({"multilabel": {"target": "labels"}}), dataclasses.replace(FACTS, labels=0)
    with pytest.raises(UserError, match="reads 'labels' of the batch, which is not there; .*target='concepts'"):
        fit_objectives(built, tiny_config(), none)
    with pytest.raises(UserError, match="reads 'concepts'.*write config.data.concepts=NAME"):
        fit_objectives(build_objectives({"multilabel": {}}), tiny_config(), FACTS)


def test_a_classifier_meets_the_head_as_it_is_split():
    """Its width E is over "fsdp", whatever an encoder is called: "out" would match another rule."""
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    for name in ("classifier/labels_image/kernel", "teacher/classifier/labels/kernel", "classifier/labels_out/kernel"):
        assert place(name, (8, COUNT), mesh, RULES).asked == ("fsdp", None)
