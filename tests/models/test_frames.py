"""Encoders of clips: a tower on every frame, layers over them, and frames that are not there."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.config_build import build
from xmodal_jax.encode.apply import apply
from xmodal_jax.errors import UserError
from xmodal_jax.models import build_encoders
from xmodal_jax.models.encoder import Encoder
from xmodal_jax.models.features import FeaturesConfig
from xmodal_jax.models.frames import FramesConfig, neighbours
from xmodal_jax.models.heads import pooled_features
from xmodal_jax.models.layers import BlockStyle, real_parts, scan_blocks
from xmodal_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from xmodal_jax.settings import FusionConfig, JointConfig, MeshConfig, as_dict
from xmodal_jax.types import CacheFacts, DataFacts

FRAMES, SIZE, WIDTH = 6, 16, 8
VIT = {"kind": "vit", "size": SIZE, "patch": 8, "width": WIDTH, "layers": 1, "heads": 2, "hidden": 16}
OVER_TIME = {"layers": 2, "heads": 2, "hidden": 16, "context": 3}


def config_of(tower=VIT, **fields):
    """The config of an encoder of clips."""
    fields = {"kind": "frames", "tower": dict(tower), "frames": FRAMES, "heads": 2, "hidden": 16} | fields
    return build_encoders({"video": fields})["video"]


def encoder_of(config, fusion_width=8):
    """Tower, neck and head of a config."""
    return Encoder(config, FusionConfig(width=fusion_width, heads=2), JointConfig(embed=6, bits=8), "float32")


def init(encoder, x):
    """Fresh parameters of tower and head, those of a context drawn large enough to matter."""

    def both(module, x):
        raw = module.raw(x)
        return module.embed(raw, raw, module.section.mask(x))

    return encoder.init(jax.random.key(0), x, method=both)["params"]


def embed(encoder, params, x, key=None):
    """Unit embeddings [B,E] and tokens [B,T,D] of clips."""

    def both(module, x):
        raw = module.raw(x, key)
        return module.embed(raw, raw, module.section.mask(x)), raw

    return encoder.apply({"params": params}, x, method=both)


def clips(rows=4, frames=FRAMES, seed=0, size=SIZE):
    """Clips uint8 [rows,frames,S,S,3]."""
    return np.random.default_rng(seed).integers(1, 256, (rows, frames, size, size, 3), np.uint8)


CONFIGS = {
    "mean": {"layers": 0},
    "transformer": {"layers": 2},
    "context": {"layers": 0, "context": 3},
    "both": OVER_TIME,
    "narrow": {**OVER_TIME, "width": 4},
    "cls": {**OVER_TIME, "tower": VIT | {"pool": "cls"}},
    "gpo": {**OVER_TIME, "pool": "gpo"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name):
    """A clip of five frames padded to twelve gives the embedding of five."""
    encoder = encoder_of(config_of(**{"frames": 12} | CONFIGS[name]))
    five = clips(3, 5)
    twelve = np.pad(five, [(0, 0), (0, 7), (0, 0), (0, 0), (0, 0)])
    params = init(encoder, jnp.asarray(twelve))
    (short, tokens), (long, padded) = (embed(encoder, params, jnp.asarray(x)) for x in (five, twelve))
    np.testing.assert_allclose(short, long, atol=3e-6)
    np.testing.assert_allclose(tokens, padded[:, :5], atol=1e-5)
    np.testing.assert_array_equal(padded[:, 5:], 0)
    np.testing.assert_array_equal(encoder.section.mask(twelve).sum(1), 5)


def test_without_layers_a_clip_is_the_mean_of_its_frames():
    """CLIP4Clip's mean pooling, computed from the tower by itself, one frame after the other."""
    config = config_of(layers=0)
    encoder, x = encoder_of(config), clips()
    x[2, 3:] = 0
    params = init(encoder, jnp.asarray(x))
    assert set(params["tower"]) == {"frame"}, "no parameters beside the tower's"
    tower = config.inner.module(jnp.float32)
    rows = []
    for clip in x:
        frames = [
            np.asarray(apply(tower, params["tower"]["frame"], jnp.asarray(frame[None]))).mean(1)[0]
            for frame in clip
            if frame.any()
        ]
        frames = [(own - own.mean()) / np.sqrt(own.var() + 1e-6) for own in frames]
        mean = np.mean(frames, 0)
        mean = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-6)
        out = mean @ np.asarray(params["head"]["linear"]["kernel"]) + np.asarray(params["head"]["linear"]["bias"])
        rows.append(out / np.linalg.norm(out))
    np.testing.assert_allclose(embed(encoder, params, jnp.asarray(x))[0], rows, atol=2e-6)


def test_the_convolution_is_that_of_its_definition(rng):
    """Gate times the sum over neighbours, in loops; frames outside and frames left out count as zeros."""
    x, width, kernel = rng.normal(size=(2, 5, 3)).astype(np.float32), 3, 3
    params = {
        "norm": {"scale": rng.normal(size=3).astype(np.float32), "bias": rng.normal(size=3).astype(np.float32)},
        "kernel": rng.normal(size=(kernel, width, width)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
        "gate": {"kernel": rng.normal(size=(3, 3)).astype(np.float32), "bias": rng.normal(size=3).astype(np.float32)},
    }
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = y * params["norm"]["scale"] + params["norm"]["bias"]
    wanted = np.zeros_like(x)
    for row in range(2):
        for t in range(5):
            total = params["bias"].copy()
            for k, other in enumerate((t - 1, t, t + 1)):
                if 0 <= other < 5 and mask[row, other]:
                    total = total + y[row, other] @ params["kernel"][k]
            gate = 1 / (1 + np.exp(-(y[row, t] @ params["gate"]["kernel"] + params["gate"]["bias"])))
            wanted[row, t] = gate * total
    found = neighbours(jax.tree.map(jnp.asarray, params), jnp.asarray(x), jnp.asarray(mask))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_the_transformer_is_beside_the_frames():
    """Tokens are frames + blocks(frames + positions), as in CLIP4Clip's sequence transformer."""
    config = config_of(layers=2)
    encoder, x = encoder_of(config), jnp.asarray(clips())
    params = init(encoder, x)
    own, tower = params["tower"], config.inner.module(jnp.float32)
    tokens = apply(tower, own["frame"], x.reshape(-1, SIZE, SIZE, 3))
    frames = pooled_features(tokens, None, "mean", ()).reshape(4, FRAMES, WIDTH)
    style = BlockStyle(2, pre_norm=True, eps=1e-6)
    wanted = frames + scan_blocks(style, own["layers"], frames + own["position"], None)
    np.testing.assert_allclose(embed(encoder, params, x)[1], wanted, atol=1e-5)


def test_order_matters_with_layers_alone():
    x = clips()
    back = x[:, ::-1].copy()
    for fields, same in (({"layers": 0}, True), ({"layers": 1}, False), ({"layers": 0, "context": 3}, False)):
        encoder = encoder_of(config_of(**fields))
        params = init(encoder, jnp.asarray(x))
        if "position" in params["tower"]:
            params["tower"]["position"] *= 50
        one, other = (np.asarray(embed(encoder, params, jnp.asarray(own))[0]) for own in (x, back))
        assert (np.abs(one - other).max() < 1e-5) == same


def test_cached_tokens_are_the_frames(rng):
    """Over the pooled tokens of a frozen tower the layers give what they give over the tower itself."""
    pixels = config_of(**OVER_TIME)
    cached = config_of({"kind": "features", "padded": True}, **OVER_TIME)
    x = clips()
    x[1, 4:] = 0
    encoder = encoder_of(pixels)
    params = init(encoder, jnp.asarray(x))
    tower = pixels.inner.module(jnp.float32)
    tokens = apply(tower, params["tower"]["frame"], jnp.asarray(x.reshape(-1, SIZE, SIZE, 3)))
    tokens = np.asarray(pooled_features(tokens, None, "mean", ()).reshape(4, FRAMES, WIDTH))
    tokens = np.where(np.asarray(real_parts(x))[..., None], tokens, 0).astype(np.float32)
    rest = {**params, "tower": {name: leaf for name, leaf in params["tower"].items() if name != "frame"}}
    wanted, found = embed(encoder, params, jnp.asarray(x)), embed(encoder_of(cached), rest, jnp.asarray(tokens))
    np.testing.assert_allclose(found[0], wanted[0], atol=3e-6)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-5)
    assert (cached.reads, pixels.reads) == ("tokens", "frames")


def test_cached_tokens_tell_the_number_of_frames():
    facts = DataFacts(caches={"video": CacheFacts((9, 40), (9,), True)}).of("video")
    config = config_of({"kind": "features"}, **OVER_TIME)
    filled = config.filled("video", None, facts)
    assert filled.frames == 9 and filled.input(facts) == ((9, 40), "float16") and filled.inner.padded
    pixels = config_of().filled("video", None, DataFacts())
    assert pixels.input(DataFacts()) == ((FRAMES, SIZE, SIZE, 3), "uint8") and pixels.extent == SIZE


def test_lite0_gives_its_grid_and_its_summary():
    config = config_of({"kind": "efficientnet", "size": 32}, layers=1, width=8, heads=2)
    config = config.filled("video", None, DataFacts())
    assert config.inner.groups == (1, 1) and dataclasses.replace(config, width=0).token_width == 2560
    shapes = jax.eval_shape(
        lambda x: encoder_of(config).init(jax.random.key(0), x, method="raw"),
        jax.ShapeDtypeStruct((1, 2, 32, 32, 3), jnp.uint8),
    )
    assert shapes["params"]["tower"]["project"]["kernel"].shape == (2560, 8)


def test_gradients_are_those_of_differences():
    """Of every leaf over the frames, in a random direction; and frames that are not there get none."""
    encoder = encoder_of(config_of(**OVER_TIME))
    x = clips(2)
    x[1, 4:] = 0
    params = init(encoder, jnp.asarray(x))
    aim = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6)), jnp.float32)

    def loss(params):
        return (embed(encoder, params, jnp.asarray(x))[0] * aim).sum()

    grads = jax.grad(loss)(params)
    draw = np.random.default_rng(2)
    for name in ("context", "layers", "position", "frame"):
        way = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32), params["tower"][name])
        told = sum(map(lambda g, w: float((g * w).sum()), *map(jax.tree.leaves, (grads["tower"][name], way))))

        def moved(step, name=name, way=way):
            own = jax.tree.map(lambda leaf, w: leaf + step * w, params["tower"][name], way)
            return float(loss({**params, "tower": {**params["tower"], name: own}}))

        difference = (moved(1e-3) - moved(-1e-3)) / 2e-3
        assert abs(told - difference) < 0.02 * abs(difference) + 2e-3, name
    assert not np.asarray(jax.tree.leaves(jax.tree.map(lambda g: ~np.isfinite(g).all(), grads))).any()


def test_a_row_without_frames_has_finite_gradients():
    encoder = encoder_of(config_of(**OVER_TIME))
    x = clips(2)
    x[1] = 0
    params = init(encoder, jnp.asarray(x))
    grads = jax.grad(lambda own: jnp.square(embed(encoder, own, jnp.asarray(x))[1]).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    np.testing.assert_array_equal(embed(encoder, params, jnp.asarray(x))[1][1], 0)


def test_one_device_equals_eight():
    encoder, x = encoder_of(config_of(**OVER_TIME)), clips(8)
    x[::3, 4:] = 0
    params = init(encoder, jnp.asarray(x))

    def run(devices):
        mesh = make_mesh(MeshConfig(data=-1), jax.devices()[:devices])
        placed = jax.device_put(params, replicated(mesh)), jax.device_put(x, batch_sharding(mesh))
        with jax.sharding.set_mesh(mesh):
            loss = lambda own, x: jnp.square(embed(encoder, own, x)[0] - 0.1).sum()  # noqa: E731
            return jax.device_get(jax.jit(jax.value_and_grad(loss))(*placed))

    (one, first), (eight, second) = run(1), run(8)
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


def test_dropout_needs_a_key_and_leaves_evaluation_alone():
    encoder, x = encoder_of(config_of(**OVER_TIME, dropout=0.5)), jnp.asarray(clips())
    params = init(encoder, x)
    plain, again = (embed(encoder, params, x)[0] for _ in range(2))
    first, second = (embed(encoder, params, x, jax.random.key(seed))[0] for seed in (1, 2))
    np.testing.assert_array_equal(plain, again)
    assert np.abs(first - plain).max() > 0.01 < np.abs(first - second).max()


@pytest.mark.parametrize(
    ("tower", "fields", "words"),
    [
        ({"kind": "bert"}, {}, "tower.kind is 'bert', which reads no pictures"),
        ({}, {}, "video.tower.kind is ''"),
        (VIT | {"width": 10, "heads": 3}, {}, "video.tower.heads is 3, which does not divide the width 10"),
        (VIT | {"patch": 5}, {}, "video.tower.size is 16, not a multiple of config.encoders.video.tower.patch=5"),
        (VIT | {"pach": 5}, {}, "'pach' is not a field of config.encoders.video.tower; did you mean 'patch'"),
        (VIT | {"pool": "gpo"}, {}, "tower.pool is 'gpo'; write one of mean, cls"),
        (VIT, {"context": 4}, "context is 4; write an odd number such as 5"),
        (VIT, {"heads": 3}, "heads is 3, which does not divide the width 8; write a divisor"),
        (VIT, {"width": 9}, "heads is 2, which does not divide the width 9"),
        (VIT, {"init": "lite0"}, "init is 'lite0'; write config.encoders.video.tower.init"),
        (VIT, {"frames": 0}, "frames is 0; write 1 or more"),
        (VIT, {"cache_tokens": 3}, "cache_tokens is 3"),
    ],
)
def test_what_does_not_fit_is_refused(tower, fields, words):
    with pytest.raises(UserError, match=words):
        config_of(tower, **fields)


def test_a_tower_must_be_given():
    with pytest.raises(UserError, match=r"video.tower is \{\}; write a dict such as"):
        build_encoders({"video": {"kind": "frames"}})
    with pytest.raises(UserError, match="video.tower is 3; write a dict"):
        build_encoders({"video": {"kind": "frames", "tower": 3}})
    with pytest.raises(UserError, match="write a dict such as"):
        build(FramesConfig, {}, "config.encoders.video")


def test_a_config_comes_back_from_json():
    config = config_of(VIT | {"pixel_mean": (0.4, 0.5, 0.6), "pixel_std": (0.2, 0.2, 0.2)}, **OVER_TIME)
    again = build_encoders({"video": json.loads(json.dumps(as_dict(config)))})["video"]
    assert again == config and isinstance(again.inner, type(config.inner))
    assert FeaturesConfig() == build_encoders({"a": as_dict(FeaturesConfig())})["a"]
