"""Sizes and CRC-32 of the files of a folder, as they were when it was written.

The array store notices damage to most of its indexes but not to the array bytes: a flipped bit there is restored as
another number (all of six tried were), and the run would go on with it. The record lies in the folder itself and is
written before the folder gets its final name.
"""

import concurrent.futures
import json
import os
import pathlib
import zlib
from collections.abc import Sequence

FILE = "checksums.json"
AFTER = ("_CHECKPOINT_METADATA", "commit_success.txt")  # orbax writes these last, after the record; they hold no state
CHUNK = 4 * 2**20
THREADS = 4  # zlib.crc32 and reading release the interpreter lock


def _sum(path: pathlib.Path, to_disk: bool) -> tuple[int, int]:
    """Return (bytes, CRC-32) of a file; with `to_disk` wait until the disk has it."""
    size = crc = 0
    with path.open("rb") as file:
        try:
            while chunk := file.read(CHUNK):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            if to_disk:
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error  # the system does not say which file
    return size, crc


def _sums(folder: pathlib.Path, names: list[str], to_disk: bool = False) -> dict[str, tuple[int, int]]:
    """Return {name: `_sum`} of files of a folder, several at a time."""
    with concurrent.futures.ThreadPoolExecutor(THREADS, "checksums") as threads:
        return dict(zip(names, threads.map(lambda name: _sum(folder / name, to_disk), names), strict=True))


def _body(files: dict[str, tuple[int, int]]) -> bytes:
    """Return the bytes that the record's own sum is of."""
    return json.dumps(files, sort_keys=True).encode()


def write(folder: pathlib.Path) -> None:
    """Record every file of `folder`, and wait until all of them are on the disk."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = _sums(folder, [name for name in names if name not in AFTER], to_disk=True)
    with (folder / FILE).open("w", encoding="utf-8") as file:
        json.dump({"crc32": zlib.crc32(_body(files)), "files": files}, file)
        file.flush()
        os.fsync(file.fileno())


def fault(folder: pathlib.Path, items: Sequence[str]) -> str:
    """Return what is wrong with the files of a checkpoint `folder`
    and its `items`, "" when all are as they were written.

    Names and sizes are compared first, so that what is plainly broken costs no reading; files of other items cost none.
    """
    try:
        record = json.loads((folder / FILE).read_text("utf-8"))
        files = {name: tuple(entry) for name, entry in record["files"].items()}
        if zlib.crc32(_body(files)) != record["crc32"]:
            return f"{FILE} is damaged"
    except OSError as error:
        return f"{FILE} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} is damaged"
    files = {name: entry for name, entry in files.items() if "/" not in name or name.split("/")[0] in items}
    for name in (*files, *AFTER):
        if not (folder / name).is_file():
            return f"{name} is missing"
    for name in AFTER:
        if not (folder / name).stat().st_size:
            return f"{name} is empty"
    for name, (size, _) in files.items():
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name} has {found} bytes, not {size}"
    try:
        sums = _sums(folder, sorted(files))
    except OSError as error:  # a bad sector, a right that is missing
        return str(error)
    return next((f"{name} has other bytes than were written" for name in sums if sums[name] != files[name]), "")
