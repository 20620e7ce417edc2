"""Clips in batches: uniform frames in evaluation, random ones in training, zeros behind short clips."""

import numpy as np
import pytest
from clips import grey, moving_picture, number_of, video_bytes

from xmodal_jax.data.clip_reader import ClipReader
from xmodal_jax.data.config import DataConfig, FieldConfig
from xmodal_jax.data.evaluation import eval_split
from xmodal_jax.data.image import AugmentConfig
from xmodal_jax.data.prepare import prepare
from xmodal_jax.data.readers import InputSpec
from xmodal_jax.data.records import CorruptRecord
from xmodal_jax.data.source import Item, memory_source
from xmodal_jax.data.split import Split
from xmodal_jax.data.text import load_tokenizer
from xmodal_jax.data.train import train_dataset
from xmodal_jax.data.video import Clip, pack_clip
from xmodal_jax.errors import UserError

FRAMES, SIZE = 6, 16
PLAIN = AugmentConfig(crop_min_area=1.0, flip=0.0)


def clip_of(count, encoded, first=0):
    """A clip of so many frames, each telling its number."""
    frames = [encoded(grey(first + number, 24, 24)) for number in range(count)]
    return pack_clip(Clip(tuple(frames), tuple(map(float, range(count))), float(count)))


@pytest.fixture(scope="module")
def clip_set(tmp_path_factory, encoded):
    """12 records: number n has a clip of 2 n frames; 0 has none, 1 a black one."""
    items = []
    for number in range(12):
        black = pack_clip(Clip((encoded(np.zeros((8, 8, 3), np.uint8)),) * 2, (0.0, 1.0), 2.0))
        clip = black if number == 1 else clip_of(2 * number, encoded) if number else None
        captions = {"en": [f"clip {number}"], "de": [f"Film {number}"]}
        split = "test" if number >= 8 else "train"
        items.append(Item(f"{number}", {}, captions, split=split, media={"video": {"clip": clip}} if clip else {}))
    folder = tmp_path_factory.mktemp("clips") / "set"
    prepare(memory_source(items, "clips", "none"), folder)
    return folder


def config(augment=PLAIN, **own):
    """The field of clips, and words."""
    return DataConfig(fields={"video": FieldConfig(required=False, **own), "text": FieldConfig()}, augment=augment)


def specs(folder):
    """What both encoders take."""
    return {
        "video": InputSpec(SIZE, shape=(FRAMES, SIZE, SIZE, 3)),
        "text": InputSpec(8, load_tokenizer("data", folder)),
    }


def numbers(clip):
    """The numbers of the frames of an input that are there."""
    return [number_of(frame) for frame in clip if frame.any()]


def test_evaluation_reads_uniform_frames(clip_set):
    found = eval_split(clip_set, "test", specs(clip_set), config(), pair=("video", "text"))
    for place, key in enumerate(found.keys):
        clip, count = found.left.read(place), 2 * int(key)
        assert clip.shape == (FRAMES, SIZE, SIZE, 3) and clip.dtype == np.uint8
        assert numbers(clip) == [(2 * i + 1) * count // 12 for i in range(FRAMES)]
        np.testing.assert_array_equal(found.left.read(place, True), clip[:, :, ::-1])
    assert found.left.mirrored and len(found.left) == 4


def test_training_draws_a_frame_of_each_part_and_pads_short_clips(clip_set):
    dataset = train_dataset(clip_set, "train", specs(clip_set), config(), 0, 8)
    seen = {number: set() for number in range(8)}
    for step in range(12):
        batch = dataset.batch_at(step)
        for row, clip, valid in zip(batch["index"], batch["video"], batch["video/valid"], strict=True):
            number = int(dataset.split.sidecar.keys[row])
            there = clip.any((1, 2, 3))
            assert valid == (number > 0) and there.sum() == min(FRAMES, 2 * number)
            assert list(there) == sorted(there, reverse=True), "padding is behind"
            if number == 1:
                assert clip.sum() == 6, "a black frame has one pixel of 1"
            elif number:
                own = numbers(clip)
                seen[number].update(own)
                parts = [own[i] * FRAMES // (2 * number) for i in range(len(own))]
                assert 2 * number <= FRAMES or parts == list(range(FRAMES)) or len(set(own)) == FRAMES
    dataset.close()
    assert seen[3] == set(range(6)) and len(seen[7]) > FRAMES, "other frames come in other steps"


def test_the_frames_of_a_clip_are_changed_alike(clip_set):
    """A flip, a crop and the colours are those of the whole clip: equal frames stay equal."""
    split = Split(clip_set, "train", config(AugmentConfig(crop_min_area=0.3, flip=0.5, jitter=0.4)))
    reader = ClipReader(split, split.cfg.fields["video"], specs(clip_set)["video"])

    class SameFrames:
        """A row whose clip is one frame, again and again."""

        number = 7

        def media(self, medium):
            frame = (clip_set.parent / "frame.png").read_bytes()
            return {"clip": pack_clip(Clip((frame,) * 9, tuple(map(float, range(9))), 9.0))}

    from PIL import Image

    noise = np.random.default_rng(0).integers(1, 255, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(clip_set.parent / "frame.png")
    row, rng = SameFrames(), np.random.default_rng(1)
    clips = [reader.read(row, ["clip", None], rng) for _ in range(4)]
    for clip in clips:
        assert all(np.array_equal(frame, clip[0]) for frame in clip)
    assert len({clip.tobytes() for clip in clips}) == 4, "each time otherwise"
    split.close()


def test_records_without_a_required_clip_are_left_out(clip_set):
    fields = {"video": FieldConfig(), "text": FieldConfig()}
    dataset = train_dataset(clip_set, "train", specs(clip_set), DataConfig(fields=fields, augment=PLAIN), 0, 16)
    batch = dataset.batch_at(0)
    assert "0" not in {dataset.split.sidecar.keys[row] for row in batch["index"]} and "video/valid" not in batch
    dataset.close()


def test_a_second_view_is_the_same_clip_drawn_anew(clip_set):
    fields = {"video": FieldConfig(required=False), "text": FieldConfig(), "video2": FieldConfig(of="video")}
    dataset = train_dataset(clip_set, "train", specs(clip_set), DataConfig(fields=fields, augment=PLAIN), 0, 8)
    batch = dataset.batch_at(0)
    np.testing.assert_array_equal(batch["video/valid"], batch["video2/valid"])
    assert not np.array_equal(batch["video"], batch["video2"])
    dataset.close()


def test_a_file_is_read_as_its_record(tmp_path, clip_set):
    spec = specs(clip_set)["video"]
    path = tmp_path / "a.mp4"
    path.write_bytes(video_bytes([grey(number, 24, 24) for number in range(20)]))
    clip = ClipReader.of_file(path, spec)
    assert clip.shape == spec.shape and numbers(clip) == [(2 * i + 1) * 20 // 12 for i in range(FRAMES)]
    (tmp_path / "short.gif").write_bytes(moving_picture(map(grey, range(2))))
    short = ClipReader.of_file(tmp_path / "short.gif", spec)
    assert numbers(short) == [0, 1] and not short[2:].any()
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(UserError, match="bad.mp4' is no video that can be read"):
        ClipReader.of_file(tmp_path / "bad.mp4", spec)
    with pytest.raises(UserError, match="gone.mp4' cannot be opened"):
        ClipReader.of_file(tmp_path / "gone.mp4", spec)


def test_damaged_clips_are_corrupt_records(tmp_path, encoded):
    items = [Item("a", {}, {"en": ["a"]}, media={"video": {"clip": b"no clip"}})]
    prepare(memory_source(items, "bad", "none"), tmp_path / "set")
    split = Split(tmp_path / "set", "train", config())
    reader = ClipReader(split, split.cfg.fields["video"], specs(tmp_path / "set")["video"])
    from xmodal_jax.data.readers import Row

    with pytest.raises(CorruptRecord, match="a clip is|not msgpack"):
        reader.plain(Row(split, 0), ["clip", False])
    with pytest.raises(CorruptRecord, match="has no view 'film'"):
        reader.plain(Row(split, 0), ["film", False])
    split.close()


def test_an_encoder_of_pictures_takes_no_clips(clip_set):
    other = specs(clip_set) | {"video": InputSpec(SIZE, shape=(SIZE, SIZE, 3))}
    with pytest.raises(
        UserError, match=r"no frames \[T,S,S,3\] but \[16, 16, 3\]; write an encoder of the kind 'frames'"
    ):
        train_dataset(clip_set, "train", other, config(), 0, 8)
