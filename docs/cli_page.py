"""The page of the command line, generated from its parser."""

import argparse
import os
from collections.abc import Iterator

HEAD = """# Command line

Generated from the parser of `xmodal`. Bad input is one sentence on the error stream and exit code 2; what the other
codes mean is in [Launch on many machines](../howto/launch.md). Commands that take a config take
`--config.SECTION.FIELD=VALUE` too, any number of times ([all fields](config.md)); commands that take a run take those
of the sections that do not change its weights: `data`, `eval`, `evals`, `mesh`.
"""


def page() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = "90"  # argparse wraps its usage by it
    from xmodal_jax.cli import parser

    return "\n".join([HEAD, *commands(parser(""), 2)]) + "\n"


def children(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The sub-commands of a parser by name."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def commands(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """The sections of all sub-commands, each below its own."""
    told = {
        choice.dest: choice.help or ""
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
    }
    for name, own in children(parser).items():
        yield from ("#" * level + f" `{own.prog}`", "", *said(own, told.get(name, "")), *options(own))
        yield from commands(own, min(level + 1, 4))


def said(parser: argparse.ArgumentParser, told: str) -> Iterator[str]:
    """What a command does, and its usage."""
    text = parser.description or told
    if text:
        yield from ((text[:1].upper() + text[1:]).replace("%%", "%"), "")
    if not children(parser):
        usage = parser.format_usage().removeprefix("usage: ").strip()
        yield from ("```text", *(line.removeprefix("       ") for line in usage.splitlines()), "```", "")


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The table of a command's options."""
    shown = [
        action
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
    ]
    if not shown or children(parser):
        return
    yield from ("| option | default | meaning |", "| --- | --- | --- |")
    for action in shown:
        name = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.metavar or action.dest}`"
        meaning = (action.help or "").replace("%%", "%").replace("%(default)s", str(action.default)).replace("|", "\\|")
        if action.choices:
            meaning = f"{meaning} ({', '.join(map(str, action.choices))})".strip()
        if action.required and action.option_strings and "needed" not in meaning:
            meaning = f"{meaning} (needed)".strip()
        plain = action.default in (None, "", False, [], argparse.SUPPRESS) or "default" in meaning
        yield f"| {name} | {'' if plain else f'`{action.default}`'} | {meaning} |"
    yield ""
