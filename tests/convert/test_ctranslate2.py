"""The layout of CTranslate2's model.bin, and files that are none."""

import numpy as np
import pytest
from ct2 import encoder_variables, model_bin

from xmodal_jax.convert.ctranslate2 import read_variables
from xmodal_jax.errors import UserError


def written(folder, data, name="model.bin"):
    """A file."""
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize("version", [4, 5, 6])
def test_variables_come_back_by_name(tmp_path, version):
    made = encoder_variables() | {"scalar": np.array(3.5, np.float32), "bytes": np.arange(-3, 3, dtype=np.int8)}
    found = read_variables([written(tmp_path, model_bin(made, version))])
    assert list(found) == list(made)
    for name, array in made.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_prefix_leaves_out_the_others_and_aliases_are_followed(tmp_path):
    made = encoder_variables()
    aliases = [("encoder/again", "encoder/num_heads"), ("decoder/again", "encoder/num_heads"), ("encoder/x", "other")]
    found = read_variables([written(tmp_path, model_bin(made, aliases=aliases))], "encoder/")
    assert set(found) == {name for name in made if name.startswith("encoder/")} | {"encoder/again"}
    assert found["encoder/again"] == 2


def test_a_file_in_parts_is_one(tmp_path):
    data = model_bin(encoder_variables())
    parts = [written(tmp_path, data[:1000], "a"), written(tmp_path, data[1000:], "b")]
    assert len(read_variables(parts)) == len(encoder_variables())
    with pytest.raises(UserError, match="is no whole model.bin of CTranslate2"):
        read_variables(parts[:1])


def test_every_cut_is_refused(tmp_path):
    data = model_bin({"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float16)}, aliases=[("c", "a")])
    for length in range(len(data)):
        with pytest.raises(UserError, match="no whole model.bin"):
            read_variables([written(tmp_path, data[:length])])


@pytest.mark.parametrize(("at", "value"), [(0, 3), (0, 99)])
def test_another_version_is_refused(tmp_path, at, value):
    data = bytearray(model_bin({"a": np.ones(2, np.float32)}))
    data[at] = value
    with pytest.raises(UserError, match=f"its version is {value}, not one of 4, 5, 6"):
        read_variables([written(tmp_path, bytes(data))])


def test_no_change_of_bytes_ends_in_another_error(tmp_path):
    rng, whole = np.random.default_rng(0), model_bin(encoder_variables(8, 1, 4, 6))
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(3):
            data[rng.integers(len(data) if rng.random() < 0.5 else 120)] = rng.integers(256)
        try:
            read_variables([written(tmp_path, bytes(data))])
        except UserError:
            pass


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="'.*gone.bin' cannot be read"):
        read_variables([tmp_path / "gone.bin"])
