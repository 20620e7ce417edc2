"""The BERT tower against Hugging Face's, value and gradient; padding, dropout and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_layers import bert, norm, stack_of

from xmodal_jax.models.bert import Bert, padding_mask

TOWER = dict(vocab_size=40, width=16, layers=2, heads=4, hidden=24, positions=16)


@pytest.fixture(scope="module")
def case():
    """A tiny BertModel, its weights as ours, and ids of several lengths."""
    model = bert(cross=False, layers=2, width=16, heads=4, hidden=24)
    tables = model.embeddings
    embed = {
        "word": tables.word_embeddings,
        "position": tables.position_embeddings,
        "type": tables.token_type_embeddings,
    }
    embed = {name: table.weight.detach().numpy() for name, table in embed.items()} | {"norm": norm(tables.LayerNorm)}
    ids = np.random.default_rng(0).integers(1, 40, (3, 7), dtype=np.int32)
    ids[1, 4:], ids[2, 1:] = 0, 0
    return model, jax.tree.map(jnp.asarray, {"embed": embed, "layers": stack_of(model.encoder.layer)}), ids


def test_value_and_gradient_are_hugging_faces(case):
    model, params, ids = case
    mask = ids != 0
    expected = model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).last_hidden_state
    (expected * torch.tensor(mask)[..., None]).square().sum().backward()

    def loss(params):
        tokens = Bert(**TOWER).apply({"params": params}, ids)
        return jnp.square(jnp.where(mask[..., None], tokens, 0.0)).sum(), tokens

    (_, tokens), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(np.asarray(tokens)[mask], expected.detach().numpy()[mask], atol=2e-5)
    word = model.embeddings.word_embeddings.weight.grad.clone()
    np.testing.assert_allclose(np.asarray(grads["embed"]["word"])[1:], word[1:], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        grads["embed"]["position"], model.embeddings.position_embeddings.weight.grad, rtol=1e-3, atol=1e-3
    )
    for layer, theirs in enumerate(model.encoder.layer):
        mine = grads["layers"]["attention"]["value"]["kernel"][layer]
        np.testing.assert_allclose(mine, theirs.attention.self.value.weight.grad.T, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(
            grads["layers"]["mlp"]["norm"]["scale"][layer], theirs.output.LayerNorm.weight.grad, rtol=1e-3, atol=1e-3
        )


def test_what_stands_in_the_padding_changes_no_real_token(case):
    _, params, ids = case
    run = jax.jit(lambda ids: Bert(**TOWER).apply({"params": params}, ids))
    longer = np.pad(ids, ((0, 0), (0, 3)))
    np.testing.assert_allclose(np.asarray(run(longer))[:, :7][ids != 0], np.asarray(run(ids))[ids != 0], atol=1e-5)


def test_padding_mask_is_false_at_zero():
    mask = padding_mask(jnp.array([[2, 5, 0], [2, 0, 0]]))
    assert mask.shape == (2, 1, 1, 3)
    np.testing.assert_array_equal(mask[:, 0, 0], [[True, True, False], [True, False, False]])


def test_dropout_needs_a_key_and_depends_on_it(case):
    _, params, ids = case

    def run(key):
        return np.asarray(Bert(**TOWER, dropout=0.4).apply({"params": params}, ids, key))

    np.testing.assert_allclose(run(None), Bert(**TOWER).apply({"params": params}, ids), atol=1e-6)
    assert not np.allclose(run(jax.random.key(0)), run(None))
    assert not np.allclose(run(jax.random.key(0)), run(jax.random.key(1)))


def test_bfloat16_stays_near_float32(case):
    _, params, ids = case
    half = Bert(**TOWER, dtype=jnp.bfloat16).apply({"params": params}, ids)
    full = np.asarray(Bert(**TOWER).apply({"params": params}, ids))
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.asarray(half, np.float32) - full)[ids != 0].max() < 0.15


def test_params_have_the_layout_of_the_table(case):
    made = jax.eval_shape(lambda: Bert(**TOWER).init(jax.random.key(0), case[2]))["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, case[1])
