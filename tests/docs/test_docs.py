"""Every code block of the README and of docs/pages runs as pasted, and what the pages say agrees with the code."""

import json
import pathlib
import re
import shutil

import pytest
from blocks import FILE, ROOT, blocks, commands, run

from xmodal_jax.cli import parser, split_overrides
from xmodal_jax.config_file import load

PAGES = ROOT / "docs" / "pages"
README, TUTORIAL, NOTEBOOK = ROOT / "README.md", PAGES / "tutorials" / "your-own-pairs.md", "quickstart.ipynb"
ALL = [README, *sorted(PAGES.rglob("*.md")), PAGES / "tutorials" / NOTEBOOK]
RUN = [page for page in ALL[:-1] if page != TUTORIAL and any(block.mark == "" for block in blocks(page))]
SLOW = [page for page in ALL if page.name == NOTEBOOK or any(block.mark == "slow" for block in blocks(page))]


def names(pages: list[pathlib.Path]) -> list[str]:
    """The pages as the tests are named."""
    return [page.relative_to(ROOT).as_posix() for page in pages]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A folder after the tutorial on own pairs: pictures, their list, a data set, a run, its indexes."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(TUTORIAL)
    return folder


@pytest.fixture
def folder(request, pairs, tmp_path, monkeypatch):
    """The current folder of a page: as the tutorial leaves it; the README has pictures alone, the notebook nothing."""
    page = request.getfixturevalue("page")
    if page == README:
        shutil.copytree(pairs / "photos", tmp_path / "photos")
        shutil.copy(pairs / "pairs.jsonl", tmp_path)
    elif page.name != NOTEBOOK:
        shutil.copytree(pairs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_tutorial_leaves_what_other_pages_begin_with(pairs):
    there = ("pairs.jsonl", "data/shapes/card.json", "runs/shapes/eval-test.json", "runs/shapes/index", "hits.png")
    assert [name for name in there if not (pairs / name).exists()] == []
    found = json.loads((pairs / "runs/shapes/eval-test.json").read_text())
    assert found["mean"]["itc"]["t2i"]["R@1"] > 40, "three shapes in six colours are learned"


@pytest.mark.parametrize("page", RUN, ids=names(RUN))
def test_blocks_run(page, folder):
    if page == README:  # the config that the commands above it name
        for block in blocks(page):
            if name := FILE.match(block.text):
                (folder / name[1]).write_text(block.text)
    run(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=names(SLOW))
def test_slow_blocks_run(page, folder):
    run(page, slow=True)


@pytest.mark.parametrize("page", ALL, ids=names(ALL))
def test_commands_have_options_and_fields_that_exist(page, tmp_path, monkeypatch):
    """Those of blocks that are not run, too."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if name := FILE.match(block.text):
            pathlib.Path(name[1]).write_text(block.text)
    for block in blocks(page):
        assert block.mark != "skip" or block.why, f"{page}:{block.line}: say why it is skipped"
        found = commands(block.text) if block.language == "bash" else []
        for words in (words for words in found if words[0] == "xmodal"):
            rest, overrides = split_overrides(words[1:])
            source = words[3] if words[1:3] == ["data", "prepare"] else ""
            args = parser(source).parse_args(rest)
            if getattr(args, "config", "") and "$" not in block.text:
                load(args.config, overrides)


def test_the_readme_is_one_page_whose_links_lead_somewhere():
    text = README.read_text("utf-8")
    assert len(text.split()) <= 900
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links and [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


METHODS = [page for page in sorted((PAGES / "methods").glob("*.md")) if "## Measured" in page.read_text("utf-8")]


@pytest.mark.parametrize("page", METHODS, ids=names(METHODS))
def test_measured_numbers_stand_in_the_results(page):
    measured = page.read_text("utf-8").partition("## Measured")[2]
    known = "".join(path.read_text("utf-8") for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")))
    known = set(re.findall(r"\d[\d,]*\.?\d*", known.replace(" .", " 0.")))
    prose = re.sub(r"```.*?```|\]\([^)]*\)|`[^`]*`", "", measured, flags=re.DOTALL)
    numbers = [number for number in re.findall(r"\d[\d,]*\.?\d*", prose) if "." in number.strip(".")]
    assert [number for number in numbers if number.rstrip(".") not in known] == []


def test_the_notebook_is_executed_and_small():
    path = PAGES / "tutorials" / NOTEBOOK
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert path.stat().st_size < 400_000
    assert all(cell["execution_count"] for cell in cells), "execute it: jupyter nbconvert --execute --inplace"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum(output["output_type"] == "execute_result" for output in outputs) >= 5
    assert [output for output in outputs if output["output_type"] == "error"] == []
