"""The one error a user may see: a sentence that says what is wrong, where, and what to write instead."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The command line prints the sentence and exits with code 2; nothing was overwritten."""


def refuse_unless(condition: bool, sentence: str) -> None:
    """Raise `UserError(sentence)` when `condition` does not hold."""
    if not condition:
        raise UserError(sentence)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; bad input is its sentence on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
