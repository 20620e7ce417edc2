"""The ring against the dense losses: value and gradient on every mesh; memory that does not grow; nothing gathered.

The table of dense, gathered and ring at 2, 8 and 32 devices: `python benchmarks/contrastive_memory.py`.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given import unit
from tiny import tiny_batch, tiny_config, tiny_objectives, tiny_params, tiny_recipe

from xmodal_jax.errors import UserError
from xmodal_jax.objectives import parts
from xmodal_jax.objectives.base import same
from xmodal_jax.objectives.contrastive import dense_softmax
from xmodal_jax.objectives.sigmoid import dense_sigmoid
from xmodal_jax.parallel import ring
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh
from xmodal_jax.parallel.ring import Sigmoid, Softmax, contrast
from xmodal_jax.parallel.rules import shardings
from xmodal_jax.settings import MeshConfig
from xmodal_jax.training.memory import update_memory
from xmodal_jax.training.step import create_state, total_loss
from xmodal_jax.types import NEVER

BENCHMARK = pathlib.Path(__file__).parents[2] / "benchmarks" / "contrastive_memory.py"
ROWS, EMBED, QUEUE, IDS = 16, 6, 24, 10
MESHES = {"no mesh": None, "8x1x1": (8, 1, 1), "2x4x1": (2, 4, 1), "2x2x2": (2, 2, 2)}
DENSE = {Softmax(): dense_softmax, Sigmoid(): dense_sigmoid}
CASES = {  # loss, soft targets, rows of the queue, student keys
    "softmax, soft targets, queue, student keys": (Softmax(), True, QUEUE, True),
    "softmax, soft targets, queue, teacher keys": (Softmax(), True, QUEUE, False),
    "softmax, hard targets, student keys": (Softmax(), False, 0, True),
    "sigmoid, queue, student keys": (Sigmoid(), False, QUEUE, True),
    "sigmoid, teacher keys": (Sigmoid(), False, 0, False),
}
SMALL = {"image": {"kind": "features", "neck_layers": 0}, "text": {"layers": 1}}


def records(case, dtype=np.float32):
    """Draw rows, keys and a queue; ids and captions repeat across devices and in the queue, 5 queue rows are empty."""
    _, soft, size, _ = CASES[case]
    draw = np.random.default_rng(7)

    def names(count):
        return {name: draw.integers(0, IDS, count).astype(np.int32) for name in ("id", "text/key")}

    own, queued = names(ROWS), names(size)
    rows, keys = {"embed": unit(draw, ROWS, EMBED).astype(dtype)} | own, {"embed": unit(draw, ROWS, EMBED)} | own
    if soft:
        rows["teacher"] = unit(draw, ROWS, EMBED).astype(dtype)
    queue = {"embed": unit(draw, size, EMBED)} | queued
    queue["id"][2:7] = NEVER
    keys["embed"] = keys["embed"].astype(dtype)
    return rows, keys, queue if size else None


def value_and_grads(case, run, given):
    """Return row losses, hits and the gradients of a weighted sum for query, keys, teacher, queue and scalars."""
    rows, keys, queue = given
    weight = np.random.default_rng(1).normal(size=ROWS).astype(np.float32)
    second = {"alpha": jnp.float32(0.4)} if CASES[case][0] == Softmax() else {"bias": jnp.float32(-1.5)}
    scalars = {"temperature": jnp.float32(0.1)} | second
    embeds = [part and {n: x for n, x in part.items() if n in ("embed", "teacher")} for part in (rows, keys, queue)]

    def total(embeds, scalars):
        parts = [part and part | embed for part, embed in zip((rows, keys, queue), embeds, strict=True)]
        if not CASES[case][3]:
            parts[1] = jax.lax.stop_gradient(parts[1])
        losses, hits = run(*parts, scalars)
        return (losses * weight).sum(), (losses, hits)

    (_, out), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(embeds, scalars)
    return out, grads


def ring_run(case):
    """The ring loss of a case as a function of (rows, keys, queue, scalars)."""
    loss, _, _, train = CASES[case]
    return lambda *records: contrast(loss, same, *records, train_keys=train)


@pytest.fixture(scope="module")
def expected():
    """The dense losses, hits and gradients of a case, computed once (the queue is state: it has no gradient)."""
    found = {}

    def of(case):
        if case not in found:
            dense = DENSE[CASES[case][0]]

            def run(rows, keys, queue, scalars):
                return dense(rows, keys, jax.lax.stop_gradient(queue), scalars)

            found[case] = value_and_grads(case, run, records(case))
        return found[case]

    return of


def assert_equal_to(found, expected, tolerance=1e-5):
    """Losses and every gradient agree to the tolerance of their own scale, hits exactly."""
    (losses, hits), grads = found
    np.testing.assert_array_equal(hits, expected[0][1])
    assert 0 < np.sum(hits) < ROWS
    pairs = zip(jax.tree.leaves((losses, grads)), jax.tree.leaves((expected[0][0], expected[1])), strict=True)
    for mine, theirs in pairs:
        theirs = np.asarray(theirs, np.float32)
        assert mine.shape == theirs.shape and np.isfinite(theirs).all()
        scale = max(1e-3, np.abs(theirs).max())
        np.testing.assert_allclose(np.asarray(mine, np.float32) / scale, theirs / scale, rtol=0, atol=tolerance)


def under(name):
    """The mesh of a name as the ambient one."""
    return jax.set_mesh(make_mesh(MeshConfig(*MESHES[name])))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_the_dense_ones(expected, case, mesh):
    wanted = expected(case)
    grads = wanted[1][0]
    assert np.abs(grads[0]["embed"]).max() > 0.1 and (np.abs(grads[1]["embed"]).max() > 0.1) == CASES[case][3]
    if MESHES[mesh] is None:
        return assert_equal_to(value_and_grads(case, ring_run(case), records(case)), wanted)
    with under(mesh):
        assert_equal_to(value_and_grads(case, ring_run(case), records(case)), wanted)


@pytest.mark.parametrize("mesh", ["no mesh", "2x2x2"])
def test_columns_in_several_chunks_the_last_not_full(expected, monkeypatch, mesh):
    case = "softmax, soft targets, queue, student keys"
    monkeypatch.setattr(ring, "COLUMNS", 3)
    assert ring.chunks(records(case)[0])["embed"].shape == (6, 3, EMBED)
    if MESHES[mesh] is None:
        return assert_equal_to(value_and_grads(case, ring_run(case), records(case)), expected(case))
    with under(mesh):
        assert_equal_to(value_and_grads(case, ring_run(case), records(case)), expected(case))


def test_a_queue_that_does_not_divide(expected):
    case = "sigmoid, queue, student keys"
    rows, keys, queue = records(case)

    def empty(x):
        return np.delete(x, [2, 3], axis=0)  # two empty rows fewer: the same loss from 22 rows on 8 shards

    filled = {name: empty(x) for name, x in queue.items()}
    with under("8x1x1"):
        found = value_and_grads(case, ring_run(case), (rows, keys, filled))
    wanted = expected(case)
    parts = (*wanted[1][0][:2], {"embed": empty(wanted[1][0][2]["embed"])})
    assert_equal_to(found, (wanted[0], (list(parts), wanted[1][1])))


def test_bfloat16_embeddings_are_contrasted_in_float32():
    case = "softmax, soft targets, queue, student keys"
    given = records(case, jnp.bfloat16)
    with under("8x1x1"):
        found = value_and_grads(case, ring_run(case), given)
    assert found[0][0].dtype == jnp.float32 and found[1][0][0]["embed"].dtype == jnp.bfloat16
    widened = [{n: x.astype(np.float32) if x.ndim == 2 else x for n, x in part.items()} for part in given]
    exact = value_and_grads(case, dense_softmax, widened)
    np.testing.assert_allclose(found[0][0], exact[0][0], rtol=1e-5)
    for mine, theirs in zip(found[1][0][:2], exact[1][0][:2], strict=True):  # rounded once, at the end
        scale = np.abs(theirs["embed"]).max()
        np.testing.assert_allclose(mine["embed"].astype(np.float32) / scale, theirs["embed"] / scale, atol=2**-8)
    np.testing.assert_allclose(found[1][1]["temperature"], exact[1][1]["temperature"], rtol=1e-5)


def whole_step(recipe, params, ring_on, mesh=None):
    """Loss, gradient of every parameter and the queues afterwards of a tiny model with both objectives."""
    section = {"itc": {"queue": 12, "ring": ring_on}, "siglip": {"queue": 16, "keys": "sigmoid", "ring": ring_on}}
    recipe = dataclasses.replace(recipe, objectives=tiny_objectives(section))
    state = create_state(recipe, params, 0)

    def run(state, batch):
        def loss(params):
            return total_loss(recipe, params, state, batch, jax.random.key(1))

        (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return (value, grads), update_memory(state.memory, terms)

    if mesh is None:
        return jax.jit(run)(state, tiny_batch())
    places = shardings(jax.eval_shape(lambda: state), mesh)
    with jax.set_mesh(mesh):
        return jax.jit(run, in_shardings=(places, batch_sharding(mesh)))(state, tiny_batch())


def test_through_a_model_loss_gradients_and_queues_are_those_of_one_device():
    recipe = tiny_recipe(tiny_config(objectives={"itc": {}, "siglip": {}}, **SMALL))
    params = jax.jit(lambda: tiny_params(recipe.model, 0, parts(recipe.objectives)))()
    dense, queues = whole_step(recipe, params, False)
    found, filled = whole_step(recipe, params, True, make_mesh(MeshConfig(2, 2, 2)))
    assert "sigmoid" in dense[1] and np.abs(dense[1]["sigmoid"]["bias"]) > 1e-3
    for mine, theirs in zip(jax.tree.leaves((found, filled)), jax.tree.leaves((dense, queues)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(theirs).max()))


def test_extreme_logits_stay_finite():
    case = "softmax, soft targets, queue, student keys"
    rows, keys, queue = records(case)

    def total(temperature, embed):
        scalars = {"temperature": temperature, "alpha": jnp.float32(0.4)}
        losses, _ = contrast(Softmax(), same, rows | {"embed": embed}, keys, queue, scalars, True)
        return losses.sum()

    loss, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(jnp.float32(1e-4), rows["embed"])
    assert all(np.isfinite(x).all() for x in (loss, *grads))


def test_rows_that_do_not_divide_are_refused():
    rows, keys, _ = records("sigmoid, teacher keys")
    rows, keys = ({name: x[:12] for name, x in part.items()} for part in (rows, keys))
    with under("8x1x1"), pytest.raises(UserError, match="12 rows on 8 row shards .* a batch_size that 8 divides"):
        contrast(Sigmoid(), same, rows, keys, None, {"temperature": jnp.float32(1), "bias": jnp.float32(0)})


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/contrastive_memory.py as a module."""
    sys.path.insert(0, str(BENCHMARK.parent))
    return importlib.import_module(BENCHMARK.stem)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_nothing_is_gathered_and_memory_is_the_same_on_2_and_8_devices(benchmark, loss):
    programs = {n: benchmark.compiled(loss, "ring", benchmark.mesh_of(n), 2048, 512) for n in (2, 8)}
    for program in programs.values():
        text = program.as_text()
        assert "collective-permute" in text and "all-gather" not in text and "all-to-all" not in text
    memory = {n: program.memory_analysis().temp_size_in_bytes for n, program in programs.items()}
    assert abs(memory[8] - memory[2]) < 0.1 * memory[2]
    assert memory[2] < 64 * 2**20


def test_the_benchmark_at_32_devices_keeps_the_memory_of_2(tmp_path):
    sizes = ["--devices", "2", "32", "--rows", "2048", "--embed", "512"]
    command = [sys.executable, str(BENCHMARK), *sizes, "--forms", "ring", "--rounds", "0", "--out", "out.json"]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARK.parents[1])}
    subprocess.run(command, cwd=tmp_path, check=True, env=environment, capture_output=True, timeout=300)
    table = json.loads((tmp_path / "out.json").read_text())["temp_mib_per_device"]
    for loss in ("softmax", "sigmoid"):
        found = table[loss]["ring"]
        assert found["2"] > 16 and abs(found["32"] - found["2"]) < 0.1 * found["2"]


def test_the_forms_of_the_benchmark_are_one_loss_and_dense_grows(benchmark):
    mesh = benchmark.mesh_of(4)
    for loss in ("softmax", "sigmoid"):
        given = benchmark.inputs(loss, mesh, 8, 16)
        found = [benchmark.compiled(loss, form, mesh, 8, 16)(*given) for form in benchmark.FORMS]
        for other in found[1:]:
            for mine, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(found[0]), strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    assert benchmark.temp_mib("softmax", "dense", 8, 256, 32) > 2 * benchmark.temp_mib("softmax", "dense", 2, 256, 32)


@pytest.mark.parametrize("loss, second", [(Softmax(), "alpha"), (Sigmoid(), "bias")])
def test_a_row_whose_logits_are_all_negative_hits_if_its_positive_is_the_nearest(loss, second):
    keys = {"embed": np.array([[-0.6, 0.8], [-1.0, 0.0]], np.float32), "id": np.array([1, 2], np.int32)}
    keys["text/key"] = keys["id"]
    rows = keys | {"embed": np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)}
    scalars = {"temperature": jnp.float32(0.1), second: jnp.float32(-1.0)}
    assert contrast(loss, same, rows, keys, None, scalars)[1].tolist() == [True, False]
