"""Build a frozen dataclass from a dict: every key and type is checked, and a fault says what to write instead."""

import dataclasses
import difflib
import itertools
import re
import types
import typing
from typing import Any

from xmodal_jax.errors import UserError

EPOCHS = re.compile(r"\d+(\.\d+)? epochs?")


def unknown_key(key: str, where: str, known: list[str]) -> UserError:
    """Return the error for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(sorted(known))
    return UserError(f"'{key}' is not a field of {where}; {hint}")


def _value(value: Any, kind: Any, where: str) -> Any:
    """Return `value` as the annotated type `kind`, or a UserError that names the field."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not hasattr(value, "items"):
            raise UserError(f"{where} is {value!r}; write a dict with its fields")
        return build(kind, dict(value.items()), where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _tuple(value, kind, where)
    if origin is dict:
        if not hasattr(value, "items"):
            raise UserError(f"{where} is {value!r}; write a dict")
        item = typing.get_args(kind)[1]
        if dataclasses.is_dataclass(item):
            return {name: _value(x, item, f"{where}.{name}") for name, x in value.items()}
        return {k: {name: _tupled(x) for name, x in v.items()} if hasattr(v, "items") else v for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        return _steps(value, where) if str in typing.get_args(kind) else _schedule(value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or kind is not bool and isinstance(value, bool):
        raise UserError(f"{where} is {value!r}; write a value of type {kind.__name__}")
    return value


def _tupled(value: Any) -> Any:
    """Return lists, as JSON gives them, as tuples, however deep: a config read from run.json equals the written one."""
    return tuple(map(_tupled, value)) if isinstance(value, (list, tuple)) else value


def _tuple(value: Any, kind: Any, where: str) -> tuple:
    """Return `value` as the tuple type `kind`; the sentence of a UserError shows a tuple of that type."""

    def listed(x: Any) -> bool:
        return isinstance(x, (list, tuple))

    inner = typing.get_args(kind)
    nested = typing.get_origin(inner[0]) is tuple
    if not listed(value) or nested and not all(map(listed, value)):
        raise UserError(f"{where} is {value!r}; write a tuple such as {_example(kind)!r}")
    fixed = inner if inner[-1] is not Ellipsis else (inner[0],) * len(value)
    if len(fixed) != len(value):
        raise UserError(f"{where} is {value!r}; it takes {len(fixed)} entries, such as {_example(kind)!r}")
    return tuple(_value(item, part, where) for item, part in zip(value, fixed, strict=True))


def _example(kind: Any) -> tuple:
    """Return a tuple of the type `kind`, to show in a sentence: (1, 2), ('a', 'b') or (('regex', 0.1),)."""
    inner = typing.get_args(kind)
    if inner[-1] is Ellipsis:
        listed = {int: (1, 2), str: ("a", "b"), float: (0.1, 0.2)}
        return listed[inner[0]] if inner[0] in listed else (_example(inner[0]),)
    return tuple({int: 1, str: "regex", float: 0.1}[part] for part in inner)


def _number(value: Any) -> bool:
    """Return True for a number that is no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _epochs(value: Any) -> bool:
    """Return True for a text such as "2 epochs"."""
    return isinstance(value, str) and EPOCHS.fullmatch(value) is not None


def _steps(value: Any, where: str) -> int | str:
    """Return a number of steps, or epochs such as "2 epochs"; anything else is a UserError that names the field."""
    if isinstance(value, str) and value.isdecimal():  # what the command line makes of 100 where the default is a text
        return int(value)
    if not _epochs(value) and (not isinstance(value, int) or isinstance(value, bool)):
        raise UserError(f"{where} is {value!r}; write a number of steps such as 1000, or '2 epochs'")
    return value


def _schedule(value: Any, where: str) -> float | tuple:
    """Return a number, or points ((step, value), ...) as tuples; anything else is a UserError that names the field."""
    if _number(value):
        return value
    points = isinstance(value, (list, tuple)) and len(value) > 0
    points = points and all(
        isinstance(point, (list, tuple))
        and len(point) == 2
        and _number(point[1])
        and (_number(point[0]) or _epochs(point[0]))
        for point in value
    )
    if not points:
        raise UserError(
            f"{where} is {value!r}; write a number, or ((step, value), ...) such as ((0, 0.0), (1000, 1.0)) or "
            "((0, 0.0), ('2 epochs', 1.0))"
        )
    steps = [point[0] for point in value]
    if not all(_before(first, second) for first, second in itertools.pairwise(steps)):
        raise UserError(
            f"{where} is {value!r}, whose steps do not ascend; write the points in the order of their steps, each step "
            "once"
        )
    return tuple(tuple(point) for point in value)


def _before(first: float | str, second: float | str) -> bool:
    """Return True if a step comes before another, as far as steps and epochs compare; step 0 comes before any epoch."""
    if isinstance(first, str) == isinstance(second, str):

        def amount(step: Any) -> float:
            return float(step.split()[0]) if isinstance(step, str) else step

        return amount(first) < amount(second)
    return first == 0


def limited(default: Any, *, least: float | None = None, most: float | None = None, among: tuple = ()) -> Any:
    """Return a dataclass field whose value `build` holds to a range, or to a choice."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most, "among": among})


def _refuse_outside(built: Any, where: str) -> None:
    """Refuse values outside the limits of their fields (see `limited`)."""
    for one in dataclasses.fields(built):
        value, limits = getattr(built, one.name), one.metadata
        if isinstance(value, str) and not limits.get("among"):  # "2 epochs"
            continue
        least, most, among = limits.get("least"), limits.get("most"), limits.get("among")
        if among and value not in among:
            raise UserError(f"{where}.{one.name} is {value!r}; write one of {', '.join(map(str, among))}")
        if least is not None and most is not None and not least <= value <= most:
            raise UserError(f"{where}.{one.name} is {value}; write a rate from {least:g} to {most:g}")
        if least is not None and value < least:
            raise UserError(f"{where}.{one.name} is {value}; write {least:g} or more")


def build(cls: type, values: dict[str, Any], where: str) -> Any:
    """Return a frozen dataclass from a dict: unknown keys and wrong types are refused with what to write instead."""
    kinds = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in values:
        if key not in names:
            raise unknown_key(key, where, names)
    built = cls(**{key: _value(value, kinds[key], f"{where}.{key}") for key, value in values.items()})
    _refuse_outside(built, where)
    check = getattr(built, "check", None)
    if check is not None:
        check(where)
    return built
