"""The recurrent text tower against PyTorch's packed bidirectional GRU, and what it is refused for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_config, tiny_model

from xmodal_jax.checks import refuse_unserved
from xmodal_jax.config_checks import check
from xmodal_jax.errors import UserError
from xmodal_jax.models.gru import Gru
from xmodal_jax.objectives import build_objectives

VOCAB, WORDS, WIDTH = 11, 6, 5
IDS = np.array([[2, 5, 6, 7, 1], [2, 9, 1, 0, 0], [2, 8, 8, 1, 0]], np.int32)


@pytest.fixture(scope="module")
def tower():
    """A tower of one layer and its parameters, biases not zero."""
    model = Gru(VOCAB, WIDTH, WORDS)
    params = model.init(jax.random.key(0), IDS)["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), params)


def torch_gru(params):
    """PyTorch's GRU with the same weights: gates in the order reset, update, new; one bias for both sides of a gate."""
    cell = torch.nn.GRU(WORDS, WIDTH, batch_first=True, bidirectional=True)
    for name, suffix in (("forward", ""), ("backward", "_reverse")):
        own = params[f"gru_{name}_0"]

        def bias(gate, own=own):
            return torch.tensor(np.asarray(own[gate].get("bias", np.zeros(WIDTH))))

        def stack(gates, own=own):
            return torch.cat([torch.tensor(np.asarray(own[gate]["kernel"])).T for gate in gates])

        values = {
            "weight_ih": stack(("ir", "iz", "in")),
            "weight_hh": stack(("hr", "hz", "hn")),
            "bias_ih": torch.cat([bias(gate) for gate in ("ir", "iz", "in")]),
            "bias_hh": torch.cat([bias(gate) for gate in ("hr", "hz", "hn")]),
        }
        for kind, value in values.items():
            getattr(cell, f"{kind}_l0{suffix}").data = value.float()
    return cell


def expected(params, table):
    """Tokens by PyTorch: packed sequences, the mean of the two directions."""
    lengths = torch.tensor((IDS != 0).sum(1))
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        table[torch.tensor(IDS).long()], lengths, True, enforce_sorted=False
    )
    both, _ = torch.nn.utils.rnn.pad_packed_sequence(torch_gru(params)(packed)[0], batch_first=True, total_length=5)
    return 0.5 * (both[..., :WIDTH] + both[..., WIDTH:])


def test_tokens_and_the_words_gradient_are_torchs(tower, rng):
    model, params = tower
    weights = rng.normal(size=(3, 5, WIDTH)).astype(np.float32)

    def run(p):
        return model.apply({"params": p}, IDS)

    tokens, grads = jax.jit(run)(params), jax.jit(jax.grad(lambda p: (run(p) * weights).sum()))(params)
    table = torch.tensor(np.array(params["embed"]["word"]), requires_grad=True)
    right = expected(params, table)
    np.testing.assert_allclose(tokens, right.detach(), atol=1e-5)
    (right * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(grads["embed"]["word"], table.grad, atol=1e-5)


def test_padding_changes_nothing(tower):
    model, params = tower
    run = jax.jit(lambda ids: model.apply({"params": params}, ids))
    whole, short = run(IDS), run(IDS[1:2, :3])
    np.testing.assert_allclose(whole[1:2, :3], short, atol=1e-6)
    assert (np.asarray(whole)[IDS == 0] == 0).all()


def test_bfloat16_is_bfloat16_at_every_word(tower):
    """Also what goes from word to word: promotion is strict here, so one float32 beside a bfloat16 would raise."""
    _, params = tower
    model = Gru(VOCAB, WIDTH, WORDS, dtype=jnp.bfloat16)
    tokens = jax.jit(lambda p: model.apply({"params": p}, IDS))(params)
    assert tokens.dtype == jnp.bfloat16
    right = expected(params, torch.tensor(np.array(params["embed"]["word"]))).detach()
    np.testing.assert_allclose(tokens.astype(jnp.float32), right, atol=0.03)


def test_dropout_is_on_the_words_and_only_with_a_key(tower):
    _, params = tower
    model = Gru(VOCAB, WIDTH, WORDS, dropout=0.5)
    run = jax.jit(lambda key: model.apply({"params": params}, IDS, key))
    plain = model.apply({"params": params}, IDS)
    assert not np.allclose(run(jax.random.key(1)), plain)
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))


def test_fusion_reads_its_tokens_in_a_whole_model():
    config = tiny_config(
        text={"kind": "gru", "width": 18, "words": 6, "layers": 2}, objectives={"itm": {}}, fusion={"heads": 2}
    )
    model, batch = tiny_model(config), tiny_batch()
    make = jax.jit(
        lambda: model.init(
            jax.random.key(0),
            {name: batch[name] for name in ("image", "text")},
            frozenset({"fusion"}),
            method="init_all",
        )
    )
    params = make()
    assert {"gru_forward_0", "gru_backward_1"} <= set(params["params"]["text"]["tower"])
    tokens, embed = jax.jit(lambda p: model.apply(p, "text", batch["text"], method="encode"))(params)
    assert tokens.shape == (*batch["text"].shape, 18) and embed.shape == (8, config.joint.embed)


@pytest.mark.parametrize("objective, asked", [("mlm", "vocabulary"), ("lm", "decoder, vocabulary")])
def test_writing_is_refused(objective, asked):
    config = tiny_config(text={"kind": "gru"}, objectives={"itc": {}, objective: {}})
    sentence = (
        f"config.objectives.{objective} needs {asked} of config.encoders.text, "
        "whose kind 'gru' has no blocks that write"
        ".*; write config.encoders.text.kind=bert"
    )
    with pytest.raises(UserError, match=sentence):
        refuse_unserved(config, build_objectives(config.objectives))
    refuse_unserved(tiny_config(text={"kind": "gru"}), build_objectives({"itc": {}, "itm": {}, "lmim": {}}))


def test_berts_weights_are_refused():
    sentence = "config.encoders.text.init is 'minilm', but config.encoders.text.kind is 'gru'.*write ''"
    with pytest.raises(UserError, match=sentence):
        check(tiny_config(text={"kind": "gru", "init": "minilm"}))
