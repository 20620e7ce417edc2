"""An objective of a user's own file: named in a config by its place, found again from any folder."""

import pytest

from xmodal_jax.config_file import freeze, load
from xmodal_jax.errors import UserError
from xmodal_jax.objectives import build_objectives
from xmodal_jax.objectives.distill import Distill

MINE = """
from dataclasses import dataclass
from xmodal_jax.objectives.base import Objective, Term

@dataclass(frozen=True)
class Mine(Objective):
    power: int = 2

    def __call__(self, fwd, batch, key):
        raise NotImplementedError

@dataclass(frozen=True)
class Foreign:
    weight: float = 1.0

class Loose:
    pass
"""
CONFIG = """
from xmodal_jax.settings import defaults

def get_config():
    config = defaults()
    config.objectives = {"mine": {"kind": "losses/mine.py:Mine", "power": 3}}
    return config
"""


@pytest.fixture
def own(tmp_path):
    """A config file and the file of the objective that it names."""
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "mine.py").write_text(MINE, "utf-8")
    (tmp_path / "config.py").write_text(CONFIG, "utf-8")
    return tmp_path


def test_a_class_of_a_file_is_taken_from_the_folder_of_the_config(own, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    config = freeze(load(str(own / "config.py")))
    assert config.objectives["mine"]["kind"] == f"{own}/losses/mine.py:Mine"
    first, again = (build_objectives(config.objectives, 8)["mine"] for _ in range(2))
    assert type(first).__name__ == "Mine" and (first.power, first.weight) == (3, 1.0)
    assert type(first) is type(again), "one class, whoever asks"


def test_a_class_of_a_package_is_imported():
    (found,) = build_objectives({"d": {"kind": "xmodal_jax.objectives.distill:Distill"}}).values()
    assert type(found) is Distill


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("losses/none.py:Mine", "none.py' cannot be imported .FileNotFoundError"),
        ("losses/mine.py:Yours", "has no class 'Yours'; write FILE.py:CLASS"),
        ("losses/mine.py:Loose", "which is none; derive the class from xmodal_jax.objectives.base.Objective"),
        ("losses/mine.py:Foreign", "which is none; derive the class from xmodal_jax.objectives.base.Objective"),
        ("no.such.package:Mine", "'no.such.package' cannot be imported .ModuleNotFoundError"),
        ("losses/mine.py:Mine", "'powers' is not a field of config.objectives.mine; did you mean 'power'"),
    ],
)
def test_a_class_that_cannot_be_had_is_one_sentence(own, kind, words):
    fields = f"{{'kind': '{kind}', 'powers': 1}}" if "powers" in words else f"{{'kind': '{kind}'}}"
    config = load(str(own / "config.py"), [f"objectives.mine={fields}"])
    with pytest.raises(UserError, match=words):
        build_objectives(freeze(config).objectives)


def test_an_override_names_a_file_of_the_current_folder(own, monkeypatch):
    """A config that comes with the package has no file beside it."""
    monkeypatch.chdir(own)
    fields = "{'kind': 'losses/mine.py:Mine'}"
    config = load("quickstart:tiny", [f"objectives.mine={fields}"])
    assert config.objectives.mine.kind == f"{own / 'losses/mine.py'}:Mine"
