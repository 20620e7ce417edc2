"""TF-IDF against plain NumPy vectors, the tower against PyTorch, and what does not count."""

import collections
import pathlib

import jax
import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_config, tiny_model

from xmodal_jax import config_file as configs
from xmodal_jax.assemble import assemble, document_frequencies
from xmodal_jax.checks import refuse_unserved
from xmodal_jax.errors import UserError
from xmodal_jax.models.tfidf import TfIdf, inverse_document_frequency, tfidf_weights
from xmodal_jax.objectives import build_objectives

VOCAB, SPECIAL = 12, (0, 1, 2)
TRAIN = np.array([[2, 5, 6, 5, 1, 0], [2, 6, 7, 1, 0, 0], [2, 6, 8, 9, 9, 1]], np.int32)
ASKED = np.array([[2, 5, 5, 5, 6, 1], [2, 9, 8, 1, 0, 0], [2, 11, 1, 0, 0, 0], [2, 11, 7, 1, 0, 0]], np.int32)


def by_hand(ids):
    """The TF-IDF vector of one caption, from the definition."""
    seen = [set(row) for row in TRAIN.tolist()]
    vector = np.zeros(VOCAB)
    for word, count in collections.Counter(ids.tolist()).items():
        having = sum(word in row for row in seen)
        if word not in SPECIAL and having:
            vector[word] = count * (np.log((1 + len(seen)) / (1 + having)) + 1)
    return vector / max(np.linalg.norm(vector), 1e-9)


IDF = inverse_document_frequency(TRAIN, VOCAB, SPECIAL)


def test_weights_add_up_to_the_vector():
    weights = np.asarray(tfidf_weights(ASKED, IDF))
    for row, ids in enumerate(ASKED):
        vector = np.bincount(ids, weights[row], VOCAB)
        np.testing.assert_allclose(vector, by_hand(ids), atol=1e-6)
    assert (weights[2] == 0).all()  # its only word is in no training caption
    np.testing.assert_allclose(weights[3], [0, 0, 1, 0, 0, 0], atol=1e-6)


def test_the_tower_is_a_dense_layer_over_the_vector(rng):
    params = {
        "idf": IDF,
        "words": {
            "kernel": rng.normal(size=(VOCAB, 7)).astype(np.float32),
            "bias": rng.normal(size=7).astype(np.float32),
        },
    }
    weights = rng.normal(size=(4, 1, 7)).astype(np.float32)

    def run(p):
        return TfIdf(VOCAB, 7).apply({"params": p}, ASKED)

    tokens, grads = jax.jit(run)(params), jax.jit(jax.grad(lambda p: (run(p) * weights).sum()))(params)
    kernel, bias = (torch.tensor(params["words"][name], requires_grad=True) for name in ("kernel", "bias"))
    vectors = torch.tensor(np.stack([by_hand(ids) for ids in ASKED]), dtype=torch.float32)
    expected = torch.relu(vectors @ kernel + bias)[:, None]
    (expected * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(tokens, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(grads["words"]["kernel"], kernel.grad, atol=1e-5)
    np.testing.assert_allclose(grads["words"]["bias"], bias.grad, atol=1e-5)
    assert (np.asarray(grads["idf"]) == 0).all()


def test_word_order_and_special_ids_change_nothing(rng):
    params = TfIdf(VOCAB, 5).init(jax.random.key(0), ASKED)["params"] | {"idf": IDF}

    def run(ids, key=None):
        return np.asarray(TfIdf(VOCAB, 5, 0.5).apply({"params": params}, ids, key))

    other = np.array([[0, 6, 5, 0, 5, 5]], np.int32)  # the first caption's words alone, in another order
    np.testing.assert_allclose(run(other), run(ASKED[:1]), atol=1e-6)
    assert not np.allclose(run(ASKED, jax.random.key(1)), run(ASKED))


def test_a_run_keeps_the_frequencies_of_its_training_captions(shapes_data, tmp_path):
    """What evaluation reads of the checkpoint is what the training captions give, after steps of both optimizers."""
    from xmodal_jax.training.loop import train
    from xmodal_jax.workdir import open_run

    path = pathlib.Path(__file__).parents[2] / "configs" / "cmhr_drn.py"
    vit = {"kind": "vit", "width": 32, "patch": 8, "layers": 1, "heads": 2, "hidden": 64}
    small = ("batch_size=8", "encoders.image.size=16", "steps=2", f"encoders.image={vit}", "encoders.text.width=16")
    config = configs.freeze(configs.load(f"{path}:tiny", [f"data.path={shapes_data}", *small]))
    train(config, tmp_path)
    assembly, params, _ = open_run(tmp_path)
    idf = np.asarray(params["text"]["tower"]["idf"])
    np.testing.assert_allclose(idf, document_frequencies(assemble(config))["text/tower/idf"], rtol=1e-5)
    ids = assembly.tokenizer.encode(["a red circle"], 12)[0]
    assert (idf[assembly.tokenizer.special_ids] == 0).all() and idf[ids[2]] > idf[ids[1]] > 0  # "red" is rarer than "a"


@pytest.mark.parametrize(
    "objective, asked",
    [
        ("itm", "fusion"),
        ("mlm", "fusion, vocabulary"),
        ("lm", "decoder, fusion, vocabulary"),
        ("lmim", "locals"),
    ],
)
def test_objectives_that_read_words_are_refused(objective, asked):
    config = tiny_config(text={"kind": "tfidf"}, objectives={"itc": {}, objective: {}})
    sentence = (
        f"config.objectives.{objective} needs {asked} of config.encoders.text, .* keeps no words to read; "
        "write config.encoders.text.kind=bert"
    )
    with pytest.raises(UserError, match=sentence):
        refuse_unserved(config, build_objectives(config.objectives))
    refuse_unserved(tiny_config(text={"kind": "tfidf"}), build_objectives({"itc": {}, "hash": {}}))


def test_one_token_of_a_text_makes_its_embedding():
    config = tiny_config(text={"kind": "tfidf", "width": 24}, objectives={"hash": {}})
    model, batch = tiny_model(config), tiny_batch()
    inputs = {name: batch[name] for name in ("image", "text")}
    params = jax.jit(lambda: model.init(jax.random.key(0), inputs, frozenset(), method="init_all"))()
    tokens, embed = jax.jit(lambda p: model.apply(p, "text", batch["text"], method="encode"))(params)
    assert tokens.shape == (8, 1, 24) and embed.shape == (8, 8)
    np.testing.assert_allclose(np.linalg.norm(embed, axis=1), 1, rtol=1e-3)
