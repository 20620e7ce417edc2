"""Sources of videos: rows of JSON Lines, and MSR-VTT, MSVD and VATEX on small files in their layouts."""

import csv
import json

import numpy as np
import pytest
from clips import grey, moving_picture, number_of, video_bytes

from xmodal_jax.cli import main
from xmodal_jax.data.card import Card
from xmodal_jax.data.image import decode
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.records import open_records
from xmodal_jax.data.source import Item, Skip
from xmodal_jax.data.sources.jsonl import jsonl_source
from xmodal_jax.data.sources.msrvtt import msrvtt_source
from xmodal_jax.data.sources.msvd import msvd_source
from xmodal_jax.data.sources.vatex import vatex_source
from xmodal_jax.data.video import unpack_clip
from xmodal_jax.errors import UserError


@pytest.fixture(scope="session")
def one_clip():
    """A video of five frames."""
    return video_bytes(map(grey, range(5)))


@pytest.fixture
def videos(tmp_path, one_clip):
    """A function: it writes videos of these names in a folder, and returns it."""
    folder = tmp_path / "videos"
    folder.mkdir()

    def make(*names):
        for name in names:
            (folder / name).write_bytes(one_clip)
        return folder

    return make


def clip_of(item):
    """The clip of an item."""
    return unpack_clip(item.media["video"]["clip"])


def sorted_out(source):
    """Items by key, and reasons of what was left out."""
    found = list(source.items())
    items = {one.key: one for one in found if isinstance(one, Item)}
    return items, [(one.reason, one.where) for one in found if isinstance(one, Skip)]


def jsonl(folder, *rows):
    """The path of JSON Lines with these rows."""
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_rows_name_files_folders_and_strips(tmp_path, videos, encoded):
    videos("a.mp4")
    (tmp_path / "b.gif").write_bytes(moving_picture(map(grey, range(3))))
    strip = np.concatenate([np.concatenate([grey(4 * row + place) for place in range(4)], 1) for row in range(2)])
    (tmp_path / "c.png").write_bytes(encoded(strip))
    (tmp_path / "frames").mkdir()
    for number in range(2):
        (tmp_path / "frames" / f"{number}.png").write_bytes(encoded(grey(number)))
    path = jsonl(
        tmp_path,
        {"id": "a", "video": "videos/a.mp4", "caption": ["one", "two"], "split": "train"},
        {"video": "b.gif", "image": "c.png", "caption": "three", "split": "train", "labels": "x"},
        {"id": "c", "video": "c.png", "strip": [2, 4], "caption": {"en": "four", "de": "vier"}, "split": "test"},
        {"id": "d", "video": "frames", "caption": "five", "split": "test"},
        {"id": "a", "video": "videos/a.mp4", "caption": "six", "split": "train"},
    )
    items, left = sorted_out(jsonl_source(path))
    assert left == [] and list(items) == ["a", "c.png", "c", "d"]
    counts = {key: [number_of(decode(frame)) for frame in clip_of(item).frames] for key, item in items.items()}
    assert counts == {"a": [0, 1, 2, 3, 4], "c.png": [0, 1, 2], "c": list(range(8)), "d": [0, 1]}
    assert items["a"].captions == {"en": ["one", "two", "six"]} and items["a"].images == {}
    assert list(items["c.png"].images) == ["image"] and items["c.png"].labels == ("x",)
    assert {file.path.rsplit("/")[-1] for file in items["c.png"].files} == {"c.png", "b.gif"}
    assert len(items["d"].files) == 2
    few = sorted_out(jsonl_source(path, frames=2, frame_size=16))[0]
    assert [number_of(decode(frame)) for frame in clip_of(few["c"]).frames] == [2, 6]
    assert max(decode(clip_of(few["a"]).frames[0]).shape) == 16


def test_bad_rows_are_left_out_and_counted(tmp_path, videos, encoded):
    videos("a.mp4")
    (tmp_path / "still.png").write_bytes(encoded(grey(3)))
    (tmp_path / "text.mp4").write_text("no video")
    rows = [
        {"id": "whole", "video": "videos/a.mp4", "caption": "a", "split": "train"},
        {"id": "gone", "video": "gone.mp4", "caption": "a", "split": "train"},
        {"id": "text", "video": "text.mp4", "caption": "a", "split": "train"},
        {"id": "far", "video": "https://x.org/a.mp4", "caption": "a", "split": "train"},
        {"id": "number", "video": 3, "caption": "a"},
        {"id": "empty", "video": "", "caption": "a"},
        {"id": "strip", "video": "videos/a.mp4", "strip": [2], "caption": "a"},
        {"id": "tiles", "video": "videos/a.mp4", "strip": [2, 4], "caption": "a", "split": "train"},
        {"id": "still", "image": "still.png", "strip": "a word of one's own", "caption": "a", "split": "train"},
        {"id": "silent", "video": "videos/a.mp4", "caption": " ", "split": "train"},
        {"id": "whole", "video": "text.mp4", "caption": "a", "split": "train"},
    ]
    items, left = sorted_out(jsonl_source(jsonl(tmp_path, *rows)))
    assert list(items) == ["whole", "still"]
    assert sorted(reason for reason, _ in left) == sorted(
        [
            "missing video",
            "corrupt video",
            "corrupt video",
            "video is an address",
            "video that is no path",
            "video that is no path",
            "strip that is not [rows, columns] of a video",
            "empty caption",
            "key occurs twice",
        ]
    )
    assert any(
        where.startswith("text: ") and "text.mp4" in where for reason, where in left if reason == "corrupt video"
    )


def test_a_data_set_of_videos_is_prepared_and_kept(tmp_path, videos, capsys):
    videos("a.mp4", "b.mp4")
    rows = [
        {"video": f"videos/{name}.mp4", "caption": f"clip {name}", "split": split}
        for name, split in (("a", "train"), ("b", "test"))
    ]
    command = ["data", "prepare", "jsonl", "--path", str(jsonl(tmp_path, *rows)), "--out", str(tmp_path / "set")]
    assert main([*command, "--frames", "3"]) == 0
    card = Card.load(tmp_path / "set")
    assert (
        card.media == ["video"]
        and card.views == []
        and "beside pictures and captions: video" in capsys.readouterr().out
    )
    with open_records(tmp_path / "set", "train") as records:
        clip = unpack_clip(records[0]["media"]["video"]["clip"])
    assert [number_of(decode(frame)) for frame in clip.frames] == [0, 2, 4]
    assert main([*command, "--frames", "3"]) == 0, "the same again is kept"
    assert main(command) == 2 and "prepared with another frames" in capsys.readouterr().err
    (tmp_path / "videos" / "a.mp4").write_bytes(b"other")
    assert main([*command, "--frames", "3"]) == 2 and "older than its source" in capsys.readouterr().err
    assert main([*command, "--frames", "0"]) == 2 and "frames of a clip is 0" in capsys.readouterr().err


def test_data_sets_without_videos_are_as_before(tmp_path, encoded):
    (tmp_path / "a.png").write_bytes(encoded(grey(1)))
    source = jsonl_source(jsonl(tmp_path, {"image": "a.png", "caption": "a", "split": "train"}))
    assert set(source.arguments) == {"path", "root", "held_out", "content"}


def table(path, rows):
    """The path of a CSV file of dicts."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def msrvtt(tmp_path):
    """The JSON of six clips, two sentences each."""
    splits = ("train", "train", "train", "validate", "test", "test")
    clips = [
        {
            "id": n,
            "video_id": f"video{n}",
            "category": n % 2,
            "url": "u",
            "start time": 0,
            "end time": 1,
            "split": split,
        }
        for n, split in enumerate(splits)
    ]
    sentences = [{"sen_id": n, "video_id": f"video{n % 6}", "caption": f"sentence {n}"} for n in range(12)]
    path = tmp_path / "videodatainfo.json"
    path.write_text(json.dumps({"info": {}, "videos": clips, "sentences": sentences}))
    return path


def test_msrvtt_with_its_own_splits(msrvtt, videos):
    folder = videos(*(f"video{number}.mp4" for number in range(5)))
    items, left = sorted_out(msrvtt_source(msrvtt, folder))
    assert [item.split for item in items.values()] == ["train", "train", "train", "val", "test"]
    assert items["video1"].captions == {"en": ["sentence 1", "sentence 7"]} and items["video1"].labels == ("1",)
    assert left == [("missing video", f"video5: {folder}/video5.mp4")]
    assert len(clip_of(items["video0"])) == 5


def test_msrvtt_1k_a_has_one_caption_for_a_test_clip(msrvtt, videos, tmp_path):
    folder = videos(*(f"video{number}.mp4" for number in range(6)))
    test = [{"key": f"ret{n}", "vid_key": "m", "video_id": f"video{n}", "sentence": f"asked {n}"} for n in (1, 5, 9)]
    lists = (
        table(tmp_path / "test.csv", test),
        table(tmp_path / "train.csv", [{"video_id": f"video{n}"} for n in (0, 3)]),
    )
    items, left = sorted_out(msrvtt_source(msrvtt, folder, lists[0]))
    assert {key: item.split for key, item in items.items()} == {
        f"video{n}": "test" if n in (1, 5) else "train" for n in range(6)
    }
    assert items["video5"].captions == {"en": ["asked 5"]} and len(items["video0"].captions["en"]) == 2
    assert left == [("clip of the test list that the file lacks", "video9")]
    few = sorted_out(msrvtt_source(msrvtt, folder, *lists))[0]
    assert {key: item.split for key, item in few.items()} == {
        "video0": "train",
        "video1": "test",
        "video3": "train",
        "video5": "test",
    }
    with pytest.raises(UserError, match="train.csv has no column 'sentence'"):
        msrvtt_source(msrvtt, folder, lists[1])


def test_msrvtt_refuses_other_files(tmp_path, msrvtt, videos):
    folder = videos()
    with pytest.raises(UserError, match="has no videos"):
        msrvtt_source(msrvtt, folder)
    videos("a.mp4")
    for content in ("[]", '{"videos": []}', '{"videos": 3, "sentences": []}', "{", '{"videos": [], "sentences": [1]}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(UserError, match="other.json is not MSR-VTT's JSON"):
            msrvtt_source(tmp_path / "other.json", folder)
    broken = json.loads(msrvtt.read_text())
    broken["videos"][0] = 7
    del broken["videos"][1]["split"]
    msrvtt.write_text(json.dumps(broken))
    left = sorted_out(msrvtt_source(msrvtt, folder))[1]
    assert [reason for reason, _ in left] == ["broken row"] * 2 + ["missing video"] * 4


def test_msvd_has_many_captions_of_a_clip(tmp_path, videos):
    folder = videos("-4wsuPCjDBc_5_15.avi", "-7KMZQEsJW4_205_208.avi", "two_1_2.mp4")
    text = [
        "# a heading",
        "",
        "-4wsuPCjDBc_5_15 a squirrel is eating",
        "two_1_2 a man runs",
        "-4wsuPCjDBc_5_15 it eats",
    ]
    (tmp_path / "captions.txt").write_text("\n".join([*text, "-7KMZQEsJW4_205_208 a boy sings\n"]))
    for split, keys in {
        "train": ["-4wsuPCjDBc_5_15", "gone_1_2"],
        "val": ["two_1_2"],
        "test": ["-7KMZQEsJW4_205_208"],
    }.items():
        (tmp_path / f"{split}_list.txt").write_text("\n".join(keys) + "\n")
    items, left = sorted_out(msvd_source(tmp_path / "captions.txt", folder))
    assert {key: item.split for key, item in items.items()} == {
        "-4wsuPCjDBc_5_15": "train",
        "two_1_2": "val",
        "-7KMZQEsJW4_205_208": "test",
    }
    assert items["-4wsuPCjDBc_5_15"].captions == {"en": ["a squirrel is eating", "it eats"]}
    assert left == [("no caption", "gone_1_2")]
    (tmp_path / "val_list.txt").unlink()
    with pytest.raises(UserError, match="val_list.txt does not exist"):
        msvd_source(tmp_path / "captions.txt", folder)
    (tmp_path / "none.txt").write_text("# nothing\n")
    (tmp_path / "val_list.txt").write_text("")
    with pytest.raises(UserError, match="none.txt has no captions"):
        msvd_source(tmp_path / "none.txt", folder)


def test_vatex_has_two_languages(tmp_path, videos):
    folder = videos("a_1_11.mp4", "b_2_12.mp4", "c_3_13.mp4")

    def listed(name, *keys, **more):
        rows = [
            {"videoID": key, "enCap": [f"{key} {n}" for n in range(2)], "chCap": [f"{key} 中 {n}" for n in range(2)]}
            for key in keys
        ]
        (tmp_path / name).write_text(json.dumps([row | more for row in rows]))
        return tmp_path / name

    train, val = listed("train.json", "a_1_11", "gone_1_2"), listed("val.json", "b_2_12", "c_3_13")
    items, left = sorted_out(vatex_source(train, folder, val))
    assert {key: item.split for key, item in items.items()} == {"a_1_11": "train", "b_2_12": "val", "c_3_13": "val"}
    assert items["a_1_11"].captions == {"en": ["a_1_11 0", "a_1_11 1"], "zh": ["a_1_11 中 0", "a_1_11 中 1"]}
    assert left == [("missing video", f"gone_1_2: {folder}/gone_1_2.mp4")]
    (tmp_path / "test.txt").write_text("c_3_13\n")
    held = sorted_out(vatex_source(train, folder, val, test_list=tmp_path / "test.txt"))[0]
    assert {key: item.split for key, item in held.items()} == {"a_1_11": "train", "b_2_12": "val", "c_3_13": "test"}
    public = sorted_out(vatex_source(train, folder, test=listed("public.json", "b_2_12", chCap=None)))[0]
    assert public["b_2_12"].captions == {"en": ["b_2_12 0", "b_2_12 1"]} and public["b_2_12"].split == "test"
    (tmp_path / "test.txt").write_text("other\n")
    with pytest.raises(UserError, match="names 'other', which is no clip of `validation`"):
        vatex_source(train, folder, val, test_list=tmp_path / "test.txt")
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="other.json is not VATEX's JSON"):
        vatex_source(tmp_path / "other.json", folder)


def test_missing_clips_need_leave(tmp_path, videos):
    rows = [{"videoID": f"{n}", "enCap": ["a"], "chCap": ["b"]} for n in range(4)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    source = vatex_source(tmp_path / "train.json", videos("0.mp4", "1.mp4", "2.mp4"))
    with pytest.raises(UserError, match="1 x missing video.*more than 1 %"):
        prepare(source, tmp_path / "set")
    card = prepare(source, tmp_path / "set", allow_bad=True)
    assert card.skipped == {"missing video": 1} and card.media == ["video"] and card.languages == ["en", "zh"]
