"""Two encoders read the same captions, each with a tokenizer and a length of its own."""

import shutil

import numpy as np
import pytest

from xmodal_jax.assemble import assemble
from xmodal_jax.cli import main
from xmodal_jax.config_file import freeze
from xmodal_jax.data.split import split_captions
from xmodal_jax.data.text import build_vocabulary, save_tokenizer
from xmodal_jax.errors import UserError
from xmodal_jax.eval.evaluate import Evaluator, evaluate
from xmodal_jax.retrieve.query import answer
from xmodal_jax.settings import defaults
from xmodal_jax.training.loop import train
from xmodal_jax.workdir import open_run

SMALL = {"width": 16, "layers": 1, "heads": 2, "hidden": 16}


def two_readings(folder, vocabulary):
    """Pictures and two encoders of words; "wider" has words that no caption has."""
    config = defaults()
    config.batch_size, config.steps, config.log_every, config.data.path = 8, 4, 1, str(folder)
    config.encoders = {
        "image": {"kind": "vit", "size": 16, "patch": 8} | SMALL,
        "text": {"kind": "bert", "length": 8, "positions": 8} | SMALL,
        "wider": {"kind": "bert", "length": 20, "positions": 20, "tokenizer": str(vocabulary)} | SMALL,
    }
    config.data.fields = {"image": {}, "text": {}, "wider": {"medium": "text"}}
    config.fusion.update({"layers": 1, "heads": 2, "hidden": 16})
    config.joint.update({"embed": 8, "bits": 8})
    config.objectives = {
        "itc": {"queue": 8},
        "other": {"kind": "itc", "pair": ("image", "wider"), "queue": 8},
        "mlm": {},
    }
    config.eval.pairs, config.eval.rerank = (("image", "text"), ("image", "wider")), ()
    return config


@pytest.fixture(scope="module")
def vocabulary(shapes_data, tmp_path_factory):
    """A tokenizer that knows more words than the captions have, so that theirs have other ids."""
    path = tmp_path_factory.mktemp("wider") / "tokenizer.json"
    save_tokenizer(build_vocabulary([*split_captions(shapes_data, "train"), *["an apple and a zebra"] * 60]), path)
    return path


@pytest.fixture(scope="module")
def run(shapes_data, vocabulary, tmp_path_factory):
    """A run of four steps, on a copy of the shapes."""
    folder, workdir = tmp_path_factory.mktemp("set") / "shapes", tmp_path_factory.mktemp("run") / "two"
    shutil.copytree(shapes_data, folder)
    train(freeze(two_readings(folder, vocabulary)), workdir)
    return workdir


def test_each_encoder_reads_its_own_ids(run, vocabulary):
    assembly, params, _ = open_run(run)
    assert sorted(path.name for path in run.glob("tokenizer*")) == ["tokenizer-text.json", "tokenizer-wider.json"]
    words, wider = (
        Evaluator(assembly, params).open("test", "filled", pair=("image", name)).right for name in ("text", "wider")
    )
    assert words.ids.shape[1] == 8 and wider.ids.shape[1] == 20 and list(words.words) == list(wider.words)
    assert [assembly.tokenizers["wider"].decode(row) for row in wider.ids] == list(wider.words)
    assert (words.ids[:, :6] != wider.ids[:, :6]).any(1).all(), "other ids of the same words"
    assert assembly.config.encoders["wider"].vocab_size > assembly.config.encoders["text"].vocab_size


def test_both_are_evaluated_indexed_and_asked(run, tmp_path, capsys):
    assembly, params, _ = open_run(run)
    result = evaluate(assembly, params)
    assert result["cut"]["encoder"] == "text" and result["pairs"]["image-wider"]["cut"]["length"] == 20
    for field in ("text", "wider"):
        assert main(["index", "--workdir", str(run), "--field", field, "--out", str(tmp_path / field)]) == 0
        found = Evaluator(assembly, params).open("test", "filled", pair=("image", field))
        own = Evaluator(assembly, params).embedder.side(found.right, 8).embed
        hit = answer(tmp_path / field, found.right.words[3], k=1, field=field)[0]
        np.testing.assert_allclose(hit.score, (own @ own[3]).max(), atol=1e-4)


def test_a_tokenizer_that_was_replaced_is_refused_by_its_name(run, vocabulary, shapes_data, tmp_path):
    copy = tmp_path / "two"
    shutil.copytree(run, copy)
    shutil.copy(copy / "tokenizer-text.json", copy / "tokenizer-wider.json")
    with pytest.raises(UserError, match=r"tokenizer-wider.json' has \d+ ids and the model \d+; restore the file"):
        open_run(copy)
    config = two_readings(open_run(run)[0].config.data.path, vocabulary)
    config.steps = 6
    with pytest.raises(UserError, match="is not the one that .* was trained with"):
        train(freeze(config), copy)
    config.encoders.wider.vocab_size = 7
    with pytest.raises(UserError, match="config.encoders.wider.vocab_size is 7, but the tokenizer .* has"):
        assemble(freeze(config))
