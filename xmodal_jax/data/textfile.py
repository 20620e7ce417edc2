"""Text that files hold or can hold.

Files are read as UTF-8, with or without a byte order mark; the error for another encoding names it, and the
command that converts the file.
"""

import hashlib
import json
import os
import pathlib
import shlex
from typing import Any

from xmodal_jax.errors import UserError


def wide_encoding(data: bytes) -> str:
    """Return the name, as `iconv` writes it, of the UTF-16 or UTF-32 that `data` begins in; "" for any other text."""
    found = json.detect_encoding(data) if any(data) else ""  # zeros alone tell nothing
    return found.upper().replace("-LE", "LE").replace("-BE", "BE") if found.startswith(("utf-16", "utf-32")) else ""


def refuse_wide(data: bytes, path: os.PathLike | str) -> None:
    """Raise `UserError` with the command that converts the file if `data`, its start, is UTF-16 or UTF-32."""
    name = wide_encoding(data)
    if name:
        raise UserError(f"{path} is {name} text and must be UTF-8; convert it: {_command(path, name)}")


def not_utf8(path: os.PathLike | str, where: str) -> UserError:
    """Return the error for a file with bytes that are not UTF-8; `where` tells which."""
    return UserError(
        f"{path} is not UTF-8 text ({where}); convert it from its own encoding, such as Windows-1252 "
        f"(Latin-1): {_command(path, 'WINDOWS-1252')}"
    )


def _command(path: os.PathLike | str, encoding: str) -> str:
    """Return the command that converts a file from an encoding."""
    path = pathlib.Path(path)
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(f'{path.stem}-utf8{path.suffix}')}"


def read_text(path: os.PathLike | str, lenient: bool = False) -> str:
    """Return the text of a UTF-8 file with "\\n" as its line ends; `lenient` puts U+FFFD for bytes that are not UTF-8.

    Raises `UserError` for UTF-16, UTF-32 and, unless `lenient`, any other encoding, with the command that converts it.
    """
    data = pathlib.Path(path).read_bytes()
    refuse_wide(data[:4], path)
    try:
        text = data.decode("utf-8-sig", "replace" if lenient else "strict")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise not_utf8(path, f"line {line} has the byte 0x{data[error.start]:02x}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: os.PathLike | str, lenient: bool = False) -> list[str]:
    """Return all lines of a text file, empty ones too, since the n-th belongs to the n-th of something else.

    Raises `UserError` as `read_text`.
    """
    lines = read_text(path, lenient).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: os.PathLike | str) -> Any:
    """Return the content of a JSON file. Raises `UserError` for another encoding and for content that is not JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets, a thousand deep
        raise UserError(f"{path} is not JSON ({error}); download it again, or give another file.") from error


def mended(text: str) -> str:
    """Return `text` with U+FFFD for each half of a surrogate pair, such as an emoji cut in two: UTF-8 has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def hashed(text: str) -> str:
    """Return the SHA-256 of any text, even one with half a surrogate pair."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
