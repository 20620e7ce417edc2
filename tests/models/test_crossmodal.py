"""The assembled model: parts on demand, unit embeddings, pair scores, the output vocabulary, and the temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ALL, BOS, ROWS, SEP, TOKENS, WIDTH, tiny_batch, tiny_config, tiny_model, tiny_objectives, tiny_params

from xmodal_jax.eval.generate import beam_search
from xmodal_jax.forward import Forward
from xmodal_jax.models.efficientnet import EfficientNetLite0
from xmodal_jax.models.encoder import Neck
from xmodal_jax.models.features import FeatureTokens
from xmodal_jax.models.heads import l2_normalize
from xmodal_jax.models.vit import ViT
from xmodal_jax.objectives import parts


@pytest.fixture(scope="module")
def made():
    """The tiny model and random parameters of every part."""
    model = tiny_model(tiny_config())
    return model, jax.jit(lambda: tiny_params(model))()


@pytest.fixture(scope="module")
def encoded(made):
    """Image tokens and embeddings, text tokens and embeddings of the tiny batch."""
    model, params = made
    batch = tiny_batch()

    def run(p):
        return (
            model.apply({"params": p}, "image", batch["image"], method="encode"),
            model.apply({"params": p}, "text", batch["text"], method="encode"),
        )

    return jax.jit(run)(params)


def modules(params):
    """What parameters are made of: the parts of the two encoders, as image/head, and the rest by their names."""
    encoders = {f"{side}/{part}" for side in ("image", "text") for part in params[side]}
    return encoders | (set(params) - {"image", "text"})


def test_encoders_give_tokens_and_unit_embeddings(encoded):
    (tokens, embed), (words, text_embed) = encoded
    assert tokens.shape == (ROWS, TOKENS, WIDTH) and words.shape == (ROWS, 8, WIDTH)
    for x in (embed, text_embed):
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-4)
    np.testing.assert_array_equal(text_embed[0], text_embed[1])  # one caption


def test_parameters_are_made_of_what_is_used():
    model = tiny_model(tiny_config())

    def made(used):
        return modules(jax.eval_shape(lambda: tiny_params(model, used=frozenset(used))))

    towers = {"image/head", "text/tower", "text/head"}
    assert made(()) == towers  # nothing reads tokens: no neck
    assert made({"temperature"}) == towers | {"log_temperature"}
    assert made({"match", "fusion"}) == towers | {"match", "fusion", "image/neck"}
    assert made({"vocabulary"}) == towers | {"vocabulary"}
    every = {"match", "fusion", "vocabulary", "decoder", "image/hash", "text/hash", "image/neck", "log_temperature"}
    assert made(ALL) == towers | every


@pytest.mark.parametrize("pool", ["mean+attention", "mean+shared"])
def test_a_pool_that_reads_tokens_has_a_neck_and_aggregates_wait_for_fusion(pool):
    sections = {"image": {"pool": pool}, "text": {"pool": pool}, "fusion": {"aggregated": True}}
    sections["joint"] = {"embed": 8, "bits": 8, "shared_heads": 2, "shared_hidden": 16}
    model = tiny_model(tiny_config(**sections))

    def made(used):
        return modules(jax.eval_shape(lambda: tiny_params(model, used=frozenset(used))))

    assert "image/neck" in made(()) and not {"image/aggregate", "text/aggregate"} & made(())
    assert {"image/aggregate", "text/aggregate"} < made({"fusion"})


def test_without_a_trained_temperature_it_is_the_configs(made):
    model, params = made
    rest = {name: part for name, part in params.items() if name != "log_temperature"}
    assert model.apply({"params": rest}, method="temperature") == np.float32(model.config.joint.temperature)
    with pytest.raises(ValueError, match="none has 'temperature' in its parts"):
        Forward(model, rest, {}, None).temperature()


def test_the_score_of_a_pair_is_its_matching_log_odds(made, encoded):
    model, params = made
    (tokens, image), (words, text) = encoded
    mask, rows = tiny_batch()["text"] != 0, np.array([1, 1, 0, 2, 3, 4, 5, 6], np.int32)

    def call(*x, method):
        return model.apply({"params": params}, *x, method=method)

    fused = call(tokens, words, mask, rows, method="fuse")
    logits = call(fused, mask, image[rows], text, method="match_logits")
    odds = call((tokens[rows], image[rows]), (words, text, mask), method="score")
    np.testing.assert_allclose(odds, logits[:, 1] - logits[:, 0], atol=1e-5)


def test_token_logits_are_those_of_the_output_ids(made):
    model, params = made
    hidden = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32)
    every = model.apply({"params": params}, hidden, method="token_logits")
    ids = (3, 7, 20)
    some = params | {"vocabulary": params["vocabulary"] | {"bias": params["vocabulary"]["bias"][jnp.array(ids)]}}
    few = tiny_model(tiny_config(), ids).apply({"params": some}, hidden, method="token_logits")
    np.testing.assert_allclose(few, np.asarray(every)[..., list(ids)], atol=1e-5)


@pytest.mark.parametrize("value", [0.07, 0.5, 9.0, 0.01, 1e-4])
def test_the_temperature_has_a_gradient_at_and_beyond_its_edges(made, value):
    model, params = made

    def heat(log):
        return model.apply({"params": params | {"log_temperature": log}}, method="temperature")

    log = jnp.log(jnp.float32(value))
    np.testing.assert_allclose([heat(log), jax.grad(heat)(log)], value, rtol=1e-5)  # d exp(x) / dx = exp(x)


def test_codes_lie_between_minus_one_and_one(made, encoded):
    model, params = made
    for name, (_, embed) in zip(("image", "text"), encoded, strict=True):
        codes = np.asarray(model.apply({"params": params}, name, embed, method="codes"))
        assert codes.shape == (ROWS, 8) and np.abs(codes).max() < 1


def test_a_tower_is_the_one_that_its_kind_names():
    def tower_of(config):
        return config.encoders["image"].module(jnp.dtype(config.dtype))

    assert isinstance(tower_of(tiny_config()), FeatureTokens)
    vit = tiny_config(image={"kind": "vit", "size": 12, "patch": 4, "width": 8, "heads": 2}, dtype="bfloat16")
    tower = tower_of(vit)
    assert isinstance(tower, ViT) and (tower.patch, tower.image_size, tower.dtype) == (4, 12, jnp.bfloat16)
    assert isinstance(tower_of(tiny_config(image={"kind": "efficientnet"})), EfficientNetLite0)


def test_features_are_cast_and_have_no_parameters():
    tokens = np.ones((2, 3, 4), np.float16)
    assert FeatureTokens().init(jax.random.key(0), tokens) == {}
    assert FeatureTokens().apply({}, tokens).dtype == jnp.float32


def test_the_neck_tells_places_apart():
    raw = np.repeat(np.random.default_rng(0).normal(size=(1, 1, 6)), 4, 1).astype(np.float32)
    neck = Neck(8, 0, 2, 16, 0.0)
    params = neck.init(jax.random.key(0), raw)["params"]
    tokens = np.asarray(neck.apply({"params": params}, raw))
    assert tokens.shape == (1, 4, 8) and not np.allclose(tokens[0, 0], tokens[0, 1], atol=1e-4)
    still = params | {"position": jnp.zeros((4, 8))}
    same = np.asarray(neck.apply({"params": still}, raw))
    np.testing.assert_allclose(same[0, 0], same[0, 1], atol=1e-6)


def test_grouped_tokens_are_pooled_for_themselves():
    config = tiny_config(image={"groups": (4, 1)})
    shapes = jax.eval_shape(lambda: tiny_params(tiny_model(config)))
    assert shapes["image"]["head"]["linear"]["kernel"].shape == (12, 8)
    assert l2_normalize(jnp.ones((1, 4))).tolist() == [[0.5] * 4]


@pytest.fixture(scope="module")
def aggregated():
    """The tiny model whose fusion reads the embeddings too, and parameters of every part."""
    model = tiny_model(tiny_config(fusion={"aggregated": True}))
    return model, jax.jit(lambda: tiny_params(model))()


def test_fusion_over_aggregated_features_reads_both_embeddings(aggregated):
    model, params = aggregated
    batch = tiny_batch()

    @jax.jit
    def run(params):
        def call(*x, method):
            return model.apply({"params": params}, *x, method=method)

        image, text = call("image", batch["image"], method="encode"), call("text", batch["text"], method="encode")
        raw = call("text", batch["text"], method="raw")
        hidden = call(image[0], batch["text"], method="decode")
        fused = call(image[0], text[0], batch["text"] != 0, method="fuse")
        score = call(image, (*text, batch["text"] != 0), method="score")
        return image, text, raw, hidden, fused, score

    image, text, raw, hidden, fused, score = jax.tree.map(np.asarray, run(params))
    assert image[0].shape == (ROWS, TOKENS + 1, WIDTH) and text[0].shape == raw.shape == hidden.shape == fused.shape
    assert np.isfinite(score).all()
    size = text[1].shape[1] ** 0.5

    def token(name, embed):
        return embed * size @ np.asarray(params[name]["aggregate"]["project"]["kernel"])

    np.testing.assert_allclose(image[0][:, -1], token("image", image[1]), atol=1e-5)
    np.testing.assert_allclose(text[0][:, 0], raw[:, 0] + token("text", text[1]), atol=1e-5)
    np.testing.assert_array_equal(text[0][:, 1:], raw[:, 1:])


def test_aggregated_parameters_exist_only_where_fusion_reads_them(made, aggregated):
    new = modules(aggregated[1]) - modules(made[1])
    assert new == {"image/aggregate", "text/aggregate"}


def test_a_forward_gives_the_tokens_of_the_encoders(aggregated):
    model, params = aggregated
    batch = {name: jnp.asarray(value) for name, value in tiny_batch().items()}

    @jax.jit
    def run(params):
        whole, pieces = (Forward(model, params, batch, None, chunk=chunk) for chunk in (0, 4))

        def call(side):
            return model.apply({"params": params}, side, batch[side], method="encode")

        def pair(encoded):
            return (encoded.tokens, encoded.embed)

        return [(call("image"), call("text"))] + [
            (pair(fwd.encode("image")), pair(fwd.encode("text"))) for fwd in (whole, pieces)
        ]

    expected, *passes = run(params)
    for found in passes:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize(
    ("objectives", "bridged"),
    [
        ({"captions": {"kind": "lm", "bridge": True}}, True),  # a name is free, the kind counts
        ({"lm": {"bridge": True, "weight": 0.0}, "captions": {"kind": "lm"}}, False),
    ],
)
def test_captions_are_read_through_the_bridge_that_trained(objectives, bridged):
    model = tiny_model(tiny_config(objectives=objectives, bridge={"kind": "gate", "hidden": 8}))
    params = tiny_params(model, used=ALL | {"bridge"})
    params["bridge"] |= {"gamma": jnp.float32(1.0)}
    tokens = jnp.ones((2, TOKENS, WIDTH))
    used = parts(tiny_objectives(objectives))
    assert ("bridged_decoder" in used) == bridged
    read = beam_search(model, params, tokens, 4, 1, 1, (BOS, SEP), (), bridged)
    plain = beam_search(model, params, tokens, 4, 1, 1, (BOS, SEP), ())
    assert bool((read[1] != plain[1]).any()) == bridged
