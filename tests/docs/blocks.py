"""The code blocks of a page: read from Markdown or a notebook, and run as a reader would paste them."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any, NamedTuple

from xmodal_jax.cli import main

ROOT = pathlib.Path(__file__).parents[2]
FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<mark>skip|slow)(?:: (?P<why>[^\n]*?))? -->\n *)?"
    r"```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"# ([\w/]+\.py)\n")  # the first line of a block that is a file
QUOTED = re.compile(r"# xmodal_jax/\S+\.py: \S+\n|--8<-- .*\n")  # a block that the site fills from the source


class Block(NamedTuple):
    """One block of code: the line it begins at, its language, and whether it is run: "", "slow" or "skip"."""

    line: int
    language: str
    text: str
    mark: str = ""
    why: str = ""


def blocks(path: pathlib.Path) -> list[Block]:
    """The blocks of Python and Bash of a page or a notebook, in their order."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return [Block(number, "python", "".join(cell["source"])) for number, cell in enumerate(cells)]
    found = []
    for match in FENCE.finditer(text):
        indent, code = match["indent"], match["text"]
        plain = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
        if match["language"] in ("python", "bash") and not QUOTED.fullmatch(plain):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(line, match["language"], plain, match["mark"] or "", match["why"] or ""))
    return found


def commands(text: str) -> list[list[str]]:
    """The words of each command of a Bash block, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(path: pathlib.Path, slow: bool = False) -> None:
    """Run the blocks of a page in the current folder, in one namespace; `slow`: those that take longer too."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(path):
        if block.mark == "skip" or (block.mark == "slow" and not slow):
            continue
        place = f"{path.relative_to(ROOT)}:{block.line}"
        try:
            run_python(block.text, place, namespace) if block.language == "python" else run_bash(block.text)
        except Exception as error:
            raise AssertionError(f"the block at {place} fails with {type(error).__name__}: {error}") from error


def run_python(text: str, place: str, namespace: dict[str, Any]) -> None:
    """Run a block of Python, or write it where its first line names a file."""
    if name := FILE.match(text):
        pathlib.Path(name[1]).write_text(text, "utf-8")
    else:
        exec(compile(text, place, "exec"), namespace)


def run_bash(text: str) -> None:
    """Run a block of Bash; one of `xmodal` commands alone inside this process, which keeps what was imported."""
    found = commands(text)
    if "$" not in text and all(words[0] == "xmodal" for words in found):
        for words in found:
            code = main(words[1:])
            assert code == 0, f"{shlex.join(words)} ended with code {code}"
        return
    tools = pathlib.Path(".tools")
    tools.mkdir(exist_ok=True)
    (tools / "xmodal").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m xmodal_jax.cli "$@"\n')
    (tools / "xmodal").chmod(0o755)
    path = os.pathsep.join([str(tools.absolute()), os.path.dirname(sys.executable), os.environ["PATH"]])
    place = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=os.environ | {"PATH": path, "PYTHONPATH": place},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
