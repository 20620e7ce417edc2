"""The decoder against Hugging Face's causal BERT layers, its causality, and what it shares with the encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import CLS, LENGTH, WIDTH, tiny_batch, tiny_config, tiny_model, tiny_params
from torch_layers import attention, bert, run_layers, stack_of, stacked

from xmodal_jax.models.crossmodal import CrossModal


@pytest.fixture(scope="module")
def case():
    """A model whose text tower, fusion and decoder hold the weights of three BERTs, and those BERTs."""
    model = tiny_model(tiny_config())
    params = jax.tree.map(np.array, jax.jit(lambda: tiny_params(model, used=frozenset({"decoder"})))())
    text, fusion, own = (
        bert(cross, layers, WIDTH, 2, 24, vocab=32, positions=LENGTH)
        for cross, layers in ((False, 2), (True, 1), (False, 3))
    )
    params["text"]["tower"]["layers"] = stack_of(text.encoder.layer)
    params["fusion"]["layers"] = stack_of(fusion.encoder.layer)
    places = {"text_attention": own.encoder.layer[:2], "fusion_attention": own.encoder.layer[2:]}
    params["decoder"] = {
        name: stacked([attention(layer.attention) for layer in layers]) for name, layers in places.items()
    }
    return model, params, (text, fusion, own)


@pytest.fixture(scope="module")
def decode(case):
    """The compiled decoder: (params, image tokens, ids, rows) -> hidden states."""
    model = case[0]
    return jax.jit(
        lambda params, image, ids, rows=None: model.apply({"params": params}, image, ids, rows, method="decode")
    )


@pytest.fixture(scope="module")
def inputs():
    """Image tokens [8,5,16] and ids [8,8]."""
    return np.random.default_rng(2).normal(size=(8, 5, WIDTH)).astype(np.float32), tiny_batch()["text"]


def test_states_are_those_of_causal_bert_layers(case, decode, inputs):
    model, params, (text, fusion, own) = case
    image, ids = inputs
    for mine, theirs in zip([*text.encoder.layer, *fusion.encoder.layer], own.encoder.layer, strict=True):
        mine.attention = theirs.attention
    embedded = model.apply({"params": params}, ids, method=lambda m, x: m.text.tower.embed_tokens(x))
    mask = np.tril(np.ones((LENGTH, LENGTH), bool))[None, None] & (ids != 0)[:, None, None, :]
    with torch.no_grad():
        x = run_layers(text.encoder.layer, torch.tensor(np.array(embedded)), mask)
        expected = run_layers(fusion.encoder.layer, x, mask, torch.tensor(image)).numpy()
    real = ids != 0
    np.testing.assert_allclose(np.asarray(decode(params, image, ids))[real], expected[real], atol=3e-5)


def test_a_later_token_never_changes_an_earlier_state(case, decode, inputs):
    image, ids = inputs
    before = np.asarray(decode(case[1], image, ids))
    for place in (1, 3, LENGTH - 1):
        changed = ids.copy()
        changed[:, place] = np.where(ids[:, place] == 9, 10, 9)
        after = np.asarray(decode(case[1], image, changed))
        np.testing.assert_allclose(after[:, :place], before[:, :place], atol=1e-6)
        assert np.abs(after[:, place] - before[:, place]).max(axis=-1).min() > 1e-3


def test_rows_pick_the_image(case, decode, inputs):
    image, ids = inputs
    rows = np.array([3, 3, 0, 1, 2, 7, 7, 5], np.int32)
    np.testing.assert_allclose(decode(case[1], image, ids, rows), decode(case[1], image[rows], ids), atol=1e-5)


def test_the_start_of_a_row_is_that_of_its_language(case, decode, inputs):
    """As if the word at the first place had the sum of both embeddings, and no other word of the row had."""
    (plain, params, _), (image, ids) = case, inputs
    model = CrossModal(plain.config, starts=("en", "de", "fr"))
    start = np.random.default_rng(5).normal(size=(3, WIDTH)).astype(np.float32)
    assert jax.eval_shape(lambda: tiny_params(model))["decoder"]["start"].shape == start.shape
    own = {"params": params | {"decoder": params["decoder"] | {"start": start}}}
    language = np.array([2, 0, 1, 1, 0, 2, 2, 0], np.int32)
    found = jax.jit(lambda own: model.apply(own, image, ids, language=language, method="decode"))(own)
    found = np.asarray(found)
    for code in range(3):
        changed = jax.tree.map(np.array, params)
        changed["text"]["tower"]["embed"]["word"][CLS] += start[code]
        rows = language == code
        np.testing.assert_allclose(found[rows], np.asarray(decode(changed, image, ids))[rows], atol=3e-5)
    assert np.abs(found - decode(params, image, ids)).max(axis=-1).min(axis=-1).min() > 1e-3, "none is left as it was"


def test_masked_tokens_of_the_memory_are_not_read(case, inputs):
    (model, params, _), (image, ids) = case, inputs
    seen = np.arange(image.shape[1])[None, :] < np.array([5, 1, 2, 3, 4, 5, 1, 2])[:, None]
    run = jax.jit(lambda image, mask: model.apply({"params": params}, image, ids, memory_mask=mask, method="decode"))
    found = run(image, seen)
    np.testing.assert_allclose(run(np.where(seen[..., None], image, 7.0).astype(np.float32), seen), found, atol=1e-5)
    assert float(np.abs(run(image, None) - found).max()) > 1e-3


def test_only_self_attention_is_the_decoders_own(case, decode, inputs):
    _, params, _ = case
    image, ids = inputs
    assert set(params["decoder"]) == {"text_attention", "fusion_attention"}
    assert jax.tree.map(jnp.shape, params["decoder"]["text_attention"]) == jax.tree.map(
        jnp.shape, params["text"]["tower"]["layers"]["attention"]
    )
    before = np.asarray(decode(params, image, ids))

    def changed(*path):
        copy = jax.tree.map(np.array, params)
        node = copy
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = jax.tree.map(lambda x: x * 1.5 + 0.1, node[path[-1]])
        return np.abs(np.asarray(decode(copy, image, ids)) - before).max()

    shared = [
        ("text", "tower", "layers", "mlp"),
        ("fusion", "layers", "mlp"),
        ("fusion", "layers", "cross"),
        ("text", "tower", "embed", "word"),
    ]
    own = [("decoder", "text_attention"), ("decoder", "fusion_attention")]
    unread = [("text", "tower", "layers", "attention"), ("fusion", "layers", "attention")]
    assert all(changed(*path) > 1e-3 for path in shared + own)
    assert all(changed(*path) == 0 for path in unread)
