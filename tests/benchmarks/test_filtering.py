"""Filtering's comparison with all pairs: recall of a whole matrix, and when an older "all" may be kept."""

import copy
import json

import filtering
import numpy as np
import pytest
from filtering import ranked, same_model

from xmodal_jax.errors import UserError
from xmodal_jax.eval import rerank, retrieval


def test_a_shortlist_of_everything_ranks_as_all_pairs_do():
    draw = np.random.default_rng(0)
    image, text = draw.normal(size=(12, 4)).astype(np.float32), draw.normal(size=(24, 4)).astype(np.float32)
    owner, keys = np.arange(24, dtype=np.int32) // 2, np.arange(24, dtype=np.int32)
    keys[5] = keys[0]  # one caption of two pictures
    positives = retrieval.positives_from_owners(owner, keys, 12)
    matrix = draw.normal(size=(12, 24)).astype(np.float32)
    whole = ranked(image @ text.T + np.float32(0.5) * matrix, positives)
    sides = []
    for i, (query, gallery, right, own) in enumerate(
        ((image, text, positives[0], matrix), (text, image, positives[1], matrix.T))
    ):
        found = rerank.shortlist(query, gallery, right, len(gallery))

        def asks(a, b, i=i):
            return matrix[(a, b)]

        found = rerank.score_shortlist(asks, found, i == 0, block=8)
        assert np.array_equal(found.itm, np.take_along_axis(own, found.rows, axis=1))
        sides.append(retrieval.recall_of_places(rerank.reranked(found, len(gallery), "add", 0.5), (1, 5, 10)))
    assert retrieval.summary(*sides) == whole


RESULT = {
    "run": "mtgfe-flickr8k",
    "step": 60,
    "images": 4,
    "texts": 8,
    "how": ["add", 0.01],
    "k": {"0": {"rSum": 190.0, "seconds": 0.0, "pairs": 0}},
}


@pytest.mark.parametrize(("field", "value"), [("step", 61), ("texts", 9), ("how", ["add", 0.02]), ("rSum", 190.1)])
def test_all_pairs_of_another_model_are_not_kept(field, value):
    other = copy.deepcopy(RESULT)
    other["k"]["0"]["seconds"] = 3.0
    assert same_model(RESULT, other)
    (other["k"]["0"] if field == "rSum" else other)[field] = value  # another seed has the same name and step
    assert not same_model(RESULT, other)


def test_all_pairs_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(filtering, "IMAGES_AT_ONCE", 3)
    matrix, seen = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32), []
    dies = True

    def score(image, text):
        seen.extend(image.tolist())
        if dies and 4 in image:
            raise KeyboardInterrupt
        return matrix[image, text]

    folder = filtering.open_folder(tmp_path / "pairs", "abc", matrix.shape)
    with pytest.raises(KeyboardInterrupt):
        filtering.exhaustive(score, 8, 5, 4, folder)
    dies = seen.clear()
    found, seconds = filtering.exhaustive(score, 8, 5, 4, filtering.open_folder(folder, "abc", matrix.shape))
    np.testing.assert_array_equal(found, matrix)
    assert seconds > 0 and not {1, 2} & set(seen)  # the first group was there (0 is what compilation is done with)
    for model, shape in (("abd", matrix.shape), ("abc", (8, 6))):
        with pytest.raises(UserError, match="another model or split; name a folder that is new"):
            filtering.open_folder(folder, model, shape)
    with pytest.raises(UserError, match="is not empty"):
        filtering.open_folder(tmp_path, "abc", matrix.shape)


def test_a_second_process_helps_from_the_other_end(tmp_path, monkeypatch):
    monkeypatch.setattr(filtering, "IMAGES_AT_ONCE", 2)
    matrix, seen = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32), []

    def score(image, text):
        seen.append(int(image[0]))
        if image[0] == 4:  # meanwhile the other process has done the rest
            for first in (0, 2):
                filtering.write_part(folder / f"{first}.npz", matrix[first : first + 2], 1.0)
        return matrix[image, text]

    folder = filtering.open_folder(tmp_path / "pairs", "abc", matrix.shape)
    found, seconds = filtering.exhaustive(score, 8, 5, 10, folder, backwards=True)
    np.testing.assert_array_equal(found, matrix)
    assert seen == [0, 6, 4] and seconds > 2.0  # the first compiles


def test_an_older_result_is_read_and_another_file_is_refused(tmp_path):
    path = tmp_path / "filtering.json"
    assert filtering.earlier(None) == filtering.earlier(path) == {"k": {}}
    path.write_text(json.dumps(RESULT))
    assert filtering.earlier(path) == RESULT
    for other in ('{"k": {', "[1]", '{"a": 1}', "3"):
        path.write_text(other)
        with pytest.raises(UserError, match="is no result of this script; write another path"):
            filtering.earlier(path)
        assert path.read_text() == other
