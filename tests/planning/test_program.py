"""The facts of a compiled step: memory as the compiler says it, its refusals, shapes of batches."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from xmodal_jax.assemble import PLANNED_LABELS, assemble, assemble_without_data
from xmodal_jax.config_file import freeze, load
from xmodal_jax.data.card import Card
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.chips import GIB, parse_topology
from xmodal_jax.planning.program import Phases, batch_shapes, device_bytes, memory_of, parse_refusal, topology_devices
from xmodal_jax.training.loop import make_run

# What the TPU compiler said of the five objectives at 16,384 pairs on v5e:16x16, before the rows were pinned.
TEMPORARIES = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (27.95G) exceeds available HBM (15.75G). HLO module: jit__lambda.\nSee https://openxla.org/xla/errors/error_1000"
)
# The other spelling, with a table.
TABLE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.
Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.

Total hbm usage >= 20.76G:
    reserved        258.00M
    program          12.25G
    arguments         8.25G

  Largest program allocations in hbm:

  1. Size: 6.00G
     Operator: op_name="jit(step)/dot_general"
     Shape: f32[16384,98304]{1,0:T(8,128)}
     Unpadded size: 6.00G
     ==========================

  2. Size: 512.0M
     Shape: bf16[64,197,1024]{2,1,0}
     ==========================
"""


def test_a_refusal_that_names_the_temporaries():
    memory = parse_refusal(TEMPORARIES, arguments=2 * GIB)
    assert memory.refused and memory.usable == 15.75 * GIB
    np.testing.assert_allclose([memory.arguments, memory.temporary], [2 * GIB, 27.95 * GIB])
    np.testing.assert_allclose(memory.total, 29.95 * GIB)


def test_a_refusal_with_a_table():
    memory = parse_refusal(TABLE, arguments=1.0)
    np.testing.assert_allclose([memory.arguments, memory.total, memory.usable], np.array([8.25, 20.5, 15.75]) * GIB)
    assert memory.largest == ("6.00G f32[16384,98304] jit(step)/dot_general", "512.0M bf16[64,197,1024]")


@pytest.mark.parametrize(
    "text", ["INTERNAL: hbm", "RESOURCE_EXHAUSTED: out of file handles", "RESOURCE_EXHAUSTED: hbm is full"]
)
def test_other_errors_are_no_refusal(text):
    assert parse_refusal(text) is None


def test_memory_is_the_compilers_own_account():
    step = jax.jit(lambda state, x: (state + x.sum(), jnp.tanh(x @ x).sum()), donate_argnums=0)
    shapes = jax.ShapeDtypeStruct((1000,), "float32"), jax.ShapeDtypeStruct((64, 64), "float32")
    memory = memory_of(step.lower(*shapes).compile())
    assert memory.arguments == 4 * (1000 + 64 * 64) and memory.temporary > 0
    assert memory.results < 100  # the state is given back in place
    assert memory.total == memory.arguments + memory.temporary + memory.results + memory.code


def run_of(config: str, *overrides: str):
    """A config's run on the 8 devices."""
    return make_run(assemble_without_data(freeze(load(config, list(overrides)))))


def fields_of(*overrides: str):
    """Shape and dtype of each field of the tiny quickstart's batches."""
    shapes = batch_shapes(run_of("configs/quickstart.py:tiny", *overrides))
    assert all(leaf.sharding.spec == PartitionSpec(("data", "fsdp")) for leaf in shapes.values())
    return {name: (leaf.shape, str(leaf.dtype)) for name, leaf in shapes.items()}


def test_a_batch_has_the_fields_that_training_gives(shapes_data):
    config = freeze(load("configs/quickstart.py:tiny", [f"data.path={shapes_data}"]))
    dataset = train_dataset(shapes_data, "train", assemble(config).specs, config.data, 0, 16)
    with contextlib.closing(dataset):
        given = {name: (rows.shape, str(rows.dtype)) for name, rows in dataset.batch_at(0).items()}
    assert fields_of(f"data.path={shapes_data}") == given
    unlabelled = {name: own for name, own in given.items() if name != "labels"}
    assert fields_of(f"data.path={shapes_data}", "data.labels=False") == unlabelled
    assert fields_of() == unlabelled, "without a data set nobody knows of labels"
    assert fields_of("objectives.hash_supcon={}") == unlabelled | {"labels": ((16, PLANNED_LABELS), "float32")}


def test_a_batch_has_the_fields_that_the_config_asks_for(tmp_path):
    asked = (
        "data.embeddings=old",
        "encoders.text.cache_tokens=True",
        "optimizer.freeze=^text/tower/",
        "data.fields.image2={'of': 'image', 'required': False}",
    )
    found = fields_of(*asked)
    assert found["image2"] == found["image"] == ((16, 32, 32, 3), "uint8")
    assert found["image2/valid"] == ((16,), "bool") and "image/valid" not in found
    assert found["text/tokens"] == ((16, 12, 32), "float16")
    assert found["image/teacher"] == found["text/teacher"] == ((16, 16), "float32"), (
        "without a data set, as joint.embed"
    )
    assert "image2/teacher" not in found, "a view has no embeddings of its own"
    entry = {
        "media": ["image", "text"],
        "teacher": "t",
        "weights": "0",
        "width": 7,
        "views": ["a"],
        "languages": ["en"],
        "dtype": "float32",
        "files": {},
    }
    splits = {
        "train": {
            "records": 20,
            "captions": 20,
            "groups": 20,
            "files": ["a"],
            "digest": "0a",
            "languages": {},
            "columns": {},
        }
    }
    Card("n", "s", "none", ["en"], ["a"], [], splits, embeddings={"old": entry}).save(tmp_path)
    assert fields_of(*asked, f"data.path={tmp_path}")["text/teacher"] == ((16, 7), "float32")


def test_cached_features_are_read_off_their_names():
    shape = batch_shapes(run_of("configs/quickstart.py:full"))["image"]
    assert (shape.shape, shape.dtype) == ((128, 4 * 4 + 1 + 6 * 6 + 1, 1280), np.float16)
    with pytest.raises(UserError, match="no data set to tell the shape of the features 'mine'"):
        run_of("configs/quickstart.py:full", "data.features=('mine',)")


def test_the_vocabulary_without_a_data_set():
    def sizes(*changed):
        return assemble_without_data(freeze(load("configs/quickstart.py:tiny", list(changed)))).config.encoders["text"]

    assert sizes().vocab_size == 8192  # the largest that "data" builds
    assert sizes("encoders.text.vocab_size=500").vocab_size == 500
    assert sizes("encoders.text.tokenizer=minilm").vocab_size == 30522


def test_a_data_set_that_is_there_tells_its_features(shapes_data):
    assembly = assemble_without_data(freeze(load("configs/quickstart.py:tiny", [f"data.path={shapes_data}"])))
    card, facts = Card.load(shapes_data), assembly.facts
    assert (facts.records, facts.labels) == (card.split("train")["records"], len(card.label_names))
    assert facts.tokens == (0, 0) and facts.steps_per_epoch == facts.records / 16
    with pytest.raises(UserError, match="has no features 'lite0-128'"):
        assemble_without_data(freeze(load("configs/quickstart.py:full", [f"data.path={shapes_data}"])))


def test_bytes_of_a_device_follow_the_sharding(mesh):
    split = jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp"))
    leaf = jax.ShapeDtypeStruct((8, 4), "bfloat16", sharding=split)
    assert device_bytes({"a": leaf, "b": leaf}) == 2 * (2 * 4 * 2)


def test_phases_are_told_as_they_begin_and_end():
    said = []
    phase = Phases(said.append)
    with pytest.raises(ValueError, match="no"), phase("tracing"):
        raise ValueError("no")
    assert said[0] == "tracing ..." and said[1].startswith("tracing: ") and phase.seconds["tracing"] >= 0


def test_local_devices_are_this_machines():
    assert topology_devices(parse_topology("local")) == jax.devices()
    assert dataclasses.is_dataclass(parse_topology("local"))
