"""The restricted unpickler: reads what PyTorch writes, in both containers, and runs nothing."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from xmodal_jax.convert.torch_pickle import LEGACY_MAGIC, read_checkpoint
from xmodal_jax.errors import UserError


class Payload:
    """What an attacker would put in a checkpoint."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def state_dict() -> OrderedDict:
    """Tensors of several types, views and a parameter; batch norm adds an int64 scalar."""
    base = torch.arange(24, dtype=torch.float32)
    tensors = OrderedDict(
        whole=base,
        transposed=base.reshape(4, 6).T,
        tail=base[20:],
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2, 2)),
    )
    for dtype in (torch.float64, torch.float16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool):
        tensors[str(dtype)] = torch.tensor([0, 1, 3]).to(dtype)
    tensors.update(torch.nn.BatchNorm1d(3).state_dict())
    return tensors


@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_comes_back(tmp_path, zipped):
    expected = state_dict()
    torch.save(expected, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(tmp_path / "a.pth")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        reference = tensor.detach().numpy()
        assert found[name].dtype == reference.dtype
        assert found[name].flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(found[name], reference, err_msg=name)


@pytest.mark.parametrize("zipped", [True, False])
def test_bfloat16_keeps_its_values(tmp_path, zipped):
    torch.save({"w": torch.tensor([1.5, -2.0]).bfloat16()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "a.pth")["w"].astype(np.float32), [1.5, -2.0])


def test_names_of_nested_dicts_are_joined(tmp_path):
    torch.save({"model": {"a": {"w": torch.ones(2)}}, "epoch": 3, "note": "x"}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth")) == ["model.a.w"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_is_refused_by_name_and_not_run(tmp_path, zipped):
    marker = tmp_path / "ran"
    torch.save({"w": torch.ones(1), "x": Payload(marker)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=f"{os.system.__module__}.system"):
        read_checkpoint(tmp_path / "a.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "torch.nn.modules.linear Linear", "collections OrderedDict.fromkeys"]
)
def test_every_other_name_is_refused(tmp_path, name):
    module, attribute = name.split()
    data = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, attribute)) + b"\x93."
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", data)
    with pytest.raises(UserError, match=f"'{module}.{attribute}', which is neither a tensor nor a dict"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(UserError, match="torch.nn.modules.linear.Linear"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "view", [(0, (3, 3), (4, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (99,), (0,)), (9, (1,), (1,))]
)
def test_strides_that_leave_the_storage_are_refused(tmp_path, view):
    class Hostile:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (torch.ones(8).untyped_storage(), *view, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", 8) if isinstance(thing, torch.UntypedStorage) else None

    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        with archive.open("a/data.pkl", "w") as stream:
            Pickler(stream, 2).dump({"w": Hostile()})
        archive.writestr("a/data/0", np.ones(8, np.float32).tobytes())
    with pytest.raises(UserError, match="does not fit its storage"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torn_file_is_refused(tmp_path, zipped):
    torch.save({"w": torch.ones(1000)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) - 1500])
    with pytest.raises(UserError, match="a.pth"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_false_storage_count_is_refused(tmp_path):
    torch.save({"w": torch.ones(16)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pth").read_bytes()
    start = len(whole) - 16 * 4 - 8
    (tmp_path / "a.pth").write_bytes(whole[:start] + struct.pack("<q", 1 << 60) + whole[start + 8 :])
    with pytest.raises(UserError, match="has 1152921504606846976 elements"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps(LEGACY_MAGIC) + pickle.dumps(7) + pickle.dumps({})]
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match="PyTorch checkpoint"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_missing_file_and_a_bare_tensor_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "b.pth")
    torch.save(torch.ones(2), tmp_path / "a.pth")
    with pytest.raises(UserError, match="not a dict of tensors"):
        read_checkpoint(tmp_path / "a.pth")
