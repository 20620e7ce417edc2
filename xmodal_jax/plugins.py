"""Classes and functions of a user's own, named by their places: "path/to/file.py:Class" or "package.module:Class"."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

from xmodal_jax.errors import UserError


def absolute(spec: str, folder: pathlib.Path) -> str:
    """Return a place with its file's path made absolute from `folder`; the place of a package stays as it is."""
    place, _, name = spec.rpartition(":")
    return f"{os.path.abspath(folder / place)}:{name}" if place.endswith(".py") else spec


def load(spec: str, where: str, what: str, good: Callable[[Any], bool]) -> Any:
    """Import what `spec` names: a `what`, such as "class", for which `good` returns True.

    Raises UserError, naming the field `where`, where it cannot be imported or is no such thing.
    """
    place, _, name = spec.rpartition(":")
    try:
        module = _of_file(place) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # the file is the user's own program
        said = " ".join(str(error).split())
        raise UserError(
            f"{where} is '{spec}', and '{place}' cannot be imported ({type(error).__name__}: {said})"
        ) from error
    form, found = what.upper(), getattr(module, name, None)
    if not good(found):
        raise UserError(
            f"{where} is '{spec}', and '{place}' has no {what} '{name}'; write FILE.py:{form} or PACKAGE.MODULE:{form}"
        )
    return found


def file_of(spec: str) -> str:
    """Return the file of a class or a function that was loaded; "" where its module has none."""
    place = spec.rpartition(":")[0]
    return place if place.endswith(".py") else getattr(sys.modules[place], "__file__", None) or ""


def find_class(kind: str, where: str, known: dict[str, type], base: type) -> type:
    """Return the class of a kind: one of `known`, or a user's own by its place, such as "my_file.py:MyClass".

    Raises UserError, naming the field `where`, for an unknown kind, and for a class not derived from `base`.
    """
    if ":" not in kind:
        if kind not in known:
            raise unknown_kind(kind, where, known, base)
        return known[kind]
    found = load(kind, where, "class", inspect.isclass)
    if not issubclass(found, base):
        raise UserError(f"{where} is '{kind}', which is none; derive the class from {base.__module__}.{base.__name__}")
    return found


def unknown_kind(kind: str, where: str, known: dict[str, type], base: type) -> UserError:
    """Return the error for an unknown kind, with the known ones and the nearest of them."""
    near = difflib.get_close_matches(kind, known, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return UserError(
        f"{where} is '{kind}'; write one of {', '.join(known)}{hint}, or FILE.py:CLASS with a class of your own, "
        f"derived from {base.__module__}.{base.__name__}"
    )


def _of_file(path: str) -> types.ModuleType:
    """Import a file, once in a process, so that its classes stay the same."""
    name = "xmodal_plugin_" + hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # a .py file has both
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their own module up
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
