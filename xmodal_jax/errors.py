"""The one error a user may see: a sentence that says what is wrong, where, and what to write instead."""

import pathlib
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The command line prints the sentence and exits with code 2; nothing was overwritten."""


def output_file(text: str) -> pathlib.Path:
    """Return a path to write to, as an argparse `type`; refuse it before the work where its folder is not there."""
    path = pathlib.Path(text)
    if not path.parent.is_dir():
        raise UserError(f"'{path}': there is no folder '{path.parent}'; make it, or write another path")
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; write the path of a file")
    return path


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; bad input is its sentence on stderr and exit code 2."""
    try:
        main()
    except (UserError, OSError) as error:  # OSError: no such file, no permission, a full disk; it names the path
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
