"""Sentences in place of tracebacks: paths refused before the work, and scripts that end with code 2."""

import pytest

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
