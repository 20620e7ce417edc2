"""Files that a list or a command line names: found despite their spelling, and read only if they are files."""

import hashlib
import os
import pathlib
import re
import stat
import unicodedata
import urllib.parse
from typing import NamedTuple

ABSENT = -1
MISSING = "missing image"

URL = re.compile(r"(?:.*/)?(https?|ftp|s3|gs):/+(.+)", re.DOTALL)  # a path object has eaten one of its slashes
KINDS = {"d": "folder", "p": "pipe", "s": "socket", "c": "device", "b": "device"}  # by `stat.filemode`


class FileState(NamedTuple):
    """State of a file: enough to notice that it was replaced, created or removed."""

    path: str
    """Absolute path."""
    size: int
    """Size in bytes; `ABSENT` if there is no such file."""
    changed: int
    """Time of the last change in ns."""
    digest: str = ""
    """Digest of the content; "" if unknown."""


class UnreadableFile(Exception):
    """A file that is not read: `name` is its path or URL, `reason` a short text for counting; the message says why."""

    def __init__(self, name: os.PathLike | str, reason: str, text: str):
        super().__init__(text)
        self.name, self.reason = os.fspath(name), reason


def find_file(path: os.PathLike | str) -> pathlib.Path:
    """Return `path`, or the one file that exists under another spelling of it; `path` again if none or several do.

    Other spellings undo percent-encoding ("a%20b" for "a b"), compose or decompose accents (NFC, NFD), or have slashes
    for backslashes: a list and the files it names may have passed through different systems.
    """
    path = pathlib.Path(path)
    try:
        if os.path.lexists(path):
            return path
        here = pathlib.Path(path.anchor)
        for part in path.parts[bool(path.anchor) :]:
            names = [part] if os.path.lexists(here / part) else _spellings(part)
            there = [here / name for name in names if os.path.lexists(here / name)]
            if len(there) != 1:
                return path
            (here,) = there
        return here
    except (OSError, ValueError):  # a NUL in the path, a folder that may not be searched
        return path


def _spellings(name: str) -> set[str]:
    """Return all spellings of one part of a path."""
    plain = {name, urllib.parse.unquote(name), name.replace("\\", "/")}
    return {unicodedata.normalize(form, one) for one in plain for form in ("NFC", "NFD")} | plain


def read_file(path: os.PathLike | str) -> bytes:
    """Return the bytes of a file. Raises `UnreadableFile`.

    A pipe, a socket or a device is not opened, as reading it may never end.
    """
    try:
        if kind := KINDS.get(stat.filemode(os.stat(path).st_mode)[0]):
            raise UnreadableFile(path, "image is no file", f"it is a {kind}, not a file")
        return pathlib.Path(path).read_bytes()
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a NUL in the path
        url = URL.fullmatch(os.fspath(path))
        if url:
            why = "download it, and write the path of the file"
            raise UnreadableFile(f"{url[1]}://{url[2]}", "image is an address", why) from error
        raise UnreadableFile(path, MISSING, getattr(error, "strerror", None) or str(error)) from error


def file_state(path: os.PathLike | str, data: bytes | None = None) -> FileState:
    """Return the state of a file; `data` is its content, if it was read."""
    digest = "" if data is None else hashlib.blake2b(data, digest_size=8).hexdigest()
    try:
        found = os.stat(path)
        return FileState(os.path.abspath(path), found.st_size, found.st_mtime_ns, digest)
    except (OSError, ValueError):
        return FileState(os.path.abspath(path), ABSENT, 0)


def read_states(*paths: os.PathLike | str) -> tuple[FileState, ...]:
    """Return the states of files, with the digests of those that can be read."""
    return tuple(file_state(path, _content(path)) for path in paths)


def _content(path: os.PathLike | str) -> bytes | None:
    """Return the bytes of a file, None if it cannot be read."""
    try:
        return read_file(path)
    except UnreadableFile:
        return None
