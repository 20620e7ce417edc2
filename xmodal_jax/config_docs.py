"""The meaning of each field of a config, read from the docstrings below the fields of its dataclasses."""

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

WIDTH = 100  # columns of the printed meanings


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return {field: its docstring} of a dataclass, those of its bases included; "" for a field without one."""
    found = dict.fromkeys((own.name for own in dataclasses.fields(cls)), "") if dataclasses.is_dataclass(cls) else {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_docs(base)
    return found


def _own_docs(cls: type) -> dict[str, str]:
    """Return the docstrings of the fields that a class writes itself: strings that stand alone below them."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and below.value.value
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(told, str):
            found[field.target.id] = " ".join(inspect.cleandoc(told).split())
    return found


class Field(NamedTuple):
    """A field of a config as it is printed; `value` is None for a section, whose `meaning` is that of its class."""

    path: str
    value: Any
    meaning: str
    default: Any = None


def described(value: Any, path: str = "config") -> Iterator[Field]:
    """Yield every field of a frozen config, each section before its fields.

    Entries of dicts (encoders, objectives, fields of the batch) are sections too.
    """
    if isinstance(value, dict):
        for name, own in value.items():
            yield from described(own, f"{path}.{name}")
        return
    yield Field(path, None, _first_line(type(value)))
    docs = field_docs(type(value))
    for own in dataclasses.fields(value):
        found, name = getattr(value, own.name), f"{path}.{own.name}"
        if (
            dataclasses.is_dataclass(found)
            or isinstance(found, dict)
            and any(map(dataclasses.is_dataclass, found.values()))
        ):
            yield from described(found, name)
        else:
            yield Field(name, found, docs[own.name], _default(own))


def _default(own: dataclasses.Field) -> Any:
    """Return the default of a field; None where it has none."""
    if own.default_factory is not dataclasses.MISSING:
        return own.default_factory()
    return None if own.default is dataclasses.MISSING else own.default


def _first_line(cls: type) -> str:
    """Return the first sentence of a class's docstring."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def as_text(config: Any) -> str:
    """Return a frozen config as lines `path = value`, with the meaning above and the default where it is another."""
    lines: list[str] = []
    for own in described(config):
        if own.value is None:
            lines += ["", *_comment(f"{own.path}: {own.meaning}")] if own.meaning else [""]
            continue
        other = own.default is not None and own.default != own.value
        lines += _comment(own.meaning) + [f"{own.path} = {own.value!r}" + f"  # default: {own.default!r}" * other]
    return "\n".join(lines).strip()


def _comment(text: str) -> list[str]:
    """Return a text as lines of comment."""
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")
