"""Batches arrive sharded, in order, and the cursor counts what was handed out."""

import threading

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import input_specs

from xmodal_jax.data.config import DataConfig
from xmodal_jax.data.loader import Loader
from xmodal_jax.data.train import train_dataset
from xmodal_jax.data.transfer import Prefetch, to_device


@pytest.fixture
def sharding():
    """The leading axis over 8 devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return NamedSharding(mesh, P("data"))


@pytest.fixture
def dataset(tiny_set, tokenizer):
    """Batches of 16 records of `tiny_set`."""
    dataset = train_dataset(tiny_set, "train", input_specs(tokenizer, 8, 6), DataConfig(), 0, 16)
    yield dataset
    dataset.close()


def test_arrays_keep_values_types_and_sharding(sharding, dataset):
    batch = dataset.batch_at(0)
    arrays = to_device(batch, sharding)
    assert arrays.keys() == batch.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(array), batch[name])
        assert array.dtype == batch[name].dtype and array.sharding == sharding
    assert arrays["image"].addressable_shards[3].data.shape == (2, 8, 8, 3)


def test_each_field_may_have_its_own_sharding(sharding):
    whole = NamedSharding(sharding.mesh, P())
    arrays = to_device({"a": np.arange(8), "b": np.arange(3)}, {"a": sharding, "b": whole})
    assert arrays["a"].sharding == sharding and arrays["b"].sharding == whole


def test_prefetch_keeps_order_and_counts_what_was_handed_out(sharding, dataset):
    with Prefetch(Loader(dataset, cursor=2 * 16), sharding, depth=3) as batches:
        for number in range(2, 6):
            assert batches.cursor == number * 16
            np.testing.assert_array_equal(np.asarray(next(batches)["id"]), dataset.batch_at(number)["id"])
        assert batches.cursor == 6 * 16 and batches.loader.cursor == 8 * 16, "two more are in flight"
        assert batches.wait_seconds == batches.loader.wait_seconds > 0


def test_a_run_resumed_at_the_cursor_sees_the_same_batches(sharding, dataset):
    with Prefetch(Loader(dataset), sharding) as batches:
        next(batches)
        cursor = batches.cursor
        want = next(batches)
    with Prefetch(Loader(dataset, cursor=cursor), sharding) as batches:
        got = next(batches)
    for name in want:
        np.testing.assert_array_equal(np.asarray(got[name]), np.asarray(want[name]))


def test_closing_ends_all_threads_also_after_an_error(sharding, dataset):
    before = threading.active_count()
    with pytest.raises(KeyError), Prefetch(Loader(dataset, threads=3), sharding) as batches:
        next(batches)
        assert batches.bad_rows == 0 and threading.active_count() > before
        raise KeyError("the loop failed")
    assert threading.active_count() == before


class Noting(dict):
    """The same sharding for every field; keeps what the loader said of itself when it was asked for."""

    def __init__(self, sharding, stages):
        super().__init__()
        self.sharding, self.activity, self.said = sharding, stages, set()

    def __missing__(self, name):
        self.said.add(self.activity.described().partition(" for ")[0])
        return self.sharding


def test_a_copy_is_a_stage_until_it_is_done(dataset, sharding):
    noting = Noting(sharding, dataset.split.activity)
    with Prefetch(Loader(dataset, threads=1, prefetch=1), noting, depth=1) as batches:
        next(batches)
    assert noting.said == {"thread MainThread is copying to the devices the batch before example 16"}
    assert not dataset.split.activity.described()
