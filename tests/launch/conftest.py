"""The command line as a program, and running several things at once with their words and exit codes."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """`program(name, text)`: an executable Bash script outside the repository, as a path."""
    folder = tmp_path_factory.mktemp("bin")

    def write(name: str, text: str) -> pathlib.Path:
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture(scope="session")
def xmodal(program):
    """The command line of this checkout as one program."""
    return program("xmodal", f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m xmodal_jax.cli "$@"')


@pytest.fixture(scope="session")
def environment(xmodal):
    """The environment of a launcher: `xmodal` and the programs beside it come first."""
    return os.environ | {"XMODAL": str(xmodal), "PATH": f"{xmodal.parent}:{os.environ['PATH']}"}


@pytest.fixture
def launch(environment):
    """`launch(arguments..., **variables)`: (exit code, everything said) of a program."""

    def run(*arguments: object, **variables: object) -> tuple[int, str]:
        extra = {name: str(value) for name, value in variables.items()}
        done = subprocess.run(
            [str(argument) for argument in arguments],
            env=environment | extra,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        return done.returncode, done.stdout

    return run
