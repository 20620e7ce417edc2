"""Files that are replaced whole: a reader, or the next start, sees the old one or the new one, never half of one."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO

from xmodal_jax.errors import UserError


def write_whole(path: pathlib.Path, content: str | bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file by way of one beside it. `content`: the text (as UTF-8), the bytes, or what writes them.

    Raises UserError that names the path when it cannot be written; the file that was there is as it was.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")  # names of files may be no text
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as file:
                file.write(content) if isinstance(content, bytes) else content(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        old = "; the one that was there is as it was" if path.is_file() else ""
        raise UserError(f"'{path}' could not be written ({error.strerror or error}){old}") from error
