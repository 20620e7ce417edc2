"""The site: generated pages agree with the code, and mkdocs builds it without a warning."""

import dataclasses
import importlib
import subprocess
import sys

import pytest
from blocks import ROOT

from xmodal_jax.cli import parser
from xmodal_jax.eval.evaluations import EVALUATIONS
from xmodal_jax.models import ENCODERS
from xmodal_jax.models.scorer import SCORERS
from xmodal_jax.objectives import OBJECTIVES
from xmodal_jax.settings import Config

TABLES = {"encoders": ENCODERS, "scorer": SCORERS, "objectives": OBJECTIVES, "evals": EVALUATIONS}


@pytest.fixture
def made(monkeypatch):
    """Imports one of the modules that write pages."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module


def sections(text: str) -> dict[str, str]:
    """{heading: what stands below it} of a page, up to the next heading of any level."""
    parts = [part.partition("\n") for part in text.replace("\n### ", "\n## ").split("\n## ")[1:]]
    return {heading: body for heading, _, body in parts}


def shown(body: str) -> set[str]:
    """The fields in the table of a section."""
    return {line.split("`")[1] for line in body.splitlines() if line.startswith("| `")}


def test_every_field_of_a_config_has_a_row(made):
    found = sections(made("config_page").page(ROOT / "xmodal_jax"))
    for one in dataclasses.fields(Config):
        default = getattr(Config(), one.name)
        if dataclasses.is_dataclass(default):
            assert shown(found[f"`config.{one.name}`"]) == {own.name for own in dataclasses.fields(default)}
        else:
            assert one.name in shown(found["`config`"])
    for table, kinds in TABLES.items():
        for kind, cls in kinds.items():
            own = shown(found[f"`{kind}` {{ #{table}-{kind} }}"])
            shared = {
                name for heading, body in found.items() if heading.lower().startswith(table) for name in shown(body)
            }
            assert {one.name for one in dataclasses.fields(cls)} <= own | shared | {
                "kind",
                "weight",
                "name",
                "training",
            }


def test_defaults_and_limits_are_those_of_the_code(made):
    found = sections(made("config_page").page(ROOT / "xmodal_jax"))
    assert "| `alpha` | `float` | `0.4` |" in found["`itc` { #objectives-itc }"]
    assert "(0 to 1)" in found["`itc` { #objectives-itc }"]
    assert "one of `'none'`, `'dots'`, `'full'`, `'offload'`" in found["`vit` { #encoders-vit }"]


def test_every_command_and_option_has_a_row(made):
    module = made("cli_page")
    text, seen = module.page(), []

    def walk(one):
        for own in module.children(one).values():
            seen.append(own.prog)
            flags = [flag for action in own._actions for flag in action.option_strings if flag not in ("-h", "--help")]
            assert f"`{own.prog}`" in text and all(f"`{flag}`" in text for flag in flags)
            walk(own)

    walk(parser(""))
    assert "xmodal train" in seen and any(name.startswith("xmodal data prepare ") for name in seen)


def test_it_builds_without_a_warning(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "docs" / "mkdocs.yml")]
    done = subprocess.run([*build, "--site-dir", str(tmp_path / "site")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    page = (tmp_path / "site" / "concepts" / "step.html").read_text("utf-8")
    assert "def" in page and "Run the pass" in page, "the source's own lines are on the page"
    assert (tmp_path / "site" / "results" / "fusion.html").is_file()
