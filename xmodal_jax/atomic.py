"""Files that are replaced in one step: a reader, or the next start, sees the old file or the new one, never a part."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO

from xmodal_jax.errors import UserError


def write_file(path: pathlib.Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, then rename it to `path`, replacing the file that is there.

    Args:
      content: the text (written as UTF-8), the bytes, or a function that writes them to the open file it is given.

    Raises:
      UserError: the file cannot be written; the message names `path`, and the file that was there is unchanged.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")  # names of files may hold bytes that are not UTF-8
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        old = "; the one that was there is as it was" if path.is_file() else ""
        raise UserError(f"'{path}' could not be written ({error.strerror or error}){old}") from error
