"""IMS and LMIM against TCL's formulas in PyTorch: value and gradient, positives, masks and the queue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from given import Given, ring_of, unit
from tiny import ROWS, tiny_batch, tiny_config, tiny_model, tiny_objectives, tiny_params

from xmodal_jax.errors import UserError
from xmodal_jax.forward import Forward, teacher_forward
from xmodal_jax.models.heads import l2_normalize
from xmodal_jax.objectives import OBJECTIVES, build_objectives, parts
from xmodal_jax.objectives.alignment import IMS, LMIM, global_to_local
from xmodal_jax.objectives.base import same
from xmodal_jax.objectives.contrastive import ITC, KEYS

EMBED, QUEUE, FILLED, PLACES = 6, 10, 7, 3
SIDES = ("image", "text")


@pytest.fixture(scope="module")
def arrays():
    """Embeddings of student and teacher, a queue of which 7 rows are filled, local features and which are real."""
    draw, batch = np.random.default_rng(3), tiny_batch()
    ring = ring_of(draw, batch, QUEUE, FILLED, EMBED)
    mask = np.arange(PLACES)[None, :] < draw.integers(1, PLACES + 1, (ROWS, 1))
    names = ("image", "text", "teacher_image", "teacher_text", "second")
    return {name: unit(draw, ROWS, EMBED) for name in names} | {
        "batch": batch,
        "ring": ring,
        "local": unit(draw, ROWS, PLACES, EMBED),
        "mask": mask,
    }


def intra(query, keys, arrays, ring, temperature):
    """TCL's intra-modal contrast: cross-entropy of one query each, targets spread over all positives."""
    batch, queue = arrays["batch"], arrays["ring"]
    count = FILLED if ring is not None else 0
    columns = torch.cat([torch.tensor(keys), torch.tensor(ring[:count])]) if count else torch.tensor(keys)
    match = np.zeros((ROWS, len(columns)), bool)
    for name in ("id", "text/key"):
        match |= batch[name][:, None] == np.concatenate([batch[name], queue[name][:count]])[None, :]
    targets = torch.tensor(match / match.sum(1, keepdims=True)).float()
    return -(torch.log_softmax(query @ columns.T / temperature, dim=1) * targets).sum(1)


@pytest.mark.parametrize(
    "queued, second, sides", [(True, True, SIDES), (False, False, SIDES), (True, False, ("text",))]
)
def test_ims_is_tcls_intra_modal_contrast(arrays, queued, second, sides):
    batch, teacher = arrays["batch"], Given(arrays["teacher_image"], arrays["teacher_text"])
    teacher.embeds["image2"] = arrays["second"]
    config = tiny_config(data={"fields": {"image2": {"of": "image"}}} if second else {})
    memory = {KEYS: arrays["ring"]} if queued else {}

    @jax.jit
    def loss(image, text, temperature):
        term = IMS(sides=sides)(Given(image, text, temperature, teacher, memory, config=config), batch, None)
        assert term.enqueue == {} and term.write == {} and set(term.metrics) == set(sides)
        return term.mean(), term.values

    inputs = (arrays["image"], arrays["text"], np.float32(0.1))
    (_, values), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)
    theirs = [torch.tensor(x, requires_grad=True) for x in inputs]
    keys = {"image": arrays["second"] if second else arrays["teacher_image"], "text": arrays["teacher_text"]}
    rows = [
        intra(
            dict(zip(SIDES, theirs, strict=False))[side],
            keys[side],
            arrays,
            arrays["ring"][side] if queued else None,
            theirs[2],
        )
        for side in sides
    ]
    expected = sum(rows) / len(rows)
    expected.mean().backward()
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=2e-5)
    for mine, other in zip(grads, theirs, strict=True):
        np.testing.assert_allclose(mine, 0 if other.grad is None else other.grad.numpy(), rtol=1e-4, atol=1e-6)


def tcl_local(embed, local, mask, negative, temperature):
    """TCL's global-to-local loss, one softmax for each (row, place) with the positive at index 0."""
    losses = []
    for i in range(ROWS):
        others = torch.cat([local[j][mask[j]] for j in range(ROWS) if negative[i, j]])
        rows = []
        for positive in local[i][mask[i]]:
            logits = torch.cat([positive[None], others]) @ embed[i] / temperature
            rows.append(-torch.log_softmax(logits, dim=0)[0])
        losses.append(torch.stack(rows).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("masked", [True, False])
def test_lmim_is_tcls_loss_of_each_place(arrays, masked):
    batch = arrays["batch"]
    mask = arrays["mask"] if masked else np.ones((ROWS, PLACES), bool)
    negative = ~np.asarray(same(batch, batch))
    assert not negative[0, 1] and negative.sum() == ROWS * (ROWS - 1) - 2  # rows 0 and 1 share their caption

    @jax.jit
    def loss(embed, local, temperature):
        rows = global_to_local(embed, local, jnp.asarray(mask) if masked else None, jnp.asarray(negative), temperature)
        return rows.mean(), rows

    inputs = (arrays["image"], arrays["local"], np.float32(0.1))
    (_, values), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*inputs)
    theirs = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected = tcl_local(*theirs[:2], torch.tensor(mask), negative, theirs[2])
    expected.mean().backward()
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=2e-5)
    for mine, other in zip(grads, theirs, strict=True):
        np.testing.assert_allclose(mine, other.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_without_negatives_or_places_the_loss_is_zero_and_finite(arrays):
    none = jnp.zeros((ROWS, ROWS), bool)

    def run(embed, mask):
        return global_to_local(embed, arrays["local"], mask, none, jnp.float32(0.1)).sum()

    for mask in (None, jnp.zeros((ROWS, PLACES), bool)):
        value, grad = jax.value_and_grad(run)(jnp.asarray(arrays["image"]), mask)
        assert value == 0 and (np.asarray(grad) == 0).all()


@pytest.fixture(scope="module")
def model():
    """The tiny model with aggregators beside the linear paths, and parameters of a student and of another teacher."""
    config = tiny_config(image={"pool": "mean+average", "groups": (4, 1)}, text={"pool": "mean+max"})
    made = tiny_model(config)
    student = jax.jit(lambda: tiny_params(made, used=frozenset({"locals", "temperature"})))()
    draw = np.random.default_rng(5)
    teacher = jax.tree.map(lambda x: x + 0.05 * draw.normal(size=x.shape).astype(np.float32), student)
    return made, (student, teacher)


def test_local_features_are_the_teachers_tokens_in_places(model):
    made, params = model
    batch = {name: jnp.asarray(value) for name, value in tiny_batch().items()}

    @jax.jit
    def run(student, teacher):
        fwd = Forward(made, student, batch, None, teacher=teacher_forward(made, teacher, batch))
        term = LMIM()(fwd, batch, None)
        raw = {"image": batch["image"].astype(jnp.float32), "text": fwd.teacher.encode("text").tokens}
        local = [fwd.teacher.call("locals", side, tokens) for side, tokens in raw.items()]
        return term.values, local, fwd.encode("image").embed, fwd.encode("text").embed, fwd.temperature()

    values, (image, text), *embeds, heat = jax.tree.map(np.asarray, run(*params))
    assert image.shape == (ROWS, 4, 8) and text.shape == (ROWS, 7, 8)  # no summary, no [CLS]
    np.testing.assert_allclose(np.linalg.norm(image, axis=-1), 1, rtol=1e-4)
    raw = np.asarray(batch["image"], np.float32)[:, :4]
    raw = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-6)
    project = jax.tree.map(np.asarray, params[1]["image"]["head"]["token"]["project"])
    wanted = raw @ project["kernel"] + project["bias"]
    np.testing.assert_allclose(image, l2_normalize(wanted), atol=1e-4)
    negative, mask = ~np.asarray(same(batch, batch)), np.asarray(batch["text"])[:, 1:] != 0
    every = np.ones(image.shape[:2], bool)
    expected = [
        tcl_local(torch.tensor(whole), torch.tensor(part), torch.tensor(kept), negative, torch.tensor(heat)).numpy()
        for whole, part, kept in zip(embeds, (image, text), (every, mask), strict=True)
    ]
    np.testing.assert_allclose(values, (expected[0] + expected[1]) / 2, rtol=1e-4)


def test_gradients_reach_local_features_of_the_student_only(model):
    made, params = model
    batch = {name: jnp.asarray(value) for name, value in tiny_batch().items()}

    def loss(student, teacher, objective):
        fwd = Forward(made, student, batch, None, teacher=teacher_forward(made, teacher, batch))
        return objective(fwd, batch, None).mean()

    for objective in (LMIM(), LMIM(momentum=False)):
        grads = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)(*params, objective)
        assert (np.abs(grads[0]["image"]["head"]["linear"]["kernel"]) > 0).any()
        assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads[1]))


def test_local_layers_are_made_for_lmim_only_and_refused_where_nothing_trains_them():
    made = tiny_model(tiny_config())

    def head(section):
        return set(jax.eval_shape(lambda: tiny_params(made, used=parts(build_objectives(section))))["image"]["head"])

    assert head({"ims": {}}) == {"linear"}
    assert head({"lmim": {}}) == {"linear", "token"}
    sentence = r"config.encoders.image.pool='mean' nothing trains them; write .*lmim.momentum=False"
    with pytest.raises(UserError, match=sentence):
        tiny_objectives({"lmim": {}}, made.config)
    assert not tiny_objectives({"lmim": {"momentum": False}}, made.config)["lmim"].momentum


def test_tcls_sum_is_three_weights_of_a_third(arrays):
    """(i2t + t2i + i2i + t2t + lmi_image + lmi_text) / 6, as a config."""
    third = {"weight": 1 / 3}
    built = build_objectives({"itc": third | {"queue": 0, "alpha": 0.0}, "ims": third, "lmim": third})
    heads = {"locals": lambda side, tokens: jnp.asarray(arrays["local"])}

    class Local(Given):
        def raw(self, field, encoder=""):
            return self.encode("image").tokens

        def rowwise(self, run, key, *inputs):
            return run(key, *inputs)

    batch = arrays["batch"] | {"text": np.ones((ROWS, PLACES + 1), np.int32)}  # [CLS] and a word for each place
    teacher = Local(arrays["teacher_image"], arrays["teacher_text"], heads=heads, batch=batch)
    fwd = Local(arrays["image"], arrays["text"], 0.1, teacher, batch=batch)
    total = sum(item.weight * item(fwd, batch, None).mean() for item in built.values())
    own = {side: torch.tensor(arrays[side]) for side in SIDES}
    six = [
        intra(own[query], arrays[f"teacher_{key}"], arrays, None, 0.1)
        for query, key in (("image", "text"), ("text", "image"), ("image", "image"), ("text", "text"))
    ]
    negative, mask = ~np.asarray(same(arrays["batch"], arrays["batch"])), torch.ones(ROWS, PLACES, dtype=torch.bool)
    six += [tcl_local(own[side], torch.tensor(arrays["local"]), mask, negative, 0.1) for side in SIDES]
    np.testing.assert_allclose(total, sum(row.mean() for row in six) / 6, rtol=2e-5)
    assert isinstance(built["itc"], ITC) and {OBJECTIVES["ims"], OBJECTIVES["lmim"]} == {IMS, LMIM}


@pytest.mark.parametrize("sides", [(), ("text", "text")])
@pytest.mark.parametrize("kind", ["ims", "lmim"])
def test_impossible_sides_are_refused(kind, sides):
    with pytest.raises(UserError, match=rf"{kind}.sides is .*; write each field once, such as \('image'"):
        build_objectives({kind: {"sides": sides}})


@pytest.mark.parametrize("kind", ["ims", "lmim"])
def test_a_side_that_is_no_field_is_refused(kind):
    with pytest.raises(UserError, match=f"{kind} reads 'picture' .* add config.data.fields.picture, such as"):
        tiny_objectives({kind: {"sides": ("picture",)}})
