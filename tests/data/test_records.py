"""Shards are written whole, read at any row, and refused by name when something is missing."""

import pytest

from xmodal_jax.data.records import (
    CorruptRecord,
    KeptRecords,
    RecordWriter,
    Room,
    check_record,
    encode_record,
    open_records,
    pack,
    split_names,
    unpack,
)
from xmodal_jax.errors import UserError

RECORD = {"key": "ein Hühnchen", "media": {"image": {"image": b"\x00\xff"}}}


def write(folder, split, rows, shard_bytes=2**20):
    with RecordWriter(folder, split, shard_bytes) as writer:
        for row in rows:
            writer.write(pack(row))
    return writer


def test_a_record_comes_back_as_it_was():
    assert check_record(unpack(encode_record(RECORD))) == RECORD


@pytest.mark.parametrize("field", RECORD)
def test_a_record_without_a_field_is_named(field):
    broken = {name: value for name, value in RECORD.items() if name != field}
    with pytest.raises(CorruptRecord, match=field):
        encode_record(broken)
    with pytest.raises(CorruptRecord, match=field):
        check_record(unpack(pack(broken)))


def test_a_record_may_have_nothing_but_captions():
    assert check_record(unpack(encode_record(RECORD | {"media": {}})))["media"] == {}


@pytest.mark.parametrize("data", [b"", b"\xc1", encode_record(RECORD)[:-3], pack([1, 2])])
def test_damaged_bytes_are_a_corrupt_record(data):
    with pytest.raises(CorruptRecord):
        check_record(unpack(data))


def test_rows_keep_their_order_over_shards(tmp_path):
    rows = [{"row": number, "bytes": b"x" * 40} for number in range(23)]
    writer = write(tmp_path, "train", rows, shard_bytes=300)
    assert len(writer.files) > 2 and writer.records == 23
    with open_records(tmp_path, "train") as records:
        assert len(records) == 23
        assert [records[number] for number in (22, 0, 7)] == [rows[22], rows[0], rows[7]]
        assert list(records) == rows


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_outside_the_split_is_an_index_error(tmp_path, row):
    write(tmp_path, "train", range(3))
    with open_records(tmp_path, "train") as records, pytest.raises(IndexError, match=f"row {row} of a split of 3"):
        records[row]


def test_an_empty_split_exists(tmp_path):
    write(tmp_path, "test", [])
    with open_records(tmp_path, "test") as records:
        assert len(records) == 0


def test_an_exception_leaves_no_shard(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), RecordWriter(tmp_path, "train") as writer:
        writer.write(pack(1))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_unfinished_shards_are_no_split(tmp_path):
    writer = RecordWriter(tmp_path, "train")
    writer.write(pack(1))
    assert split_names(tmp_path) == []
    writer.close()
    assert split_names(tmp_path) == ["train"]


def test_splits_are_listed_whatever_their_names(tmp_path):
    for split in ("train", "test-a", "test"):
        write(tmp_path, split, [split])
    assert split_names(tmp_path) == ["test", "test-a", "train"]
    with open_records(tmp_path, "test") as records:
        assert list(records) == ["test"]


def test_a_missing_folder_or_split_says_what_to_write(tmp_path):
    with pytest.raises(UserError, match="xmodal data prepare"):
        open_records(tmp_path / "nowhere", "train")
    write(tmp_path, "train", [1])
    with pytest.raises(UserError, match="no split 'val': use one of train"):
        open_records(tmp_path, "val")


def test_a_missing_shard_is_named(tmp_path):
    writer = write(tmp_path, "train", [b"x" * 200] * 4, shard_bytes=250)
    (tmp_path / writer.files[1]).unlink()
    with pytest.raises(UserError, match=r"lacks shard \[1\] of 4"):
        open_records(tmp_path, "train")


def test_a_torn_shard_is_a_user_error(tmp_path):
    writer = write(tmp_path, "train", [b"x" * 200] * 4)
    (tmp_path / writer.files[0]).write_bytes(b"not an array record")
    with pytest.raises(UserError, match="cannot be read as ArrayRecord"):
        open_records(tmp_path, "train")


def test_a_damaged_row_is_a_corrupt_record_and_the_others_stay_readable(tmp_path):
    writer = write(tmp_path, "train", [bytes([65 + number]) * 70_000 for number in range(4)])
    path = tmp_path / writer.files[0]
    data = path.read_bytes()
    assert data.count(b"B" * 1000) > 0, "rows are stored uncompressed"
    path.write_bytes(data.replace(b"B" * 1000, b"b" * 1000))
    with open_records(tmp_path, "train") as records:
        with pytest.raises(CorruptRecord, match="row 1 in .*hash mismatch"):
            records[1]
        assert records[0] == b"A" * 70_000 and records[3] == b"D" * 70_000


def test_unpack_keeps_bytes_and_text_apart():
    assert unpack(pack({"a": "text", "b": b"bytes", "c": [1, 2.5]})) == {"a": "text", "b": b"bytes", "c": [1, 2.5]}


@pytest.mark.parametrize("split", ["", "a/b", "../train", ".hidden"])
def test_a_split_name_must_be_a_plain_file_name(tmp_path, split):
    with pytest.raises(UserError, match="write a name of letters"):
        RecordWriter(tmp_path, split)
    assert list(tmp_path.iterdir()) == []


def test_kept_rows_are_read_once_while_there_is_room(tmp_path):
    rows = [{"number": number, "data": bytes([number]) * 100} for number in range(6)]
    write(tmp_path, "train", rows)
    with open_records(tmp_path, "train") as records:
        size = records.sized(0)[1]
        room = Room(3 * size)
        kept = KeptRecords(records, room)
        for row in (0, 1, 2, 3, 4, 5, 0, 4):
            assert kept[row] == rows[row]
        assert len(kept) == 6 and room.left == 0
        assert [kept[row] is kept[row] for row in range(6)] == [True] * 3 + [False] * 3
        with pytest.raises(IndexError, match="row 6 of a split of 6"):
            kept[6]
