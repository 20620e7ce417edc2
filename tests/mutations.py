"""Damaged copies of small good files, and what a command may answer to one: code 0 or 2, and one sentence."""

import io
import os
import re

import numpy as np

QUICK, SLOW = 100, 2000
TOKENS = (
    b"null",
    b"-1",
    b"1e999",
    b"[]",
    b"{}",
    b'""',
    b'"\\ud83d"',
    b'"\\u0000"',
    b"true",
    b"NaN",
    b"9" * 400,
    b'"x"',
    b"0.5",
    b"[" * 50,
    b'{"a":',
    b",",
    b"\xff\xfe",
    b"\x00",
    b"\r\n",
    b'"../../x"',
)


def mutated(data: bytes, draw: np.random.Generator, tokens: tuple[bytes, ...] = ()) -> bytes:
    """`data` after one to four changes: bits turned, a part cut, zeroed, repeated or moved, bytes or a token put in."""
    changed = bytearray(data)
    for _ in range(int(draw.integers(1, 5))):
        size = len(changed)
        if size < 2:
            break
        first = int(draw.integers(size))
        last = min(size, first + int(draw.integers(1, max(2, size // 8))))
        kind = int(draw.integers(12 if tokens else 6))  # half of the changes of a text are tokens
        if kind == 0:
            for place in draw.integers(size, size=int(draw.integers(1, 9))):
                changed[place] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            del changed[first:]
        elif kind == 2:
            changed[first:last] = bytes(last - first)
        elif kind == 3:
            del changed[first:last]
        elif kind == 4:
            changed[first:first] = changed[first:last]
        elif kind == 5:
            changed[first:last] = draw.bytes(last - first)
        else:
            _put_token(changed, tokens[int(draw.integers(len(tokens)))], draw)
    return bytes(changed)


def _put_token(changed: bytearray, token: bytes, draw: np.random.Generator) -> None:
    """Put `token` in place of one value of a JSON text, or anywhere where there is none."""
    found = list(re.finditer(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null', bytes(changed)))
    if found:
        value = found[int(draw.integers(len(found)))]
        changed[value.start() : value.end()] = token
    else:
        place = int(draw.integers(len(changed)))
        changed[place:place] = token


def counts(quick: int = QUICK, slow: int = SLOW) -> list:
    """Parameters of a test: how many files in the quick tier, and in the slow one."""
    import pytest

    return [quick, pytest.param(slow, marks=pytest.mark.slow)]


def check_answer(code: int, said: str, wanted: tuple[int, ...] = (0, 2)) -> None:
    """Fail unless a command ended with one of the `wanted` codes, without a traceback, and 2 with one sentence."""
    assert code in wanted, (code, said[-2000:])
    assert "Traceback" not in said, said[-4000:]
    if code == 2:
        sentences = [line for line in said.splitlines() if line.startswith("xmodal: ")]
        assert len(sentences) == 1 and len(sentences[0]) > 20, said[-2000:]
        assert " object at 0x" not in said, said[-2000:]


def encoded(picture, kind: str, **options) -> bytes:
    """A Pillow picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def restore(path: os.PathLike, data: bytes) -> None:
    """Write a file that may be memory-mapped by an earlier reader: under a new inode."""
    new = f"{path}.new"
    with open(new, "wb") as file:
        file.write(data)
    os.replace(new, path)
