import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.split import Split
from xmodal_jax.errors import UserError
from xmodal_jax.eval import captioning
from xmodal_jax.eval.caption import caption_scores
from xmodal_jax.eval.generate import largest


@pytest.fixture(scope="module")
def written(opened_run):
    """What `caption_split` says of the first five test pictures."""
    return captioning.caption_split(*opened_run, "test", limit=5, beam=2)


def test_a_split_has_a_row_per_picture_and_scores_over_them(written, opened_run):
    rows, scores = written
    found = eval_split(opened_run[0].config.data.path, "test", opened_run[0].specs, opened_run[0].config.data)
    assert [row["key"] for row in rows] == found.keys[:5]
    colour, shape = found.keys[0].split("-")
    assert rows[0]["references"] == [f"a {colour} {shape}", f"the {shape} is {colour}"]
    assert scores == caption_scores([row["caption"] for row in rows], [row["references"] for row in rows])
    words = {word for row in rows for word in row["caption"].split()}
    assert words and not any(word.startswith("[") for word in words)


def test_files_get_the_captions_of_the_same_pictures_in_the_data_set(written, opened_run, tmp_path):
    data = opened_run[0].config.data
    source, paths = Split(data.path, "test", data), []
    for row in range(5):
        paths.append(tmp_path / f"{row}.png")
        paths[-1].write_bytes(source.record(row)["media"]["image"][source.views[0]])
    source.close()
    assert list(captioning.caption_files(*opened_run, paths, 2)) == [row["caption"] for row in written[0]]


def test_what_cannot_be_captioned_is_refused(opened_run, tmp_path):
    assembly, params = opened_run
    bare = {name: leaf for name, leaf in params.items() if name != "decoder"}
    with pytest.raises(UserError, match="no captioning decoder"):
        captioning.caption_split(assembly, bare, "test", 1, 1)
    with pytest.raises(UserError, match="beam is 0"):
        list(captioning.caption_files(assembly, params, [], 0))
    with pytest.raises(UserError, match="limit is -1"):
        captioning.caption_split(assembly, params, "test", -1, 1)
    with pytest.raises(UserError, match="has no split 'none'"):
        captioning.caption_split(assembly, params, "none", 1, 1)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match="broken.png' is no picture"):
        list(captioning.caption_files(assembly, params, [broken], 1))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_largest_are_those_of_a_stable_sort(rng, count):
    rows = rng.integers(0, 4, (5, 40)).astype(np.float32)
    rows[:, ::3] = -np.inf
    values, places = jax.vmap(lambda own: largest(own, count))(jnp.asarray(rows))
    want = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(places, want)
    np.testing.assert_array_equal(values, np.take_along_axis(rows, want, axis=1))
