"""Mutated index folders: bytes flipped, cut, doubled or overwritten, files swapped or deleted, headers rewritten."""

import json
import pathlib
import random

from xmodal_jax.search import files

ODD = [None, True, -1, 0, 1, 3, 2**40, 1e308, "", "x", "../x", [], {}, [1], {"file": "x"}, float("nan")]


def spoil(path: pathlib.Path, seed: int) -> str:
    """Change one thing in the index folder at `path`; what it was."""
    draw = random.Random(seed)
    if draw.random() < 0.35:
        return spoil_header(path, draw)
    file = draw.choice(sorted(path.iterdir()))
    how = draw.choice([flip, cut, double, zero, fill, swap, delete, folder])
    how(file, draw)
    return f"{how.__name__} {file.name}"


def spoil_header(path: pathlib.Path, draw: random.Random) -> str:
    """Put an odd value somewhere in the header, or take one away, and sign it as if a writer had done that."""
    header = json.loads((path / files.HEADER).read_text())
    places = [(header, key) for key in header]
    for entries in header["blocks"].values():
        places += [(entry, key) for entry in entries for key in entry] + [(entries, i) for i in range(len(entries))]
    places += [(header["blocks"], key) for key in header["blocks"]] + [
        (header["extra"], key) for key in header["extra"]
    ]
    where, key = draw.choice(places)
    value = draw.choice(ODD)
    if draw.random() < 0.2:
        del where[key]
    else:
        where[key] = value
    if draw.random() < 0.9:
        header.pop("checksum", None)
        header["checksum"] = files.header_sum(header)
    (path / files.HEADER).write_text(json.dumps(header))
    return f"header {key} = {value!r}"


def flip(file, draw):
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def cut(file, draw):
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(len(data))])


def double(file, draw):
    file.write_bytes(file.read_bytes() * 2)


def zero(file, draw):
    file.write_bytes(bytes(file.stat().st_size))


def fill(file, draw):
    file.write_bytes(draw.randbytes(file.stat().st_size))


def swap(file, draw):
    other = draw.choice(sorted(file.parent.iterdir()))
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


def delete(file, draw):
    file.unlink()


def folder(file, draw):
    file.unlink()
    file.mkdir()
