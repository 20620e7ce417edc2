"""Kept tokens of a frozen text tower: the same training and evaluation, without the tower's pass."""

import dataclasses
import pathlib
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from xmodal_jax.assemble import assemble
from xmodal_jax.config_file import freeze, load
from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.train import train_dataset
from xmodal_jax.encode.embed import Embedder
from xmodal_jax.encode.token_cache import (
    FOLDER,
    TokenCache,
    digest,
    distinct_captions,
    encode_all,
    opened,
    token_caches,
    with_tokens,
)
from xmodal_jax.errors import UserError
from xmodal_jax.training.flops import step_flops
from xmodal_jax.training.loop import make_run

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
FROZEN = ("optimizer.freeze=^text/tower/", "encoders.text.cache_tokens=True")


@pytest.fixture(scope="module")
def make(shapes_data, tmp_path_factory):
    """`make(overrides...)`: a run on a copy of the shapes, and its first state."""
    folder = tmp_path_factory.mktemp("kept") / "shapes"
    shutil.copytree(shapes_data, folder, ignore=shutil.ignore_patterns(FOLDER))

    def build(*overrides, objectives=None):
        own = [f"data.path={folder}", "batch_size=8", "encoders.image.size=16", *overrides]
        config = freeze(load(f"{CONFIG}:tiny", own))
        config = dataclasses.replace(config, objectives=objectives or {"itc": {"queue": 8}})
        run = make_run(assemble(config), jax.devices()[:1])
        return run, run.fresh()

    return build


def test_rows_come_back_and_unknown_captions_do_not():
    ids = np.array([[2, 5, 3, 0], [2, 6, 7, 3]], np.int32)
    tokens = np.arange(14, dtype=np.float16).reshape(7, 2)
    kept = TokenCache(ids, tokens, np.array([0, 3, 7]))
    found = kept.rows(ids[[1, 0, 1]])
    np.testing.assert_array_equal(found[0], tokens[3:])
    np.testing.assert_array_equal(found[1], [*tokens[:3], [0, 0]])
    np.testing.assert_array_equal(found[2], found[0])
    assert kept.rows(np.array([[2, 9, 3, 0]], np.int32)) is None
    with pytest.raises(KeyError, match="remove the folder 'texts'"):
        with_tokens({"text": kept}, DataConfig(), {"text": np.array([[2, 9, 3, 0]], np.int32)})


def test_they_are_made_once_and_are_the_towers(make, monkeypatch):
    run, state = make(*FROZEN)
    assert token_caches(run.assembly, state.params, make=False) == {}
    first = token_caches(run.assembly, state.params)["text"]
    folder = pathlib.Path(run.assembly.config.data.path) / FOLDER / digest(run.assembly, state.params, "text")
    np.testing.assert_array_equal(opened(folder).tokens, first.tokens)
    monkeypatch.setattr("xmodal_jax.encode.token_cache.encode_all", None)  # a second start must not encode
    again = token_caches(run.assembly, state.params)["text"]
    split = eval_split(run.assembly.config.data.path, "test", run.assembly.specs, run.assembly.config.data)
    own = run.assembly.model.apply({"params": state.params}, "text", split.right.ids, method="raw")
    real = split.right.ids != 0
    np.testing.assert_allclose(again.rows(split.right.ids)[real], np.asarray(own)[real], atol=4e-3)


def test_a_step_is_the_same_and_the_tower_does_not_run(make):
    run, state = make(*FROZEN, objectives={"itc": {"queue": 8}, "mlm": {}})
    config = run.assembly.config
    texts = encode_all(run.assembly, state.params, "text", distinct_captions(run.assembly, "text"))
    plain, more = (
        train_dataset(config.data.path, "train", run.assembly.specs, config.data, 0, 8, *complete).batch_at(0)
        for complete in ((), (partial(with_tokens, {"text": texts}, config.data),))
    )
    assert set(more) - set(plain) == {"text/tokens"} and more["text/tokens"].dtype == np.float16

    def count(batch):
        return step_flops(run.recipe, run.abstract, batch)

    assert count(more) < count(plain)
    one, two = (run.step(jax.tree.map(jax.numpy.copy, state), batch)[1] for batch in (plain, more))
    for name in ("loss", "grad_norm"):
        assert float(one[name]) == pytest.approx(float(two[name]), rel=2e-3)


def test_chunks_take_them_too(make):
    run, state = make(*FROZEN, "chunk=4")
    texts, config = (
        encode_all(run.assembly, state.params, "text", distinct_captions(run.assembly, "text")),
        run.assembly.config,
    )
    data = train_dataset(
        config.data.path,
        "train",
        run.assembly.specs,
        config.data,
        0,
        8,
        partial(with_tokens, {"text": texts}, config.data),
    )
    whole, whole_state = make(*FROZEN)
    batch = data.batch_at(0)
    parts, full = (float(one.step(of, batch)[1]["loss"]) for one, of in ((run, state), (whole, whole_state)))
    assert parts == pytest.approx(full, rel=1e-5)


def test_evaluation_takes_them_and_falls_back(make):
    run, state = make(*FROZEN)
    texts, config = (
        encode_all(run.assembly, state.params, "text", distinct_captions(run.assembly, "text")),
        run.assembly.config,
    )
    split = eval_split(config.data.path, "test", run.assembly.specs, config.data)
    plain = Embedder(run.assembly.model, state.params).side(split.right, 8)
    kept = Embedder(run.assembly.model, state.params, texts={"text": texts}).side(split.right, 8)
    np.testing.assert_allclose(plain.embed, kept.embed, atol=2e-3)
    assert not np.array_equal(plain.embed, kept.embed)  # float16 tokens were read
    none = TokenCache(texts.ids[:0], texts.tokens[:0], texts.starts[:1])
    other = Embedder(run.assembly.model, state.params, texts={"text": none}).side(split.right, 8)
    np.testing.assert_array_equal(plain.embed, other.embed)


def test_too_many_are_read_by_the_tower(make, monkeypatch, caplog):
    run, state = make(*FROZEN, "encoders.text.length=10")
    monkeypatch.setattr("xmodal_jax.encode.token_cache.LIMIT", 1000)
    assert token_caches(run.assembly, state.params) == {}
    assert "are not kept (config.encoders.text.cache_tokens)" in caplog.text


def test_another_tower_or_length_is_another_folder(make):
    run, state = make(*FROZEN)
    first = digest(run.assembly, state.params, "text")
    other = jax.tree.map(lambda x: x + 1e-3, state.params)
    assert digest(run.assembly, other, "text") != first
    shorter, its = make(*FROZEN, "encoders.text.length=8")
    assert digest(shorter.assembly, its.params, "text") != first


@pytest.mark.parametrize(
    "wrong",
    [("optimizer.freeze=^text/tower/embed",), ("optimizer.freeze=^text/tower/", "encoders.text.dropout=0.1")],
)
def test_a_trained_tower_is_refused(make, wrong):
    run, state = make("encoders.text.cache_tokens=True", *wrong)
    with pytest.raises(UserError, match=r"config.encoders.text.cache_tokens is True, but the tower is trained"):
        token_caches(run.assembly, state.params)
