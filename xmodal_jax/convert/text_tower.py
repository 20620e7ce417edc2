"""Rewrite a text tower of Hugging Face's into the conventions of this package: padding is id 0, positions begin at 0.

XLM-R and RoBERTa have <s> at 0 and <pad> at 1, and their positions begin after that of the padding. `written` exchanges
the two ids in the word table and in tokenizer.json alike, so the folder is as right for Hugging Face's `BertModel` as
before, and `encoders.NAME.init` and `encoders.NAME.tokenizer` read it.
"""

import json
import pathlib
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal_jax.convert.described import read_description
from xmodal_jax.convert.huggingface import read_weights
from xmodal_jax.errors import UserError

PADDINGS = ("<pad>", "[PAD]")
SHIFTED = ("roberta", "xlm-roberta", "camembert")  # model types whose positions begin after the padding's id
UNLIKELY = -1000.0  # score of a special token among pieces: in a text it is spelled out
FIELDS = {  # key of config.json -> field of the encoder, to be written beside `init`
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "max_position_embeddings": "positions",
    "layer_norm_eps": "eps",
}
TABLES = {part: f"embeddings.{part}_embeddings.weight" for part in ("word", "position", "token_type")}


@dataclass(frozen=True)
class TextTower:
    """What a folder of a text tower has."""

    state: dict[str, np.ndarray]
    """Weights by the names of `BertModel`."""
    description: dict[str, Any]
    """Content of config.json."""
    tokenizer: dict[str, Any]
    """Content of tokenizer.json."""


def read_folder(folder: str | pathlib.Path) -> TextTower:
    """Read a folder with weights, config.json and tokenizer.json. Raises UserError where one is missing or no JSON."""
    folder = pathlib.Path(folder)
    files = {name: read_description(folder, name)[1] for name in ("config.json", "tokenizer.json")}
    for name, content in files.items():
        if not content:
            raise UserError(f"'{folder}' has no {name}; write a folder as Hugging Face's save_pretrained makes it")
    description = files["config.json"]
    prefixes = ("bert.", "roberta.")
    state = {name: array for name, array in read_weights(folder).items() if "pooler" not in name}
    for prefix in prefixes:
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    if missing := [name for name in TABLES.values() if name not in state]:
        raise UserError(f"'{folder}' has no weight '{missing[0]}'; it is no BERT, RoBERTa or XLM-R")
    return TextTower(state, description, files["tokenizer.json"])


def count_ids(tokenizer: dict[str, Any]) -> int:
    """Return one more than the largest id."""
    vocabulary = tokenizer["model"]["vocab"]
    listed = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    return 1 + max([*listed, *(token["id"] for token in tokenizer["added_tokens"])])


def padding_of(tokenizer: dict[str, Any]) -> int:
    """Return the id of the padding. Raises UserError where the tokenizer has none."""
    for token in tokenizer.get("added_tokens", ()):
        if token["content"] in PADDINGS:
            return int(token["id"])
    raise UserError(f"tokenizer.json has no token {' or '.join(PADDINGS)}; use that of a BERT, RoBERTa or XLM-R")


def rewritten(tower: TextTower) -> TextTower:
    """Return the tower with padding at 0, positions from 0, two segments, and special tokens that no text spells.

    Word tables are often longer than the vocabulary; further rows are left out. Raises UserError for another kind of
    model, and for a table that is too short.
    """
    pad, kind = padding_of(tower.tokenizer), tower.description.get("model_type", "bert")
    if kind not in ("bert", *SHIFTED):
        raise UserError(f"config.json says that this is a '{kind}' model; write one of bert, {', '.join(SHIFTED)}")
    first = pad + 1 if kind in SHIFTED else 0
    state, count = dict(tower.state), count_ids(tower.tokenizer)
    if len(state[TABLES["word"]]) < count:
        raise UserError(
            f"tokenizer.json has {count} ids and the word table {len(state[TABLES['word']])} rows; take both from one "
            "folder"
        )
    state[TABLES["word"]] = exchanged_rows(state[TABLES["word"]][:count], pad)
    state[TABLES["position"]] = state[TABLES["position"]][first:]
    segments = state[TABLES["token_type"]]
    state[TABLES["token_type"]] = np.concatenate([segments, np.zeros_like(segments)])[:2]
    sizes = {"max_position_embeddings": len(state[TABLES["position"]]), "type_vocab_size": 2, "pad_token_id": 0}
    named = {"model_type": "bert", "architectures": ["BertModel"]}
    sizes["vocab_size"] = len(state[TABLES["word"]])
    return TextTower(state, tower.description | named | sizes, exchanged_ids(tower.tokenizer, pad))


def exchanged_rows(table: np.ndarray, pad: int) -> np.ndarray:
    """Return the table with rows 0 and `pad` exchanged."""
    order = np.arange(len(table))
    order[[0, pad]] = pad, 0
    return table[order]


def exchanged_ids(tokenizer: dict[str, Any], pad: int) -> dict[str, Any]:
    """Return the content of tokenizer.json with ids 0 and `pad` exchanged, and special pieces made unlikely."""

    def other(number: int) -> int:
        return {0: pad, pad: 0}.get(number, number)

    model, special = dict(tokenizer["model"]), {token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {token: other(number) for token, number in vocabulary.items()}
    else:
        rows = [vocabulary[other(number)] for number in range(len(vocabulary))]
        model["vocab"] = [[piece, UNLIKELY if piece in special else score] for piece, score in rows]
        model["unk_id"] = other(model["unk_id"])
    added = [token | {"id": other(token["id"])} for token in tokenizer["added_tokens"]]
    added.sort(key=lambda token: token["id"])  # as the library wants them
    return tokenizer | {"model": model, "added_tokens": added, "post_processor": None}


def write_folder(tower: TextTower, folder: str | pathlib.Path) -> None:
    """Write model.safetensors (float32), config.json and tokenizer.json of a `rewritten` tower, in one step.

    Raises UserError where `folder` exists.
    """
    from safetensors.numpy import save_file

    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"'{folder}' exists; write another --out, nothing was overwritten")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in tower.state.items()}
    save_file(arrays, part / "model.safetensors", metadata={"format": "pt"})
    (part / "config.json").write_text(json.dumps(tower.description, indent=2) + "\n", "utf-8")
    (part / "tokenizer.json").write_text(json.dumps(tower.tokenizer, ensure_ascii=False), "utf-8")
    part.rename(folder)
