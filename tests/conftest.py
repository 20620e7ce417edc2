"""Every test sees 8 host devices, or with `--devices 1` one, warnings as errors and exact float32 matmuls.

Compiled programs are kept, for the other worker, for the processes that tests start and for the next run.
"""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiling is most of the test time, and tiny programs do not need to be fast: this takes a third of the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    # eight devices that share a busy core reach a collective late: XLA would end the process after 40 s
    "--xla_cpu_collective_call_terminate_timeout_seconds=900 --xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"))

import jax
import pytest

from xmodal_jax import api

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
api.use_compile_cache = lambda folder="": None  # a command called in this process keeps these settings


# Files that take half a minute or more go first, so that the workers of a parallel run end together.
LONG = (
    *("test_loop", "test_survival", "test_training", "test_depth", "test_step", "test_checkpoint", "test_cli"),
    *("test_resume", "test_family", "test_missing", "test_workdir", "test_hash_meshes", "test_damaged_files"),
    *("test_token_cache", "test_ablate", "test_protocol", "test_forward", "test_two_readings", "test_report"),
    *("test_across_processes", "test_step_time", "test_chunk", "test_whole_mesh", "test_evaluations"),
)


# Files that train and evaluate whole runs and say nothing of devices: `launch/test.sh` runs them on one, where programs
# compile in two thirds of the time, and the others on eight.
ONE_DEVICE = (
    *("test_loop", "test_survival", "test_depth", "test_checkpoint", "test_cli", "test_missing", "test_damaged_files"),
    *("test_resume", "test_forward", "test_two_readings", "test_report", "test_evaluations", "test_docs", "test_api"),
    *("test_search_pipeline", "test_caption_index", "test_query", "test_build", "test_origin", "test_keep_best"),
    *("test_early_stop", "test_init", "test_logging", "test_averaging", "test_configs", "test_tables"),
    *("test_captioning", "test_zeroshot", "test_evaluate", "test_folds", "test_embed", "test_embed_data"),
    *("test_inputs", "test_keys", "test_own_source", "test_plugins", "test_added_language", "test_ablate"),
    *("test_index_origin", "test_by_language", "test_captions_by_language"),
    *("test_rerank_scorers", "test_noise", "test_parallel_text", "test_clip_runs"),
)


def pytest_addoption(parser):
    """Add the number of host devices."""
    parser.addoption("--devices", type=int, help="1: the files of ONE_DEVICE, on one device; 8: the others, on eight")


def pytest_configure(config):
    """Make the host devices."""
    jax.config.update("jax_num_cpu_devices", config.getoption("--devices") or 8)


def pytest_collection_modifyitems(config, items):
    """Put the tests of long files first, and leave out those of another number of devices; the order is kept."""
    if devices := config.getoption("--devices"):
        other = [item for item in items if (item.path.stem in ONE_DEVICE) != (devices == 1)]
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if (item.path.stem in ONE_DEVICE) == (devices == 1)]
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def quiet():
    """As the command line: a write that orbax abandoned may speak up long after the test that made it fail."""
    from xmodal_jax.training.quiet import quiet_orbax

    with quiet_orbax():
        yield


@pytest.fixture
def rng():
    """A seeded NumPy generator."""
    import numpy as np

    return np.random.default_rng(0)


SHAPES = ("circle", "square", "triangle", "bar")
COLOURS = ("red", "green", "blue", "black", "orange", "purple")


def draw_shape(colour: str, shape: str, size: int, outline: bool):
    """A Pillow picture of one coloured shape on white: filled, or its outline (the other drawing of the same thing)."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (size, size), "white")
    pen, box = ImageDraw.Draw(picture), (size // 8, size // 8, size - size // 8, size - size // 8)
    style = {"outline": colour, "width": size // 8} if outline else {"fill": colour}
    if shape == "circle":
        pen.ellipse(box, **style)
    elif shape == "triangle":
        pen.polygon([(size // 2, box[1]), (box[2], box[3]), (box[0], box[3])], **style)
    else:
        top = box[1] if shape == "square" else size * 3 // 8
        pen.rectangle((box[0], top, box[2], size - top), **style)
    return picture


@pytest.fixture(scope="session")
def shapes_files(tmp_path_factory):
    """A JSONL file and its pictures: 24 coloured shapes, two drawings and two captions each, 12 of them held out."""
    import json

    folder = tmp_path_factory.mktemp("shapes")
    rows = []
    for number, (colour, shape) in enumerate((colour, shape) for colour in COLOURS for shape in SHAPES):
        names = {}
        for view in ("filled", "outline"):
            names[view] = f"{colour}-{shape}-{view}.png"
            draw_shape(colour, shape, 40, view == "outline").save(folder / names[view])
        split = "test" if (number + number // 4) % 2 else "train"
        captions = [f"a {colour} {shape}", f"the {shape} is {colour}"]
        rows.append({"views": names, "caption": captions, "id": f"{colour}-{shape}", "labels": [shape], "split": split})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="session")
def shapes_data(shapes_files, tmp_path_factory):
    """The data set folder that `xmodal data prepare jsonl` makes of `shapes_files`."""
    from xmodal_jax.cli import main

    folder = tmp_path_factory.mktemp("data") / "shapes"
    assert main(["data", "prepare", "jsonl", "--path", str(shapes_files), "--out", str(folder)]) == 0
    return folder


QUICK = ("steps=4", "batch_size=8", "log_every=2", "encoders.image.size=16", "eval.rerank=(4,8)")


@pytest.fixture(scope="session")
def train_tiny(shapes_data):
    """The arguments of `xmodal train` for the tiny quickstart on the shapes, as a function (workdir, overrides...)."""
    config = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"

    def arguments(workdir, *overrides: str) -> list[str]:
        changed = [f"--config.{item}" for item in (f"data.path={shapes_data}", *QUICK, *overrides)]
        return ["train", "--config", f"{config}:tiny", "--workdir", str(workdir), *changed]

    return arguments


@pytest.fixture(scope="session")
def tiny_run(shapes_data, train_tiny, tmp_path_factory):
    """(workdir, data folder) of a tiny run of all five objectives, trained and evaluated through the command line."""
    from xmodal_jax.cli import main

    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(train_tiny(workdir)) == 0
    assert main(["eval", "--workdir", str(workdir)]) == 0
    return workdir, shapes_data


@pytest.fixture(scope="session")
def opened_run(tiny_run):
    """The assembly and parameters of `tiny_run`, read from its checkpoint once."""
    from xmodal_jax.workdir import open_run

    return open_run(tiny_run[0])[:2]


@pytest.fixture(scope="session")
def tiny_index(tiny_run, opened_run, tmp_path_factory):
    """The index of the test pictures of `tiny_run`."""
    from xmodal_jax.retrieve.build import build_index

    return build_index(*opened_run, str(tiny_run[0]), str(tmp_path_factory.mktemp("indexes") / "shapes"))[0]
