"""The examples in docstrings run, and docstrings of functions start with a verb."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "xmodal_jax").rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(name):
    failed, ran = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert ran > 0 and failed == 0


def test_what_a_user_calls_first_has_an_example():
    assert {"xmodal_jax.api", "xmodal_jax.eval.retrieval", "xmodal_jax.data.source"} <= set(EXAMPLES)
