"""The encoder of spectrograms: type tokens, padding, a tower of pictures as its start, one device and eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xmodal_jax.errors import UserError
from xmodal_jax.models import build_encoders
from xmodal_jax.models.heads import Projection
from xmodal_jax.models.layers import real_parts
from xmodal_jax.models.spectrogram import SpectrogramConfig
from xmodal_jax.models.vit import ViT, ViTConfig
from xmodal_jax.types import DataFacts

TOWER = ViTConfig(patch=4, width=16, layers=2, heads=2, hidden=24)
OWN = SpectrogramConfig(tower=TOWER, segments=3, steps=12, mels=8, window=64, hop=32)


def sounds(own=OWN, rows=4, real=(3, 1, 2, 3), seed=0):
    """Segments as the reader makes them: standard normal, zeros behind the real ones."""
    made = np.random.default_rng(seed).normal(size=(rows, *own.form.shape)).astype(np.float16)
    for row, count in enumerate(real):
        made[row, count:] = 0
    return jnp.asarray(made)


def params_of(own=OWN, seed=0):
    """Parameters of a tower."""
    tower, x = own.module(jnp.float32), sounds(own)
    return tower, tower.init(jax.random.key(seed), x)["params"]


def run(tower, params, x, key=None):
    """Tokens [B,P,D]."""
    return tower.apply({"params": params}, x, key)


def vit_tokens(params, picture, behind):
    """The [CLS] token of one picture [M,W,3] by plain NumPy: patches, positions, `behind` at the end, two blocks."""

    def norm(own, x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * own["scale"] + own["bias"]

    def dense(own, x):
        return x @ own["kernel"] + own["bias"]

    rows, columns = picture.shape[0] // 4, picture.shape[1] // 4
    cells = [picture[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(-1) for i in range(rows) for j in range(columns)]
    x = np.concatenate([params["cls"][0], dense(params["patch"], np.stack(cells))]) + params["position"][0]
    x = np.concatenate([x, behind]) if len(behind) else x
    for i in range(2):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        read = norm(own["attention"]["norm"], x)
        query, keys, value = (
            dense(own["attention"][name], read).reshape(len(x), 2, 8) for name in ("query", "key", "value")
        )
        logits = np.einsum("lhd,mhd->hlm", query, keys) / np.sqrt(8)
        weight = np.exp(logits - logits.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        x = x + dense(own["attention"]["out"], np.einsum("hlm,mhd->lhd", weight, value).reshape(len(x), 16))
        hidden = dense(own["mlp"]["up"], norm(own["mlp"]["norm"], x))
        gelu = np.asarray(jax.nn.gelu(hidden, approximate=False))
        x = x + dense(own["mlp"]["down"], gelu)
    return norm(params["norm"], x)[0]


@pytest.mark.parametrize(
    ("types", "verbal"), [("none", 0.5), ("share", 0.0), ("share", 1.0), ("share", 0.3), ("both", 0.5), ("label", 0.5)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_segment_is_a_picture_with_a_type_token_behind_its_patches(types, verbal, channels):
    own = dataclasses.replace(OWN, types=types, verbal=verbal, channels=channels)
    tower, params = params_of(own)
    x = sounds(own)
    if types == "label":
        x = x.at[:, :, :, 12].set(
            jnp.asarray([0.0, 1.0, 1.0, 0.0], jnp.float16).reshape(4, 1, 1, *[1] * (channels > 1))
        )
    found = run(tower, params, x)
    assert found.shape == (4, 3, 16)
    plain = jax.tree.map(np.asarray, params)
    for row, segment in ((0, 0), (1, 0), (3, 2)):
        picture = np.asarray(x[row, segment, :, :12], np.float32)
        picture = picture if channels == 3 else np.repeat(picture[..., None], 3, axis=2)
        share = {"label": [0.0, 1.0, 1.0, 0.0][row]}.get(types, verbal)
        behind = np.zeros((0, 16))
        if types == "both":
            behind = plain["types"] + plain["type_position"][0]
        elif types != "none":
            behind = ((1 - share) * plain["types"][:1] + share * plain["types"][1:]) + plain["type_position"][0]
        np.testing.assert_allclose(found[row, segment], vit_tokens(plain, picture, behind), atol=2e-5)


def test_padding_changes_nothing():
    tower, params = params_of()
    x = sounds(real=(2, 2, 2, 2))
    wide = jnp.concatenate([x, jnp.zeros((4, 5, *x.shape[2:]), x.dtype)], axis=1)
    head = Projection(8, "unit")
    tokens, padded = run(tower, params, x[:, :2]), run(tower, params, wide)
    np.testing.assert_array_equal(OWN.mask(wide), [[True] * 2 + [False] * 6] * 4)
    weights = head.init(jax.random.key(1), tokens, tokens, OWN.mask(x[:, :2]))
    alone = head.apply(weights, tokens, tokens, OWN.mask(x[:, :2]))
    np.testing.assert_allclose(head.apply(weights, padded, padded, OWN.mask(wide)), alone, atol=1e-6)


def test_the_label_does_not_make_padding_real():
    own = dataclasses.replace(OWN, types="label")
    x = sounds(own).at[:, :, :, 12].set(0)
    np.testing.assert_array_equal(own.mask(x), np.arange(3)[None] < np.array([3, 1, 2, 3])[:, None])
    assert own.mask(x.at[:, :, :, 12].set(1)).sum() == 9


def test_a_segment_of_the_least_numbers_is_real():
    x = jnp.zeros((1, 2, 4, 4), jnp.float16).at[0, 0].set(np.finfo(np.float16).tiny)
    assert real_parts(x).tolist() == [[True, False]]


@pytest.mark.parametrize("kind", ["unit", "mean"])
def test_pooling_normalises_takes_the_mean_and_normalises(kind):
    rng = np.random.default_rng(0)
    tokens, mask = rng.normal(size=(3, 4, 16)).astype(np.float32), np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    head = Projection(8, kind)
    weights = head.init(jax.random.key(0), tokens, tokens, mask > 0)
    found = head.apply(weights, tokens, tokens, jnp.asarray(mask > 0))
    if kind == "unit":
        own = jax.tree.map(np.asarray, weights["params"]["token"]["project"])
        normal = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
        made = normal @ own["kernel"] + own["bias"]
        made /= np.linalg.norm(made, axis=-1, keepdims=True)
        mean = (made * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-5)
        np.testing.assert_allclose(head.apply(weights, tokens, tokens, jnp.asarray(mask > 0), jax.random.key(1)), found)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)


def test_a_row_without_sound_has_finite_gradients():
    tower, params = params_of()
    x, head = sounds(real=(3, 0, 0, 1)), Projection(8, "unit")
    weights = head.init(jax.random.key(1), run(tower, params, x), run(tower, params, x), OWN.mask(x))

    def loss(params):
        tokens = run(tower, params, x)
        return jnp.square(head.apply(weights, tokens, tokens, OWN.mask(x)) - 0.3).sum()

    grads = jax.grad(loss)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["types"]))


def test_gradients_equal_differences():
    tower, params = params_of()
    params |= {name: 30 * params[name] for name in ("types", "type_position", "cls", "position")}  # beside the steps
    x, weight = sounds(), np.random.default_rng(2).normal(size=(4, 3, 16)).astype(np.float32)
    mask = OWN.mask(x)[:, :, None].astype(jnp.float32)

    def loss(params):
        return (jnp.sin(run(tower, params, x)) * weight * mask).sum()

    grads = jax.grad(loss)(params)
    rng = np.random.default_rng(1)
    for name in ("types", "type_position", "cls", "patch", "position"):
        step = jax.tree.map(lambda leaf: 3e-3 * rng.normal(size=leaf.shape).astype(np.float32), params[name])
        ahead, behind = (
            loss(params | {name: jax.tree.map(lambda a, b, s=sign: a + s * b, params[name], step)})
            for sign in (np.float32(1), np.float32(-1))
        )
        told = sum(float((a * b).sum()) for a, b in zip(*map(jax.tree.leaves, (grads[name], step)), strict=True))
        assert told == pytest.approx(float(ahead - behind) / 2, rel=0.02, abs=2e-4), name


def test_padded_segments_have_no_gradient():
    tower, params = params_of()
    x = sounds(real=(1, 1, 1, 1)).astype(jnp.float32)
    head = Projection(8, "unit")
    tokens = run(tower, params, x)
    weights = head.init(jax.random.key(1), tokens, tokens, OWN.mask(x))

    def loss(tokens):
        return head.apply(weights, tokens, tokens, OWN.mask(x))[:, 0].sum()

    grad = jax.grad(loss)(tokens)
    assert np.abs(grad[:, 0]).max() > 0 and not np.abs(grad[:, 1:]).any()


def test_eight_devices_give_the_numbers_of_one():
    own = dataclasses.replace(OWN, tower=dataclasses.replace(TOWER, dropout=0.1))
    tower, params = params_of(own)
    x, key = sounds(rows=8, real=(3, 1, 2, 3, 1, 1, 2, 3)), jax.random.key(5)
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def loss(params, x):
        tokens = run(tower, params, x, key)
        return jnp.square(jnp.where(own.mask(x)[:, :, None], tokens, 0.0)).mean(), tokens

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, alone), grads = step(params, x)
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    (_, tokens), shared = step(whole, split)
    assert len(split.sharding.device_set) == 8
    np.testing.assert_allclose(tokens, alone, atol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (grads, shared)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(run(tower, params, x, key) - run(tower, params, x)).max() > 1e-3  # dropout is on


def test_a_tower_of_pictures_has_the_same_parameters_but_the_type_tokens():
    own = dataclasses.replace(OWN, mels=8, steps=8)
    _, params = params_of(own)
    image = ViT(4, 16, 2, 2, 24, image_size=8)
    theirs = image.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3), jnp.uint8))["params"]
    shapes = jax.tree.map(jnp.shape, params)
    assert {name: shapes[name] for name in theirs} == jax.tree.map(jnp.shape, theirs)
    assert set(shapes) - set(theirs) == {"types", "type_position"}


def test_the_config_describes_its_input():
    assert OWN.input(DataFacts()) == ((3, 8, 12, 3), "float16")
    assert dataclasses.replace(OWN, types="label", channels=1).input(DataFacts()) == ((3, 8, 13), "float16")
    assert OWN.token_width == 16 and OWN.dropout == 0.0 and OWN.reads == "sound"
    np.testing.assert_array_equal(OWN.local_map(3), np.eye(3))
    usual = SpectrogramConfig()
    assert (usual.form.mel.mels, usual.form.steps, usual.form.count, usual.pool) == (224, 224, 6, "unit")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mels": 10}, "mels is 10; write a multiple of config.encoders.audio.tower.patch=4"),
        ({"steps": 6}, "steps is 6; write a multiple"),
        ({"high": 9000.0}, "high is 9000; write at most half of"),
        ({"wordless": ("effect",)}, "write types='label'"),
        ({"types": "speech"}, "write one of none, share, label, both"),
        ({"verbal": 1.5}, "write a rate from 0 to 1"),
        ({"segments": 0}, "write 1 or more"),
        ({"tower": {"kind": "resnet", "patch": 4}}, "write kind 'vit' without init"),
        ({"tower": {"init": "somewhere", "patch": 4}}, "config.init_paths"),
        ({"tower": {"colour": 3}}, "'colour' is not a field of config.encoders.audio.tower"),
        ({"tower": {"patch": 4, "width": 10, "heads": 4}}, "heads is 4, which does not divide the width 10"),
    ],
)
def test_impossible_configs_are_refused(changes, told):
    small = {"patch": 4, "width": 16, "layers": 2, "heads": 2, "hidden": 24}
    section = {"kind": "spectrogram", "tower": small, "mels": 8, "steps": 12} | changes
    with pytest.raises(UserError, match=told):
        build_encoders({"audio": section})


def test_a_dict_builds_the_tower():
    built = build_encoders({"audio": {"kind": "spectrogram", "tower": {"patch": 8, "width": 32, "heads": 4}}})["audio"]
    assert isinstance(built, SpectrogramConfig) and built.tower.width == 32 and hash(built) == hash(built)
