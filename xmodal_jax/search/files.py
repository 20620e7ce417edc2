"""The files of a search index, and how they are read.

    index.json            version, id, model fingerprint, width, bits, dtype, count, extra, blocks, checksum of all that
    dense-00000.npy       float32 [rows, E] of unit length, or int8 (see `writer.as_int8`); absent in an index of codes
    codes-00000.npy       uint8 [rows, K/8]; absent when the model has no hash head
    items-00000.jsonl     line i describes the block's record i; absent when hits need no description
    lines-00000.npy       int64 [rows], where each of these lines ends
    verified.json         which files a reader compared with their checksum, and how they were dated then

Blocks of all kinds are cut at the same rows; the header has the rows, bytes and sha256 of each file. The size of a file
is compared whenever an index is opened. Its checksum is compared the first time, and again when its size or one of its
two times (of its content, of its inode) has changed; a file is remembered as compared only when it had been left alone
for `SETTLED` seconds, so that no change can hide in the grain of the clock. Bits that rot on the disk without a write
are found by comparing everything again (`xmodal search --verify`).

The id is random and stays with the rows when others are appended. `header` checks a header.
"""

import hashlib
import json
import os
import pathlib
import re
import resource
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.search.header import FIELDS, is_whole

VERSION = 3
HEADER = "index.json"
VERIFIED = "verified.json"
OWN = re.compile(r"index\.json(\.new)?|verified\.json(\.\w+)?|(dense|codes|lines)-\d{5,}\.npy|items-\d{5,}\.jsonl")
KINDS = ("dense", "codes")
SETTLED = 2  # seconds
FEW = 64  # files that every process can open


def allow_open(count: int, path: pathlib.Path) -> None:
    """Raise this process's limit of open files by the `count` files of an index: a mapped file keeps a descriptor.

    Raises UserError where the limit that the system sets is below that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= FEW:
        return
    wanted = soft + count
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
        if count > hard:
            raise UserError(
                f"{path} has {count} files and a process may open {hard}; raise that limit (ulimit -Hn), or index "
                "again."
            )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def read_header(path: pathlib.Path) -> dict:
    """Read the header of the index at `path`.

    Raises:
      UserError: not an index, a damaged header, another version.
    """
    if not (path / HEADER).is_file():
        raise UserError(f"{path} is not an index (no {HEADER} in it); make one with `xmodal index`.")
    try:
        header = json.loads((path / HEADER).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        header = None
    damaged = f"{path / HEADER} is damaged; index again."
    if not isinstance(header, dict) or not header.keys() >= FIELDS.keys():
        raise UserError(damaged)
    version = header["version"]
    if version != VERSION:
        raise UserError(f"{path} is an index of version {version!r}, this program reads {VERSION}; index again.")
    told = header.pop("checksum", None)
    if told != header_sum(header) or not is_whole(header):
        raise UserError(damaged)
    return header


def named_files(header: dict) -> set[str]:
    """Return the names of all files that a header names."""
    return {part["file"] for entries in header["blocks"].values() for entry in entries for part in _parts(entry)}


def header_sum(header: dict) -> str:
    """Return the checksum of a header, as JSON gives it back."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(header)), sort_keys=True).encode()).hexdigest()


def sha256(file: pathlib.Path) -> str:
    """Return the sha256 of a file."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Verified:
    """The files of an index that were compared with their checksum (see above). again: trust no earlier comparison."""

    def __init__(self, path: pathlib.Path, again: bool = False):
        self.path = path
        self._before = self._read()
        self._known = {} if again else self._before
        self._now: dict[str, list] = {}

    def _read(self) -> dict[str, list]:
        """Read what earlier readers noted; nothing where that is damaged."""
        try:
            found = json.loads((self.path / VERIFIED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def whole(self, file: pathlib.Path, told: str) -> bool:
        """Return True if the file has the checksum `told`."""
        stat = file.stat()
        stamp = [told, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        same = self._known.get(file.name) == stamp
        if not same and sha256(file) != told:
            return False
        if same or time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED * 10**9:
            self._now[file.name] = stamp
        return True

    def keep(self) -> None:
        """Write down the files compared now, and no others; nothing where the folder cannot be written."""
        if not self._now or self._now == self._before:
            return
        try:
            with tempfile.NamedTemporaryFile("w", dir=self.path, prefix=f"{VERIFIED}.", delete=False) as file:
                json.dump(self._now, file)
            os.chmod(file.name, (self.path / HEADER).stat().st_mode & 0o666)
            os.replace(file.name, self.path / VERIFIED)
        except OSError:
            return


def usable(path: pathlib.Path, header: dict, verify: bool = True, again: bool = False) -> tuple[int, str]:
    """Return the rows before the first damaged file, and the sentence about that file ("" when all are whole).

    Sizes are always compared; with `verify` checksums too, with `again` also those of files that were compared before.
    """
    count, said, verified = header["count"], "", Verified(path, again) if verify else None
    for entries in header["blocks"].values():
        start = 0
        for entry in entries:
            if start >= count:
                break
            found = next(filter(None, (damage(path, part, verified) for part in _parts(entry))), "")
            if found:
                count, said = start, found
            start += entry["rows"]
    if verified is not None:
        verified.keep()
    return count, said


def _parts(entry: dict) -> Iterator[dict]:
    """Yield the entry of a file, and that of its lines where it has them."""
    yield entry
    if "lines" in entry:
        yield entry["lines"]


def damage(path: pathlib.Path, entry: dict, verified: Verified | None) -> str:
    """Return a sentence about what is wrong with one file of an index, "" when nothing is."""
    file = path / entry["file"]
    if not file.is_file():
        return f"{file} is missing from its index; index again, or open the rows before it with 'prefix'."
    torn = file.stat().st_size != entry["bytes"]
    if torn or (verified is not None and not verified.whole(file, entry["sha256"])):
        return f"{file} is torn or was changed; index again, or open the rows before it with 'prefix'."
    return ""


def open_array(path: pathlib.Path, entry: dict, width: int, dtype: str) -> np.ndarray:
    """Map the rows of one block, [rows, width]. Raises `UserError` where the file is anything else."""
    array = _npy(path / entry["file"], (entry["rows"], width), dtype)
    if array is None:
        raise UserError(f"{path / entry['file']} is torn; index again, or open the rows before it with 'prefix'.")
    return array


def _npy(file: pathlib.Path, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """Map a .npy file; return None unless it holds an array of this shape and dtype, all of it."""
    try:
        found = np.load(file, mmap_mode="r")
    except OSError:
        raise
    except Exception:  # the parser of a torn header raises what Python's own parser does
        return None
    if not isinstance(found, np.memmap) or (found.shape, found.dtype) != (shape, np.dtype(dtype)):
        return None
    return np.asarray(found) if found.flags.c_contiguous else None


class Lines:
    """The items of one block, mapped when made: line i of a JSON lines file by its place."""

    def __init__(self, path: pathlib.Path, entry: dict):
        self.file = path / entry["file"]
        ends = _npy(path / entry["lines"]["file"], (entry["rows"],), "int64")
        if ends is None or self.file.stat().st_size == 0:  # an empty file cannot be mapped
            raise UserError(f"{self.file} has torn lines; index again, or open the rows before it with 'prefix'.")
        self._text, self._ends = np.asarray(np.memmap(self.file, np.uint8, "r")), ends

    def __getitem__(self, line: int) -> dict:
        start = 0 if line == 0 else int(self._ends[line - 1])
        try:
            item = json.loads(self._text[start : int(self._ends[line])].tobytes())
        except (ValueError, RecursionError):  # no JSON, or no UTF-8
            item = None
        if not isinstance(item, dict):
            raise UserError(
                f"line {line + 1} of {self.file} is torn or was changed; search with 'verify', or index again."
            )
        return item
