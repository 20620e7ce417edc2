"""MLA's tower against Hugging Face's layers with acquirers between them: value, gradient, which languages learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_layers import bert, norm, stack_of

from xmodal_jax.data.config import DataConfig, FieldConfig
from xmodal_jax.errors import UserError
from xmodal_jax.models.acquirers import AcquirerConfig, Acquirers
from xmodal_jax.types import DataFacts, Vocabulary

TOWER = dict(vocab_size=50, width=16, layers=2, heads=4, hidden=24, positions=16, acquirer=6, word_width=10)
LANGUAGES, ROWS, LENGTH = 3, 4, 7


@pytest.fixture(scope="module")
def case():
    """A tiny BertModel, weights with its blocks as ours, and ids of several lengths in three languages."""
    model, draw = bert(cross=False, layers=2, width=16, heads=4, hidden=24), np.random.default_rng(0)

    def drawn(*shape):
        return draw.normal(0, 0.3, shape).astype(np.float32)

    tables = model.embeddings
    embed = {
        "word": drawn(50, 10),
        "project": {"kernel": drawn(10, 16), "bias": drawn(16)},
        "position": tables.position_embeddings.weight.detach().numpy(),
        "type": tables.token_type_embeddings.weight.detach().numpy(),
        "norm": norm(tables.LayerNorm),
    }
    acquirers = {
        "down": {"kernel": drawn(LANGUAGES, 2, 16, 6), "bias": drawn(LANGUAGES, 2, 6)},
        "up": {"kernel": drawn(LANGUAGES, 2, 6, 16), "bias": drawn(LANGUAGES, 2, 16)},
    }
    ids = draw.integers(1, 50, (ROWS, LENGTH + 1), dtype=np.int32)
    ids[1, 4:], ids[2, 2:], ids[:, -1] = 0, 0, [0, 2, 0, -1]
    params = {"embed": embed, "layers": stack_of(model.encoder.layer), "acquirers": acquirers}
    return model, jax.tree.map(jnp.asarray, params), ids


def reference(model, params, ids):
    """The tokens [B,L,D] by PyTorch, row by row, and the leaves that trained: acquirers, dense layer."""
    leaves = jax.tree.map(
        lambda x: torch.tensor(np.asarray(x), requires_grad=True), (params["acquirers"], params["embed"])
    )
    acquirers, embed = leaves
    rows = []
    for row in ids:
        words, language, mask = row[:-1], row[-1], torch.tensor(row[:-1] != 0)
        x = embed["word"][words] @ embed["project"]["kernel"] + embed["project"]["bias"]
        x = model.embeddings.LayerNorm(x + embed["position"][: len(words)] + embed["type"][0])[None]
        hidden = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[None, None, None]
        for number, layer in enumerate(model.encoder.layer):
            x = layer(x, attention_mask=hidden)
            x = x if isinstance(x, torch.Tensor) else x[0]

            def own(part, name, number=number, language=language):
                leaf = acquirers[part][name][:, number]
                return leaf.mean(0) if language < 0 else leaf[language]

            inner = torch.relu(x @ own("down", "kernel") + own("down", "bias"))
            x = x + inner @ own("up", "kernel") + own("up", "bias")
        rows.append(x[0])
    return torch.stack(rows), leaves


def test_value_and_gradient_are_those_of_hugging_faces_layers(case):
    model, params, ids = case
    mask = ids[:, :-1] != 0
    expected, (acquirers, embed) = reference(model, params, ids)
    (expected * torch.tensor(mask)[..., None]).square().sum().backward()

    def loss(params):
        tokens = Acquirers(**TOWER, languages=LANGUAGES).apply({"params": params}, ids)
        return jnp.square(jnp.where(mask[..., None], tokens, 0.0)).sum(), tokens

    (_, tokens), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(np.asarray(tokens)[mask], expected.detach().numpy()[mask], rtol=1e-4, atol=1e-5)
    trained = {"acquirers": acquirers, "embed": {name: leaf for name, leaf in embed.items() if name != "norm"}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        own = grads
        for key in path:
            own = own[key.key]
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=2e-3, atol=2e-4, err_msg=str(path))


def test_a_language_that_is_not_in_the_batch_learns_nothing(case):
    _, params, ids = case
    only = np.where(np.arange(LENGTH + 1) == LENGTH, 1, ids)

    def loss(acquirers):
        tokens = Acquirers(**TOWER, languages=LANGUAGES).apply({"params": params | {"acquirers": acquirers}}, only)
        return jnp.square(tokens[:, 0] - 1.0).sum()

    for leaf in jax.tree.leaves(jax.grad(loss)(params["acquirers"])):
        assert not np.asarray(leaf)[[0, 2]].any() and np.asarray(leaf)[1].any()


def test_acquirers_start_as_nothing_and_the_same_for_all_languages(case):
    _, params, ids = case
    module = Acquirers(**TOWER, languages=LANGUAGES)
    fresh = module.init(jax.random.key(0), ids)["params"]
    tokens = [
        module.apply({"params": {**params, "acquirers": fresh["acquirers"]}}, ids.at[:, -1].set(language))
        for ids in [jnp.asarray(ids)]
        for language in (0, 2, -1)
    ]
    assert all(np.array_equal(tokens[0], other) for other in tokens[1:])


def test_inputs_and_masks_leave_the_language_out():
    own = AcquirerConfig(length=LENGTH, languages=("de", "fr"), vocab_size=50)
    assert own.input(None) == ((LENGTH + 1,), "int32")
    ids = jnp.array([[5, 6, 0, 0, 0, 0, 0, 1], [5, 0, 0, 0, 0, 0, 0, -1]])
    assert own.mask(ids).sum(1).tolist() == [2, 1]


def test_a_language_to_train_on_without_acquirers_is_refused():
    facts = DataFacts(vocabularies={"text": Vocabulary(50)})
    data = DataConfig(fields={"text": FieldConfig(languages=("de", "fr"))})
    assert AcquirerConfig().filled("text", data, facts).languages == ("de", "fr")
    with pytest.raises(UserError, match="config.data has captions in 'fr', and config.encoders.text acquirers of de;"):
        AcquirerConfig(languages=("de",)).filled("text", data, facts)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"languages": ("de", "fr", "de")}, "config.encoders.text.languages has 'de' twice; write it once"),
        ({"cache_tokens": True}, "config.encoders.text.cache_tokens is True, and its acquirers train; write False"),
    ],
)
def test_impossible_configs_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        AcquirerConfig(vocab_size=50, **fields).check("config.encoders.text")
