"""A model.bin of CTranslate2 for tests: written here by its description, with small weights of Whisper's encoder."""

import struct

import numpy as np

TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def name_of(text):
    """A text as the file has it."""
    data = text.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def model_bin(variables, version=6, aliases=()):
    """The bytes of a file."""
    out = [struct.pack("<I", version), name_of("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        head = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += [name_of(name), head, struct.pack("<BI", TYPES[str(array.dtype)], array.nbytes), array.tobytes()]
    out += [struct.pack("<I", len(aliases)), *(name_of(name) + name_of(target) for name, target in aliases)]
    return b"".join(out)


def encoder_variables(width=16, layers=2, mels=8, positions=20, heads=2, seed=0, dtype=np.float16):
    """Random weights of an encoder, and one variable of a decoder."""
    rng = np.random.default_rng(seed)

    def draw(*shape, scale=0.2):
        return (scale * rng.normal(size=shape)).astype(dtype)

    def norm(at):
        return {f"{at}/gamma": 1 + draw(width), f"{at}/beta": draw(width)}

    def dense(at, inputs, outputs):
        return {f"{at}/weight": draw(outputs, inputs), f"{at}/bias": draw(outputs)}

    found = {
        "encoder/conv1/weight": draw(width, mels, 3),
        "encoder/conv1/bias": draw(width),
        "encoder/conv2/weight": draw(width, width, 3),
        "encoder/conv2/bias": draw(width),
        "encoder/position_encodings/encodings": draw(positions, width),
        "encoder/num_heads": np.array(heads, np.int16),
        "decoder/embeddings/weight": draw(5, width),
    } | norm("encoder/layer_norm")
    for layer in range(layers):
        at = f"encoder/layer_{layer}"
        found |= norm(f"{at}/self_attention/layer_norm") | norm(f"{at}/ffn/layer_norm")
        found |= dense(f"{at}/self_attention/linear_0", width, 3 * width)
        found |= dense(f"{at}/self_attention/linear_1", width, width)
        found |= dense(f"{at}/ffn/linear_0", width, 4 * width) | dense(f"{at}/ffn/linear_1", 4 * width, width)
    return found
