"""The command line as a user meets it: what it prints, and one sentence and exit code 2 for bad input."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from xmodal_jax.cli import main, split_overrides
from xmodal_jax.commands import section_overrides
from xmodal_jax.errors import UserError

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"


@pytest.fixture
def refused(capsys):
    """A function (arguments, words): the command ends with code 2 and one sentence on stderr that has the words."""

    def check(arguments, *words):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("xmodal: ") and "Traceback" not in said
        for word in words:
            assert word in said
        return said

    return check


# --- what works -----------------------------------------------------------------------------------------------------


def test_eval_keeps_what_it_prints(tiny_run, capsys):
    workdir, _ = tiny_run
    assert (
        main(["eval", "--workdir", str(workdir), "--config.eval.rerank=(2,)", "--config.eval.rerank_score=replace"])
        == 0
    )
    said = capsys.readouterr().out
    assert "ITM re-ranks the best 2" in said and "alone order the shortlist" in said
    kept = json.loads((workdir / "eval-test.json").read_text())
    assert list(kept["mean"]["rerank"]) == ["2"] and kept["step"] == 4
    assert main(["eval", "--workdir", str(workdir)]) == 0  # as the other tests expect it


def test_search_prints_a_table_and_writes_a_sheet(tiny_index, tmp_path, capsys):
    sheet = tmp_path / "hits.png"
    assert main(["search", "a red circle", "--index", str(tiny_index), "-k", "3", "--show", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rank") and [line[0] for line in lines[2:5]] == ["1", "2", "3"]
    assert sheet.stat().st_size > 1000
    assert main(["search", "--image", str(sheet), "--index", str(tiny_index), "-k", "2", "--kind", "codes"]) == 0
    assert "bits" in capsys.readouterr().out


def test_search_hands_its_flags_on(tiny_index, tmp_path, refused, monkeypatch):
    from xmodal_jax.retrieve import query

    asked = []
    monkeypatch.setattr(query, "load_milvus", lambda: None)
    monkeypatch.setattr(query, "answer", lambda where, *_: asked.append(where) or query.SearchTarget(tmp_path).open())
    monkeypatch.setenv("MILVUS_TOKEN", "key")
    index = ["search", "red", "--index", str(tiny_index)]
    refused([*index, "--verify", "--backend", "sharded", "--workdir", "run", "--data", "set"], "is not an index")
    refused([*index, "--backend", "milvus", "--uri", "http://x", "--collection", "mine"], "is not an index")
    refused([*index, "--backend", "milvus", "--uri", "http://x", "--token", "a:b"], "is not an index")
    assert asked == [
        query.SearchTarget(str(tiny_index), "sharded", verify=True, workdir="run", data="set"),
        query.SearchTarget(str(tiny_index), "milvus", "http://x", collection="mine", token="key"),
        query.SearchTarget(str(tiny_index), "milvus", "http://x", token="a:b"),
    ]
    for backend in query.BACKENDS:
        refused([*index, "--backend", backend], "is not an index")


def test_caption_prints_a_line_per_picture_and_scores(tiny_run, shapes_files, capsys):
    pictures = sorted(str(path) for path in shapes_files.parent.glob("red-*.png"))[:2]
    assert main(["caption", *pictures, "--workdir", str(tiny_run[0]), "--beam", "1"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == pictures
    assert main(["caption", "--workdir", str(tiny_run[0]), "--limit", "4", "--show", "2", "--beam", "1"]) == 0
    *rows, scores = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and "(true: a " in rows[0]
    assert scores.startswith("BLEU-4 ") and scores.endswith("over 4 pictures")


def test_index_command_counts_pictures(tiny_run, tmp_path, capsys, refused):
    command = ["index", "--workdir", str(tiny_run[0]), "--out", str(tmp_path / "index"), "--split", "train"]
    assert main(command) == 0
    assert "indexed 24 pictures" in (said := capsys.readouterr().out) and "split 'train'" in said
    refused(command, "already holds an index")
    assert main([*command, "--overwrite"]) == 0


def test_overrides_are_taken_out_of_the_arguments():
    rest, overrides = split_overrides(
        ["train", "--config", "x.py", "--config.a.b=1", "--config.c", "2", "--workdir", "w"]
    )
    assert rest == ["train", "--config", "x.py", "--workdir", "w"] and overrides == ["a.b=1", "c=2"]
    with pytest.raises(UserError, match="'--config.c' has no value"):
        split_overrides(["--config.c"])


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rate=1", ["'learning_rate' is not a field of config.optimizer"]),
        ("optimiser.lr=1", ["did you mean 'optimizer'?"]),
        (
            "objectives.clip={'weight': 1.0}",
            ["config.objectives.clip.kind is 'clip'", "did you mean 'siglip'?"],
        ),
        ("objectives.itc.queue=-1", ["config.objectives.itc.queue is -1", "write 0 or more"]),
        ("objectives.itm.negatives=16", ["config.objectives.itm.negatives is 16", "7 at most"]),
        ("joint.bits=12", ["config.joint.bits is 12", "multiple of 8"]),
        ("batch_size=many", ["config.batch_size is 'many'", "type int"]),
        ("encoders.image.patch=7", ["not a multiple of config.encoders.image.patch=7"]),
        ("encoders.text.vocab_size=5", ["config.encoders.text.vocab_size is 5", "leave it 0"]),
        ("data.split=trian", ["has no split 'trian'"]),
        ("checkpoint.every=0", ["config.checkpoint.every is 0", "above 0"]),
        ("encoders.text.head_dropout=1.0", ["config.encoders.text.head_dropout is 1.0", "0 to 0.99"]),
        ("encoders.text.length=17", ["config.encoders.text.length is 17", "16 positions"]),
        ("teacher.exclude=(", ["config.teacher.exclude '(' is not a regex"]),
        ("objectives.itm.every=3", ["config.objectives.itm.every is 3", "does not divide the batch of 8 rows"]),
    ],
)
def test_impossible_configs_are_refused(override, words, train_tiny, tmp_path, refused):
    refused(train_tiny(tmp_path / "run", override), *words)
    assert not (tmp_path / "run").exists()


def test_labels_that_an_objective_reads_cannot_be_left_out(train_tiny, tmp_path, refused):
    changed = train_tiny(tmp_path / "run", "objectives.hash.by_label=True", "data.labels=False")
    refused(changed, "config.objectives.hash reads 'labels' of the batch", "write config.data.labels=True")
    assert not (tmp_path / "run").exists()


def test_a_memory_of_codes_has_a_row_for_each_record(train_tiny, tmp_path, refused):
    changed = train_tiny(tmp_path / "run", "objectives.hash.kind=hash_contrast", "objectives.hash.table=5")
    refused(changed, "config.objectives.hash.table is 5, and the data set", "has 12 training records; write 12, or 0")


def test_sources_name_the_options_they_need_and_do_not_take(tmp_path, refused):
    for source in ("precomp", "albef", "inaturalist"):
        refused(["data", "prepare", source, "--out", tmp_path / "x"], f"'{source}' needs --path")
    refused(
        ["data", "prepare", "emoji", "--only", "animals", "--out", tmp_path / "x"],
        "'emoji' takes no --only; it takes --size, --held-out",
    )


def test_what_to_evaluate_on_is_looked_for_before_training(train_tiny, tmp_path, refused):
    refused(train_tiny(tmp_path / "run", "eval.every=2", "data.eval_split=dev"), "has no split 'dev'")
    for field, name in (("views", "oil"), ("languages", "fr")):
        command = train_tiny(tmp_path / "run", "eval.every=2", f"eval.{field}=('{name}',)")
        refused(command, f"config.eval.{field}: ", f"has no ['{name}']")
    assert not (tmp_path / "run").exists()


def test_paths_of_the_wrong_kind_are_named(train_tiny, tmp_path, refused, shapes_files):
    config = ["train", "--config", shapes_files, "--workdir", tmp_path / "run"]
    refused(config, "there is no config file")
    (tmp_path / "file").write_text("x")
    refused(
        train_tiny(tmp_path / "file"), f"'{tmp_path / 'file'}' cannot be a work directory (File exists); write another"
    )
    refused(train_tiny("/proc/run"), "'/proc/run' cannot be a work directory (", "; write another folder")
    refused(["data", "prepare", "jsonl", "--path", tmp_path, "--out", tmp_path / "out"], "a folder; give a file")


def test_what_is_missing_is_named(train_tiny, tmp_path, refused):
    refused(train_tiny(tmp_path / "run", f"data.path={tmp_path / 'nothing'}"), "no data set at", "xmodal data prepare")
    config = ["train", "--config", tmp_path / "none.py", "--workdir", tmp_path / "run"]
    refused(config, "there is no config file")
    refused(["train", "--config", f"{CONFIG}:huge", "--workdir", tmp_path / "run"], "'huge' is not a variant", "tiny")
    for command in (["eval"], ["caption"], ["index", "--out", tmp_path / "index"], ["report"]):
        refused([*command, "--workdir", tmp_path], "holds no run")
    refused(["search", "red", "--index", tmp_path], "is not an index")
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_of_another_architecture_is_refused_and_left_alone(tiny_run, train_tiny, tmp_path, refused):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run[0], workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    said = refused(train_tiny(workdir, "encoders.text.hidden=32"), "of another architecture", "another work directory")
    assert "hidden" in said or "text/" in said
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()} == before
    description = json.loads((workdir / "run.json").read_text())
    description["config"]["joint"]["embed"] = 8
    (workdir / "run.json").write_text(json.dumps(description))
    refused(["eval", "--workdir", workdir], "of another architecture")


def test_only_evaluation_and_data_can_be_changed_later(tiny_run, refused):
    refused(["eval", "--workdir", tiny_run[0], "--config.encoders.text.layers=3"], "would change a trained model")
    refused(
        ["caption", "--workdir", tiny_run[0], "--config.eval.rerank=(2,)"],
        "`classify`, `config`, `plan` and `data embed` only",
    )
    refused(["eval", "--workdir", tiny_run[0], "--split", "none"], "has no split 'none'")
    refused(["eval", "--workdir", tiny_run[0], "--config.eval=3"], "names a section")
    assert section_overrides(["data.augment.flip=0.1"], ("data",))["data"]["augment"]["flip"] == 0.1


def test_impossible_queries_are_refused(tiny_index, tmp_path, refused):
    index = ["--index", tiny_index]
    refused(["search", *index], "give one query")
    refused(["search", "red", "--image", "x.png", *index], "give one query")
    refused(["search", "red", "-k", "0", *index], "k 0 takes nothing of the 24 pictures")
    (tmp_path / "notes.txt").write_text("no picture")
    refused(["search", "--image", tmp_path / "notes.txt", *index], "notes.txt' is no picture")


def test_sources_take_their_own_options_only(shapes_files, tmp_path, refused):
    refused(["data", "prepare", "jsonl", "--out", tmp_path / "x"], "'jsonl' needs --path")
    refused(["data", "prepare", "emoji", "--path", "x", "--out", tmp_path / "x"], "'emoji' takes no --path")
    out = tmp_path / "shapes"
    assert main(["data", "prepare", "jsonl", "--path", str(shapes_files), "--out", str(out)]) == 0
    refused(
        ["data", "prepare", "jsonl", "--path", shapes_files, "--licence", "CC0", "--max-size", "8", "--out", out],
        "nothing was",
    )


def test_training_goes_on_from_the_checkpoint(tiny_run, train_tiny, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run[0], workdir)
    assert main(train_tiny(workdir)) == 0
    assert "resuming" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == (tiny_run[0] / "metrics.jsonl").read_text()


# --- terminals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "POSIX"}])
def test_a_terminal_that_is_not_utf8_shows_what_it_can(tmp_path, how):
    """Names that it does not have are escaped; with the POSIX locale, Python's UTF-8 mode reads files of any name."""
    (tmp_path / "Übung 犬.py").write_text("raise ValueError('café 犬')", "utf-8")
    script = tmp_path / "show.py"
    script.write_text("import sys\nfrom xmodal_jax.cli import main\nsys.exit(main())", "utf-8")
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(CONFIG.parents[1])}
    command = [sys.executable, str(script), "train", "--config", str(tmp_path / "Übung 犬.py"), "--workdir", "x"]
    ended = subprocess.run(command, env=os.environ | plain | how, capture_output=True, check=False)
    assert ended.returncode == 2 and b"Traceback" not in ended.stderr, ended.stderr
    said = ended.stderr.decode("latin-1" if how.get("PYTHONIOENCODING") == "latin-1" else "ascii")
    shown = "café" if how.get("PYTHONIOENCODING") == "latin-1" else "caf\\xe9"
    assert said.splitlines()[-1].endswith(f"fails with ValueError: {shown} \\u72ac; correct the file")


def test_a_reader_that_has_read_enough_is_no_error(tmp_path):
    script = tmp_path / "show.py"
    script.write_text("import sys\nfrom xmodal_jax.cli import main\nsys.exit(main())", "utf-8")
    environment = os.environ | {"PYTHONPATH": str(CONFIG.parents[1])}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(script), "train", "--help"]
    ended = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_no_option_takes_is_one_helpful_sentence(tmp_path, refused):
    train = ["train", "--config", f"{CONFIG}:tiny", "--workdir", tmp_path / "run"]
    refused(
        [*train, "--batch_size=8"], "'--batch_size=8' is no option of `xmodal train`", "--config.batch_size=VALUE or"
    )
    refused([*train, "--lr", "3"], "a field of the config is written --config.optimizer.lr=VALUE")
    refused(["search", "red", "circle", "--index", tmp_path], 'put them in quotes, such as "red circle"')
    refused(["report", "--workdir", tmp_path, "--colour"], "'--colour' is not known to `xmodal report`", "--help")
    refused(["eval", "--workdir", tmp_path, "--data", "a", "--config.data.path=b"], "name one thing")
