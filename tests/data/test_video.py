"""What records keep of clips: packed and unpacked without loss, anything else refused; which frames are taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_jax.data.records import CorruptRecord, pack
from xmodal_jax.data.video import (
    Clip,
    ClipLimits,
    frames_input,
    lifted_frame,
    pack_clip,
    random_places,
    uniform_places,
    unpack_clip,
)
from xmodal_jax.errors import UserError

GOOD = {"frames": [b"a", b"b"], "times": [0.0, 0.5], "duration": 1.0}


def test_a_clip_comes_back_as_it_was():
    clip = Clip((b"a", b"b", b"c"), (0.0, 0.25, 0.25), 0.25)
    assert unpack_clip(pack_clip(clip)) == clip and unpack_clip(pack(GOOD)) == Clip((b"a", b"b"), (0.0, 0.5), 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": []}, "one frame or more"),
        ({"frames": [b"a", b""]}, "one frame or more"),
        ({"frames": ["a", "b"]}, "one frame or more"),
        ({"frames": b"ab"}, "are lists"),
        ({"times": [0.0]}, "a time in seconds for each frame"),
        ({"times": [0.5, 0.0]}, "fall"),
        ({"times": [-1.0, 0.5]}, "a time in seconds"),
        ({"times": [float("nan"), 0.5]}, "a time in seconds"),
        ({"times": [True, 1.0]}, "a time in seconds"),
        ({"times": ["0", "1"]}, "a time in seconds"),
        ({"duration": 0.4}, "its duration is below"),
        ({"duration": float("inf")}, "and a duration"),
        ({"more": 1}, "a dict of frames"),
    ],
)
def test_what_is_no_clip_is_refused(changes, words):
    with pytest.raises(CorruptRecord, match=words):
        unpack_clip(pack(GOOD | changes))


def test_other_bytes_are_refused():
    for data in (b"", b"\xff\xd8\xff", pack([1, 2]), pack_clip(Clip((b"a" * 99,), (0.0,), 1.0))[:50]):
        with pytest.raises(CorruptRecord):
            unpack_clip(data)
    with pytest.raises(CorruptRecord, match="one frame or more"):
        pack_clip(Clip((), (), 1.0))


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 99))
def test_places_are_of_equal_parts(count, wanted, seed):
    uniform, drawn = uniform_places(count, wanted), random_places(count, wanted, np.random.default_rng(seed))
    if count <= wanted:
        assert uniform == drawn == list(range(count))
        return
    assert len(uniform) == len(drawn) == wanted
    for part, (middle, one) in enumerate(zip(uniform, drawn, strict=True)):
        low, high = part * count / wanted, (part + 1) * count / wanted
        assert int(low) <= one < high and abs(middle + 0.5 - (low + high) / 2) <= 0.5
    assert sorted(set(uniform)) == uniform and sorted(set(drawn)) == drawn


def test_random_places_reach_every_frame():
    rng = np.random.default_rng(0)
    assert {place for _ in range(200) for place in random_places(10, 3, rng)} == set(range(10))


def test_black_is_lifted_and_nothing_else():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 7, np.uint8)
    assert lifted_frame(grey) is grey and lifted_frame(black).sum() == 3 and not black.any()


@pytest.mark.parametrize("limits", [{"frames": 0}, {"size": 4}, {"seconds": 0}, {"seconds": float("nan")}])
def test_impossible_limits_are_refused(limits):
    with pytest.raises(UserError, match=f"{next(iter(limits))} of a clip is .*; write"):
        ClipLimits(**limits)


def test_a_tower_reads_uniform_frames(encoded):
    frames = tuple(encoded(np.full((8, 8, 3), 10 * number, np.uint8)) for number in range(7))
    inputs = frames_input(4, 3)
    read = inputs.read(pack_clip(Clip(frames, tuple(map(float, range(7))), 7.0)))
    assert [int(image[0, 0, 0]) for image in read] == [10, 30, 50] and read[0].shape == (4, 4, 3)
    assert (inputs.medium, inputs.parts, inputs.pool, inputs.mirrored) == ("video", 3, "mean", True)
    assert len(inputs.read(pack_clip(Clip(frames[:2], (0.0, 1.0), 2.0)))) == 2
