"""Files are replaced in one step, or the old one stays; every text file is opened with its encoding named."""

import ast
import pathlib

import pytest
from host import small_files

from xmodal_jax.atomic import write_file
from xmodal_jax.errors import UserError

PACKAGE = pathlib.Path(__file__).parents[1] / "xmodal_jax"


def test_a_file_is_replaced_by_text_bytes_or_what_writes_them(tmp_path):
    path = tmp_path / "file"
    for content, written in (("ä犬", "ä犬".encode()), (b"\x00", b"\x00"), (lambda file: file.write(b"made"), b"made")):
        write_file(path, content)
        assert path.read_bytes() == written
    write_file(path, b"path \xff".decode("utf-8", "surrogateescape"))
    assert path.read_bytes() == b"path \xff"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("the old one", "utf-8")
    with small_files(1000):
        with pytest.raises(UserError, match=r"report.html' could not be written \(File too large\); the one that was"):
            write_file(path, "x" * 2000)
        with pytest.raises(UserError, match=r"new' could not be written \(File too large\)$"):
            write_file(tmp_path / "new", "x" * 2000)
    assert path.read_text("utf-8") == "the old one" and list(tmp_path.iterdir()) == [path]


def test_what_ends_the_writing_is_not_hidden_and_leaves_nothing(tmp_path):
    def stopped(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", stopped)
    with pytest.raises(UserError, match="file/below' could not be written"):
        write_file(tmp_path / "file", b"1")
        write_file(tmp_path / "file" / "below", b"1")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def opened_without_encoding(tree: ast.AST) -> list[int]:
    """The lines of calls that read or write text in whatever encoding the locale has."""
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = {keyword.arg for keyword in node.keywords}
        given = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if called in ("read_text", "write_text"):
            needed = 1 if called == "write_text" else 0
            bad = "encoding" not in words and len(node.args) <= needed
        else:
            text_mode = called == "open" and any(
                mode in ("r", "w", "a", "x", "r+", "a+", "w+", "rt", "wt") for mode in given
            )
            own = (
                isinstance(node.func, ast.Name) or isinstance(node.func, ast.Attribute) and not given and not node.args
            )
            builtin = isinstance(node.func, ast.Name) and called == "open" and len(node.args) == 1
            bad = (text_mode or (builtin and own)) and "encoding" not in words
        if bad:
            found.append(node.lineno)
    return found


def test_the_check_of_encodings_finds_what_it_should():
    wrong = "p.read_text()\np.write_text(t)\nopen(p)\np.open('w')\nopen(p, 'a')"
    right = (
        "p.read_text('utf-8')\np.write_text(t, encoding='utf-8')\n"
        "open(p, 'rb')\np.open('w', encoding='utf-8')\nImage.open(p)"
    )
    assert opened_without_encoding(ast.parse(wrong)) == [1, 2, 3, 4, 5]
    assert opened_without_encoding(ast.parse(right)) == []


@pytest.mark.parametrize("folder", ["xmodal_jax", "benchmarks", "configs"])
def test_every_text_file_is_opened_in_a_named_encoding(folder):
    files = sorted((PACKAGE.parent / folder).rglob("*.py"))
    found = {
        path.name: lines for path in files if (lines := opened_without_encoding(ast.parse(path.read_text("utf-8"))))
    }
    assert files and found == {}
