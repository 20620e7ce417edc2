"""Sentences in place of tracebacks: paths refused before the work, and scripts that end with code 2."""

import ast
import pathlib
import re

import pytest

import xmodal_jax
from xmodal_jax.errors import UserError, output_file, run_script


def test_an_output_file_is_refused_before_the_work_where_it_cannot_be_written(tmp_path):
    assert output_file(str(tmp_path / "new.json")) == tmp_path / "new.json"
    with pytest.raises(UserError, match="there is no folder '.*nowhere'; make it, or write another path"):
        output_file(str(tmp_path / "nowhere" / "new.json"))
    with pytest.raises(UserError, match="is a folder; write the path of a file"):
        output_file(str(tmp_path))


def refused() -> None:
    raise UserError("--k is 0; write 1 or more")


@pytest.mark.parametrize(
    ("main", "said"),
    [(refused, "--k is 0"), (lambda: open("/nowhere/file"), "No such file or directory: '/nowhere/file'")],
)
def test_a_script_ends_with_a_sentence_and_code_2(main, said, capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and said in error and "Traceback" not in error


# --- for a program and a shell alike ----------------------------------------------------------------------------------

PACKAGE = pathlib.Path(xmodal_jax.__file__).parent
COMMANDS = re.compile(  # files that only a command reaches, whose errors name its options; and copies for a shell
    r"cli|commands|planning/(command|advice|sheet)|parallel/processes|report/.*|convert/(text_tower|huggingface)|"
    r"eval/zeroshot|data/(noise|noise_words|concepts|features)"
)
SINGLE = (
    "write --config.",
    "'--config.",
    "leave out --show",
)  # of the functions `override` and `contact_sheet`, for commands alone
FLAG = re.compile(r"(?<![\w-])--[a-z]|\s--$")


def named_flags(path: pathlib.Path) -> list[str]:
    """The texts of a file that tell an option of the shell outside a whole command, docstrings left out."""
    tree = ast.parse(path.read_text("utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in told]
    texts = [re.sub(r"`[^`]*(`|$)|pip install .*", "", text) for text in texts if isinstance(text, str)]
    return [text for text in texts if FLAG.search(text) and not any(part in text for part in SINGLE)]


def test_what_python_may_raise_names_no_option_of_the_shell():
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}
    found = {name: named_flags(path) for name, path in files.items()}
    assert {name: texts for name, texts in found.items() if texts and not COMMANDS.fullmatch(name)} == {}
    assert found["commands"] and found["parallel/processes"], "what is allowed is there"
