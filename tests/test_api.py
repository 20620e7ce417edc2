"""The front door from Python: a run of a config by name, what it encodes, scores, captions, evaluates and indexes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from xmodal_jax import api
from xmodal_jax.encode.embed import encode_rows
from xmodal_jax.encode.inputs import BLOCK, picture_bytes
from xmodal_jax.errors import UserError


@pytest.fixture(scope="module")
def run(tiny_run):
    return api.load(tiny_run[0])


@pytest.fixture(scope="module")
def files(shapes_files):
    return sorted(shapes_files.parent.glob("*.png"))


def test_a_config_by_name_is_that_of_its_file_with_the_changes():
    found = api.config("quickstart", "tiny", {"optimizer.lr": 0.5, "objectives.itc.queue": 8}, batch_size=24)
    assert isinstance(found, ConfigDict) and found.name == "quickstart-tiny"
    assert (found.optimizer.lr, found.objectives.itc.queue, found.batch_size) == (0.5, 8, 24)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), "there is no config file 'nothing'; write a .py file with get_config, or one of .*quickstart"),
        (("quickstart", "huge"), "'huge' is not a variant"),
        (("quickstart", "tiny", {"optimizer.rate": 1}), "'rate' is not a field of config.optimizer"),
    ],
)
def test_a_config_that_is_not_there_is_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        api.config(*arguments)


def test_pictures_are_the_same_as_paths_as_pillow_pictures_and_as_arrays(run, files):
    from PIL import Image

    files = files[:5]
    opened = [Image.open(path) for path in files]
    rows = run.encode_images(files)
    assert rows.dtype == np.float32 and rows.shape == (5, run.config.joint.embed)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(run.encode_images(opened), rows)
    np.testing.assert_array_equal(run.encode_images([np.asarray(picture.convert("RGB")) for picture in opened]), rows)
    np.testing.assert_array_equal(run.encode("image", [str(files[0]), opened[1], *files[2:]]), rows)


def test_modes_of_pictures_in_memory_are_those_of_files(tmp_path):
    from PIL import Image

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F"):
        picture = Image.new("RGB", (20, 20), "red").convert("L" if mode == "F" else "RGB").convert(mode)
        assert picture_bytes(picture).startswith(b"\x89PNG"), mode
    for shape in ((20, 20), (20, 20, 3), (20, 20, 4)):
        assert picture_bytes(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=r"a picture is an array float32 \[4, 4, 3\]; write uint8"):
        picture_bytes(np.zeros((4, 4, 3), np.float32))


def test_texts_are_found_by_their_pictures_as_evaluation_has_it(run):
    """Equal to the embeddings that evaluation makes of the same captions."""
    from xmodal_jax.eval.evaluate import Evaluator

    evaluator = Evaluator(run.assembly, run.params)
    side = evaluator.open("test", evaluator.views("test")[0]).right
    wanted = evaluator.embedder.side(side, 16).embed
    np.testing.assert_allclose(run.encode_texts(side.words), wanted, atol=1e-6)
    np.testing.assert_allclose(run.similarity(wanted, wanted).diagonal(), 1, atol=1e-5)


@pytest.mark.parametrize("bad", [["photos/000.png"], np.ones(4), np.ones((2, 3)), [["a", "b"]]])
def test_what_is_no_rows_of_embeddings_is_refused(run, bad):
    with pytest.raises(UserError, match="similarity takes two arrays of unit rows .*; call encode_images and"):
        run.similarity(bad, np.ones((1, 4)))


def test_any_number_of_inputs_is_one_compiled_program(run, files):
    run.encode_texts(["a red circle"])
    before = encode_rows._cache_size()
    whole = run.encode_texts(["a red circle"] * (2 * BLOCK + 1), progress=True)
    assert len(whole) == 2 * BLOCK + 1 and np.ptp(whole, axis=0).max() < 1e-6
    assert encode_rows._cache_size() == before


def test_codes_are_the_packed_signs(run, files):
    codes = run.codes("image", files[:3])
    assert codes.dtype == np.uint8 and codes.shape == (3, run.config.joint.bits // 8)
    values = run._encoded("image", files[:3], False).codes
    np.testing.assert_array_equal(np.unpackbits(codes, axis=1) == 1, values > 0)


def test_scores_are_those_of_the_matching_head(run, files):
    """The model applied to each pair by itself, without any cache."""
    files, texts = files[:3], ["a red circle", "the square is blue"]
    found = run.score(files, texts)
    sides = [run._encoded("image", files, False, True), run._encoded("text", texts, False, True)]
    params = {"params": run.params}
    for i in range(3):
        for j in range(2):
            one, two = (
                (side.tokens[k : k + 1], side.embed[k : k + 1], None if side.mask is None else side.mask[k : k + 1])
                for side, k in zip(sides, (i, j), strict=True)
            )
            want = run.assembly.model.apply(params, one, two, method="score")
            np.testing.assert_allclose(found[i, j], np.asarray(want)[0], atol=1e-4)
    np.testing.assert_allclose(run.score(texts, files, ("text", "image")), found.T, atol=1e-5)


def test_captions_are_those_of_the_command(run, files, tiny_run, capsys):
    from xmodal_jax.cli import main

    found = run.caption(files[:2], beam=2)
    assert main(["caption", "--workdir", str(tiny_run[0]), *map(str, files[:2]), "--beam", "2"]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == found


def test_tables_print_and_are_kept(run, tiny_run, capsys):
    result = run.evaluate()
    assert "i2t" in str(result) and result["step"] == run.step
    kept = json.loads((tiny_run[0] / "eval-test.json").read_text())
    assert kept["mean"] == json.loads(json.dumps(result))["mean"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: run.encode_images([]), "there is nothing to encode"),
        (lambda run: run.encode_images("a.png"), r"are one str; write a list of inputs, such as \['a.jpg'\]"),
        (
            lambda run: run.encode_texts("a red square"),
            r"are one str; write a list of inputs, such as \['a red square'\]",
        ),
        (lambda run: run.encode_images(x for x in "ab"), "are one generator; write a list of inputs"),
        (lambda run: api.train(3, "nowhere"), r"the config is int; write xmodal.config\('quickstart'\), or its name"),
        (lambda run: api.prepare("josnl", "nowhere"), "there is no source 'josnl'; did you mean 'jsonl'"),
        (
            lambda run: api.prepare("jsonl", "nowhere", heldout=2),
            "'heldout' is not a field of the source 'jsonl'; did you",
        ),
        (lambda run: run.encode_images(["nowhere.png"]), "'nowhere.png' cannot be opened"),
        (lambda run: run.encode_images([3]), "takes paths of files, Pillow pictures and arrays, and one input is int"),
        (lambda run: run.encode_images({"a.png"}), "the inputs are one set; write a list of inputs"),
        (lambda run: run.encode_images(b"a.png"), "the inputs are one bytes; write a list of inputs"),
        (
            lambda run: run.encode_images(np.zeros((8, 8, 3), np.uint8)),
            r"one array \[8, 8, 3\]; write a list of pict",
        ),
        (
            lambda run: run.encode_images(np.zeros((8, 8), np.uint8)),
            r"one array \[8, 8\]; write a list of pictures",
        ),
        (lambda run: run.encode_texts([b"a"]), "takes strings, and one input is bytes"),
        (lambda run: run.encode_texts(["ein Kreis"], language="de"), "the run knows captions in en, not in 'de'"),
        (lambda run: run.encode("sound", ["a.wav"]), "the run has no field 'sound'; write one of image"),
        (lambda run: api.prepare("jsonl", "nowhere", path="x", held_out=0.2), "held_out is 0.2; write a whole number"),
        (lambda run: api.prepare("jsonl", "nowhere", path="x", held_out="2"), "held_out is '2'; write a whole number"),
        (lambda run: api.prepare("jsonl", "nowhere"), "the source 'jsonl' needs path; write path=..."),
        (lambda run: run.caption(["a.png"], beam=0), "beam is 0"),
    ],
)
def test_bad_input_is_one_sentence(run, call, words):
    with pytest.raises(UserError, match=words):
        call(run)


def test_embeddings_to_a_file(run, tiny_run, files, tmp_path, capsys):
    from xmodal_jax.cli import main

    lines = tmp_path / "captions.txt"
    lines.write_text("a red circle\nthe bar is green\n")
    given = ["encode", "--workdir", str(tiny_run[0])]
    assert main([*given, "--out", str(tmp_path / "x.npy"), *map(str, files[:2])]) == 0
    assert main([*given, "--out", str(tmp_path / "x"), *map(str, files[:2])]) == 0  # the file that was named
    assert (tmp_path / "x").read_bytes() == (tmp_path / "x.npy").read_bytes()
    assert main([*given, "--out", str(tmp_path / "y.npy"), "--field", "text", "--lines", str(lines)]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), run.encode_images(files[:2]))
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), run.encode_texts(lines.read_text().splitlines()))
    assert main([*given, "--out", str(tmp_path / "z.npy")]) == 2
    assert "there is nothing to encode" in capsys.readouterr().err


def test_the_command_prints_every_field_with_its_meaning(capsys):
    from xmodal_jax.cli import main

    assert main(["config", "quickstart:tiny", "--config.batch_size=24"]) == 0
    out = capsys.readouterr().out
    assert "\nconfig.batch_size = 24  # default: 128\n" in out
    assert '# Weights to use: "teacher"' in out and "config.objectives.itc.alpha = 0.4" in out


def test_the_front_door_is_lazy_and_prints_nothing():
    """Importing the package imports no JAX: that is for the first name that is used."""
    code = (
        "import sys, xmodal_jax as x; assert 'jax' not in sys.modules; assert 'load' in dir(x); "
        "x.load; assert 'jax' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        import xmodal_jax

        xmodal_jax.nothing  # noqa: B018


def test_a_set_with_nothing_held_out_trains_and_is_not_evaluated(shapes_files, tmp_path, monkeypatch):
    rows = [json.loads(line) | {"split": "train"} for line in shapes_files.read_text().splitlines()]
    path = shapes_files.parent / "all.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    api.prepare("jsonl", tmp_path / "data", path=path)
    changes = {"data.path": str(tmp_path / "data"), "encoders.image.size": 16, "eval.rerank": (4,)}
    objectives = {"itc": {"queue": 8}}
    config = api.config("quickstart", "tiny", changes, steps=2, batch_size=8, objectives=objectives)
    run = api.train(config, tmp_path / "run", quiet=True)
    assert run.step == 2 and not list((tmp_path / "run").glob("eval-*.json"))
    assert run.encode_texts(["a red circle"]).shape == (1, 16)


def test_a_prepared_set_tells_its_counts_and_what_was_skipped(shapes_files, tmp_path, capsys):
    """The card, as a notebook shows it, says what the command prints."""
    from xmodal_jax.cli import main

    (shapes_files.parent / "broken.png").write_bytes(b"no picture")
    bad = json.dumps({"image": "broken.png", "caption": "nothing", "split": "train"})
    path = shapes_files.parent / "one-bad.jsonl"
    path.write_text(shapes_files.read_text() + "\n" + bad)
    card = api.prepare("jsonl", tmp_path / "data", path=path, allow_bad=True)
    title, *lines = repr(card).splitlines()
    assert title == f"data set 'data' from {card.source}" and lines[-1] == "skipped: 1 x corrupt image"
    assert sum("12 records, 24 captions, 12 groups" in line for line in lines) == 2
    capsys.readouterr()
    given = ["data", "prepare", "jsonl", "--path", str(path), "--out", str(tmp_path / "again"), "--allow-bad"]
    assert main(given) == 0
    assert capsys.readouterr().out.splitlines() == [*lines, f"{tmp_path / 'again'} is ready"]


def test_texts_that_say_nothing_are_told_and_alike(run, caplog):
    rows = run.encode_texts(["", "a red circle", " \u0301"])
    assert "2 of 3 texts of the field 'text' say nothing" in caplog.text
    np.testing.assert_allclose(rows[0], run.encode_texts([""])[0], atol=1e-6)
    assert not np.allclose(rows[0], rows[1], atol=1e-3)
