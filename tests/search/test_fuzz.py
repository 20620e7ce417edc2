"""Whatever was done to an index folder, opening and searching it gives rows or one sentence."""

import pathlib
import shutil

import numpy as np
import pytest
from fuzz import spoil

from xmodal_jax.errors import UserError
from xmodal_jax.retrieve import query
from xmodal_jax.search import writer
from xmodal_jax.search.index import Index


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An index of two blocks with embeddings, codes and items."""
    draw = np.random.default_rng(0)
    items = [{"key": f"k{i}", "view": "image", "captions": ["ein é"], "thumbnail": "x"} for i in range(12)]
    extra = {"workdir": "run", "workdir_from_index": "run", "data": "set", "sets": {"set": {}}}
    extra |= {"field": "image", "noun": "pictures", "words": False}
    path = tmp_path_factory.mktemp("whole") / "index"
    return writer.write(path, draw.normal(size=(12, 6)), items, draw.normal(size=(12, 16)), "abc", 8, extra=extra)


def asked(path: pathlib.Path, prefix: bool, verify: bool) -> str:
    """What a search of the folder says, the sentence or the kinds that it answered."""
    try:
        opened = Index.open(path, prefix=prefix, engine="numpy", verify=verify)
        answered = []
        for kind, width in (("dense", opened.width), ("codes", opened.bits)):
            if width:
                hits = opened.search(np.ones(width), min(5, opened.count), kind)[0]
                query.as_table(hits)
                answered.append(kind)
        writer.append(path, np.ones((1, 6)), [{"key": "new"}], np.ones((1, 16)), "abc")
        return " ".join(answered)
    except UserError as error:
        return str(error)


def storm(whole, tmp_path, seeds):
    for seed in seeds:
        path = shutil.copytree(whole, tmp_path / "index")
        what = spoil(path, seed)
        try:
            said = asked(path, seed % 3 == 0, seed % 4 != 0)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {what}: {type(error).__name__} {error}") from error
        assert said and "\n" not in said, (seed, what, said)
        assert "object at 0x" not in said and len(said) < 1000, (seed, what, said)
        shutil.rmtree(path)


def test_a_spoiled_index_is_one_sentence(whole, tmp_path):
    storm(whole, tmp_path, range(100))


@pytest.mark.slow
def test_a_storm_of_spoiled_indexes(whole, tmp_path):
    storm(whole, tmp_path, range(100, 2100))
