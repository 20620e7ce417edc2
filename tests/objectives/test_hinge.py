"""Hinge and complementary losses against PyTorch: values, gradients, matching rows, missing fields, soft margins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, unit
from tiny import ROWS, tiny_batch, tiny_config, tiny_model, tiny_objectives, tiny_params

from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward
from xmodal_jax.objectives.complementary import Complementary, log_complement
from xmodal_jax.objectives.hinge import Hinge
from xmodal_jax.objectives.robust import hinges, negatives_of

EMBED = 6
COMPLEMENTS = {
    "log": lambda p: -torch.log(1 - p),
    "tan": torch.tan,
    "abs": lambda p: p,
    "exp": lambda p: torch.exp(p - 1) - np.exp(-1.0),
    "gce": lambda p: (1 - (1 - p) ** 0.5) / 0.5,
}


@pytest.fixture(scope="module")
def sides():
    """Image and text embeddings of the tiny batch; rows 0 and 1 have one caption."""
    draw = np.random.default_rng(9)
    return unit(draw, ROWS, EMBED), unit(draw, ROWS, EMBED)


def ours(objective, sides, batch, step=0, memory=None):
    """The term, and the gradients of its mean for both sides."""

    def loss(image, text):
        term = objective(Given(image, text, memory=memory or {}, step=step), batch, None)
        return term.mean(), term

    (_, term), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*sides)
    return term, grads


def allowed(batch, i):
    """The rows that are negatives of row i."""
    other = [batch["id"][j] != batch["id"][i] and batch["text/key"][j] != batch["text/key"][i] for j in range(ROWS)]
    return [j for j in range(ROWS) if other[j] and batch.get("text/valid", np.ones(ROWS))[j]]


def hinge(image, text, batch, hardest, margin):
    """Compute the hinge row by row (Faghri et al. 2018, equation 6; the mean is equation 3's)."""
    scores, rows = image @ text.T, []
    for i in range(ROWS):
        sides = [[scores[i, j] for j in allowed(batch, i)], [scores[j, i] for j in allowed(batch, i)]]
        each = [torch.relu(margin[i] + torch.stack(own) - scores[i, i]) for own in sides]
        rows.append(sum(own.max() if hardest else own.mean() for own in each))
    return torch.stack(rows)


@pytest.mark.parametrize(("step", "hardest"), [(0, False), (5, True)])
def test_hinge_is_the_papers(sides, step, hardest):
    batch = tiny_batch()
    term, grads = ours(Hinge(margin=0.3, mean_steps=5), sides, batch, step)
    inputs = [torch.tensor(x, requires_grad=True) for x in sides]
    rows = hinge(*inputs, batch, hardest, [0.3] * ROWS)
    rows.mean().backward()
    np.testing.assert_allclose(term.values, rows.detach(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-6)


def test_rows_without_a_field_count_nowhere(sides):
    batch = tiny_batch() | {"text/valid": np.arange(ROWS) != 3}
    term, _ = ours(Hinge(), sides, batch)
    rows = hinge(*map(torch.tensor, sides), batch, True, [0.2] * ROWS).numpy()
    assert term.weight[3] == 0
    kept = np.arange(ROWS) != 3
    np.testing.assert_allclose(np.asarray(term.values)[kept], rows[kept], rtol=1e-5)


@pytest.mark.parametrize("softens", ["margin", "weight", "both"])
def test_pairs_that_are_not_trusted_have_smaller_margins_and_weights(sides, softens):
    batch = tiny_batch() | {"pair": np.arange(ROWS, dtype=np.int32)[::-1].copy()}
    trust = np.linspace(0, 1, ROWS).astype(np.float32)
    memory = {"refurbish": {"clean": jnp.asarray(trust)[:, None]}}
    term, grads = ours(Hinge(robust="refurbish", softens=softens), sides, batch, memory=memory)
    mean = hinge(*map(torch.tensor, sides), batch, False, [0.2] * ROWS).numpy()
    left = np.clip(0.2 - mean / 2, 0, 0.2)
    predicted = np.clip(left / max(np.sort(left)[-1:].mean(), 1e-6), 0, 1)
    target = trust[::-1] + (1 - trust[::-1]) * predicted
    margin = np.full(ROWS, 0.2) if softens == "weight" else 0.2 * (10**target - 1) / 9
    weight = torch.ones(ROWS) if softens == "margin" else torch.tensor(target.astype(np.float32))
    inputs = [torch.tensor(x, requires_grad=True) for x in sides]
    rows = hinge(*inputs, batch, True, margin.astype(np.float32).tolist())
    ((rows * weight).sum() / weight.sum()).backward()
    np.testing.assert_allclose(term.values, rows.detach(), rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def scored():
    """A tiny model with the scorer of SGR, its parameters and a batch."""
    config = tiny_config(scorer={"kind": "sgr", "width": 8}, objectives={"hinge": {"scorer": True}})
    model = tiny_model(config)
    draw = np.random.default_rng(1)
    params = jax.jit(lambda: tiny_params(model, used=frozenset({"scorer"})))()
    params = jax.tree.map(lambda x: x + jnp.asarray(draw.normal(0, 0.2, x.shape), x.dtype), params)
    return model, params, jax.tree.map(jnp.asarray, tiny_batch())


def test_the_hinge_of_a_scorer_has_the_gradient_of_that_over_all_pairs(scored):
    model, params, batch = scored

    def ours(params):
        return Hinge(scorer=True, block=4)(Forward(model, params, batch, None), batch, jax.random.key(0)).mean()

    def whole(params):
        fwd = Forward(model, params, batch, None)
        scores = fwd.scores(fwd.encode("image"), fwd.encode("text"), ROWS)
        both = hinges(scores, negatives_of(batch, ("image", "text")), 0.2)
        return (both[0].max(1) + both[1].max(1)).mean()

    one, other = (jax.jit(jax.value_and_grad(loss))(params) for loss in (ours, whole))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), one[1], other[1])


@pytest.mark.parametrize("block", [0, 2])
def test_the_hardest_of_few_candidates_is_scored_alone(scored, block):
    model, params, batch = scored
    objective = Hinge(scorer=True, candidates=2, block=block)
    term = jax.jit(lambda: objective(Forward(model, params, batch, None), batch, jax.random.key(0)))()
    fwd = Forward(model, params, batch, None)
    one, two = fwd.encode("image"), fwd.encode("text")
    scores, cosine = (np.asarray(x) for x in (fwd.scores(one, two, ROWS), one.unit @ two.unit.T))
    near = np.zeros((ROWS, ROWS), bool)
    for i in range(ROWS):
        others = allowed(tiny_batch(), i)
        near[i, sorted(others, key=lambda j: -cosine[i, j])[:2]] = True
        near[sorted(others, key=lambda j: -cosine[j, i])[:2], i] = True
    own = np.diagonal(scores)
    sides = [np.where(near, scores, -9).max(1), np.where(near, scores, -9).max(0)]
    hinge = sum(np.maximum(0, 0.2 + x - own) for x in sides)
    assert (sides[0] < np.where(negatives_of(batch, ("image", "text")), scores, -9).max(1)).any()
    np.testing.assert_allclose(term.values, hinge, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(term.metrics["accuracy"], (own > np.maximum(*sides)).mean())


def test_all_others_as_candidates_are_the_whole_batch(scored):
    model, params, batch = scored

    def loss(params, candidates):
        objective = Hinge(scorer=True, candidates=candidates)
        return objective(Forward(model, params, batch, None), batch, jax.random.key(0)).mean()

    few, whole = (jax.jit(jax.value_and_grad(lambda p, n=n: loss(p, n)))(params) for n in (ROWS + 5, 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), few, whole)


def test_negatives_of_a_scorer_may_be_drawn_by_their_cosines(scored):
    model, params, batch = scored
    objective, draws = Hinge(scorer=True, draw=0.3, mean_steps=10), 400

    @jax.jit
    def values(key):
        return objective(Forward(model, params, batch, None), batch, key).values

    fwd = Forward(model, params, batch, None)
    one, two = fwd.encode("image"), fwd.encode("text")
    scores, cosine = np.asarray(fwd.scores(one, two, ROWS)), np.asarray(one.unit @ two.unit.T)
    found = np.stack([values(jax.random.key(number)) for number in range(draws)])
    for i in range(ROWS):
        others, mean, spread = allowed(tiny_batch(), i), 0.0, 0.0
        for rows, near in ((scores[i, others], cosine[i, others]), (scores[others, i], cosine[others, i])):
            chance = np.exp(near / 0.3) / np.exp(near / 0.3).sum()
            hinge = np.maximum(0.0, 0.2 + rows - scores[i, i])
            mean, spread = mean + (chance * hinge).sum(), spread + hinge.std() ** 2
        np.testing.assert_allclose(found[:, i].mean(), mean, atol=5 * (spread / draws) ** 0.5 + 1e-4)


def test_early_negatives_of_a_scorer_are_drawn_among_all_that_do_not_match(scored):
    model, params, batch = scored
    objective = Hinge(scorer=True, mean_steps=1000)

    @jax.jit
    def values(key):
        return objective(Forward(model, params, batch, None, step=3), batch, key).values

    fwd = Forward(model, params, batch, None)
    scores = fwd.scores(fwd.encode("image"), fwd.encode("text"), ROWS)
    one, two = (np.asarray(x) for x in hinges(scores, negatives_of(batch, ("image", "text")), 0.2))
    found = np.stack([values(jax.random.key(number)) for number in range(300)])
    for i in range(ROWS):
        sums = one[i, allowed(tiny_batch(), i)][:, None] + two[i, allowed(tiny_batch(), i)][None, :]
        assert np.abs(found[:, i, None] - sums.ravel()).min(1).max() < 1e-5
        np.testing.assert_allclose(found[:, i].mean(), sums.mean(), atol=4 * sums.std() / 300**0.5 + 1e-4)


@pytest.mark.parametrize("loss", COMPLEMENTS)
def test_complementary_is_the_papers(sides, loss):
    batch = tiny_batch()
    term, grads = ours(Complementary(loss=loss, temperature=0.2), sides, batch)
    inputs = [torch.tensor(x, requires_grad=True) for x in sides]
    scores = inputs[0] @ inputs[1].T / 0.2
    chances = [torch.softmax(own, 1) for own in (scores, scores.T)]
    rows = torch.stack(
        [sum(0.5 * COMPLEMENTS[loss](p[i, allowed(batch, i)]).sum() for p in chances) for i in range(ROWS)]
    )
    rows.mean().backward()
    np.testing.assert_allclose(term.values, rows.detach(), rtol=1e-4)
    for mine, theirs in zip(grads, inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-3, atol=1e-6)


def test_a_complementary_loss_of_certain_mistakes_is_finite():
    one = np.eye(ROWS, EMBED, dtype=np.float32)
    term, grads = ours(Complementary(temperature=1e-3), (one, np.roll(one, 1, axis=0)), tiny_batch())
    assert all(np.isfinite(x).all() for x in (term.values, *grads))


@pytest.mark.parametrize("gap", [0.5, 0.7, 1.5])
def test_the_worst_negatives_have_the_steepest_gradient(gap):
    """d/dl of -log(1 - p) is p, however near p is to 1: of -log(1 - p) = logsumexp(all) - logsumexp(others)."""
    logits = jnp.array([[gap / 0.05, 0.0, -1.0]])
    slope = jax.grad(lambda x: log_complement(x)[0, 0])(logits)
    np.testing.assert_allclose(slope[0, 0], jax.nn.softmax(logits)[0, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"margin": 0.0}, "margin is 0.0; write a number above 0"),
        ({"scorer": True}, "kind 'fusion', which the objective 'itm' trains"),
        ({"candidates": 4}, "scorer is False, and draw, candidates and block are of a scorer's negatives"),
        ({"robust": "nobody"}, "no entry of kind 'refurbish' with that name"),
    ],
)
def test_impossible_values_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        section = {"hinge": fields}
        tiny_objectives(section, tiny_config(objectives=section, data={"unit": "pair"}))
