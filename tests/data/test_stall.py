"""A loader that waits says what for: a file that does not answer, a slow tokenizer, and how long."""

import dataclasses
import logging
import os
import threading
import time

import numpy as np
import pytest
from tiny import input_specs

from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.features import write_features
from xmodal_jax.data.loader import Loader
from xmodal_jax.data.stall import Activity, Watch
from xmodal_jax.data.train import train_dataset
from xmodal_jax.errors import UserError

QUICK = DataConfig(stall_seconds=0.2)


class SlowTokenizer:
    """A tokenizer that answers when it is let."""

    def __init__(self, tokenizer):
        self.tokenizer, self.may_go = tokenizer, threading.Event()

    def encode(self, texts, length):
        self.may_go.wait()
        return self.tokenizer.encode(texts, length)


def said_while(caplog, loader, count, release):
    """The warnings of a `next` that is released after `count` of them, and the batch."""
    with caplog.at_level(logging.WARNING):
        threading.Thread(target=lambda: (wait_for(lambda: len(caplog.records) >= count), release())).start()
        batch = next(loader)
    return [record.getMessage() for record in caplog.records], batch


def wait_for(happened):
    """Poll for ten seconds at most."""
    for _ in range(1000):
        if happened():
            return
        time.sleep(0.01)


def test_a_slow_tokenizer_is_named_and_again_at_doubling_intervals(tiny_set, tokenizer, caplog):
    slow = SlowTokenizer(tokenizer)
    dataset = train_dataset(tiny_set, "train", input_specs(slow), QUICK, 0, 2)
    with Loader(dataset, threads=2) as loader:
        said, _ = said_while(caplog, loader, 3, slow.may_go.set)
        waits = [float(text.split(" for ")[1].split(" s:")[0]) for text in said]
        assert 0.2 <= waits[0] < waits[1] < waits[2] and waits[1] >= 0.4 and waits[2] >= 0.8
        assert "thread batch_0 is tokenising a caption of row " in said[0] and "thread batch_1 is tok" in said[0]
        caplog.clear()
        for _ in range(3):
            next(loader)
        assert not caplog.records, "a loader that keeps up is silent"
    dataset.close()


def test_a_feature_cache_that_does_not_answer_is_named_by_cache_and_row(own_set, tokenizer, caplog):
    def mean(images):
        return images.mean((1, 2))[:, None]

    write_features(own_set, "mean", mean, 8, tower="mean")
    dataset = train_dataset(
        own_set, "train", input_specs(tokenizer, cached=True), dataclasses.replace(QUICK, features=("mean",)), 0, 2
    )
    row = int(train_dataset(own_set, "train", input_specs(tokenizer), QUICK, 0, 2).examples[0]["index"])
    (file,) = dataset.split.caches["mean"].records.files
    file.unlink()
    os.mkfifo(file)  # opening it waits for a writer, as a mount that is gone waits for its server
    with (
        Loader(dataset, threads=1, prefetch=1) as loader,
        pytest.raises(UserError, match="rows of split 'train' cannot be"),
    ):
        said_while(caplog, loader, 1, lambda: file.open("wb").close())
    assert f"thread batch_0 is reading row {row} of cache 'mean' for " in caplog.records[0].getMessage()


def test_stages_are_those_of_the_threads_that_are_busy():
    activity = Activity()
    activity.note("reading row", 3, "split 'train'")
    activity.note("stacking batch", 7)
    assert activity.described().startswith("thread MainThread is stacking batch 7 for 0.0 s")
    activity.done()
    assert activity.described() == ""


def test_waits_nest_and_a_watch_ends_its_thread(caplog):
    before = set(threading.enumerate())
    watch = Watch(Activity(), 0.1)
    watch.begin()
    watch.begin()
    watch.end()
    with caplog.at_level(logging.WARNING):
        wait_for(lambda: caplog.records)
    assert "no thread is busy" in caplog.text
    watch.end()
    watch.close()
    assert not set(threading.enumerate()) - before  # threads of other tests may have ended meanwhile


def test_a_stall_time_must_be_above_zero():
    with pytest.raises(UserError, match="config.data.stall_seconds is 0; write seconds above 0"):
        DataConfig(stall_seconds=0)
    assert np.isfinite(DataConfig().stall_seconds)


def test_a_wait_that_is_told_to_end_leaves_the_thread_where_it_hangs(tiny_set, tokenizer):
    """What the loop does with SIGTERM: it must be able to save although a batch never comes."""
    slow = SlowTokenizer(tokenizer)
    dataset = train_dataset(tiny_set, "train", input_specs(slow), QUICK, 0, 2)
    loader = Loader(dataset, threads=1)

    def stop():
        raise InterruptedError

    loader.poll = stop
    started = time.monotonic()
    with pytest.raises(InterruptedError):
        next(loader)
    loader.close()
    assert loader.stuck and time.monotonic() - started < 5
    slow.may_go.set()  # so that the tests themselves can end
