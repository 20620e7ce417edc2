"""The one error a user may see: a sentence that says what is wrong, where, and what to write instead."""


class UserError(Exception):
    """Bad input. The command line prints the sentence and exits with code 2; nothing was overwritten."""


def refuse_unless(condition: bool, sentence: str) -> None:
    """Raise `UserError(sentence)` when `condition` does not hold."""
    if not condition:
        raise UserError(sentence)
