"""From a file of configs/ and the overrides of the command line to a checked `Config`.

`load` runs the file, `override` changes any field (`--config.optimizer.lr=1e-4`), `freeze` then checks every key and value, once.
"""

import ast
import dataclasses
import importlib.util
import inspect
import os
import pathlib
import traceback
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from xmodal_jax.config import Config
from xmodal_jax.config_build import build, unknown_key
from xmodal_jax.config_checks import check, check_fields, check_fused, check_pairs
from xmodal_jax.data.config import PAIR
from xmodal_jax.errors import UserError
from xmodal_jax.models import build_encoders, build_scorer
from xmodal_jax.plugins import absolute

OPEN = (
    "config.objectives.",
    "config.evals.",
    "config.encoders",
    "config.scorer",
    "config.data.fields.",
)  # sections whose keys `freeze` checks, not `override`


def freeze_value(value: Any) -> Any:
    """A ConfigDict value as plain Python."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def freeze(config: ConfigDict | dict[str, Any]) -> Config:
    """ConfigDict -> checked, frozen `Config`."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    built = build(Config, values, "config")
    built = with_sizes(
        dataclasses.replace(built, encoders=build_encoders(built.encoders), scorer=build_scorer(built.scorer))
    )
    check(built)
    return built


def with_sizes(config: Config) -> Config:
    """Fill in what other fields say: `fusion.pair` and `bridge.sides` where they are (), `fusion.width` where it is 0."""
    check_fields(config)
    check_pairs(config)
    encoders, fusion, bridge = config.encoders, config.fusion, config.bridge
    one, two = (config.data.fields[field].encoder for field in config.eval.pairs[0])
    words_first = encoders[one].reads == "words" != encoders[two].reads
    usual = PAIR if set(PAIR) <= set(encoders) else (two, one) if words_first else (one, two)
    fusion = dataclasses.replace(fusion, pair=fusion.pair or usual)
    check_fused(encoders, fusion, bridge)
    fusion = dataclasses.replace(fusion, width=fusion.width or encoders[fusion.pair[1]].token_width)
    return dataclasses.replace(
        config, fusion=fusion, bridge=dataclasses.replace(bridge, sides=bridge.sides or fusion.pair[:1])
    )


def load(spec: str, overrides: list[str] | None = None) -> ConfigDict:
    """`path/to/config.py[:variant]` plus `a.b=value` overrides -> ConfigDict.

    The file of a class of one's own is taken from the config file's folder.

    Raises UserError for a file that is missing, fails or has no such variant, or an override of a field that is not there.
    """
    path, _, variant = spec.partition(":")
    found = pathlib.Path(path).is_file() and path.endswith(".py")
    if not found:
        raise UserError(
            f"there is no config file '{path}'; write a .py file with get_config, as in the folder configs/"
        )
    module_spec = importlib.util.spec_from_file_location("xmodal_config", path)
    module = importlib.util.module_from_spec(module_spec)
    _run_config(path, lambda: module_spec.loader.exec_module(module))
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"'{path}' has no function get_config; write one, as in the folder configs/")
    given = (variant,) if variant else ()
    _check_call(path, function, given)
    config = _run_config(path, lambda: function(*given))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config of '{path}' returns {type(config).__name__}; write `return config` with the ConfigDict of defaults()"
        )
    for item in overrides or ():
        override(config, item)
    kinds = [
        (fields, "kind")
        for fields in (*config.objectives.values(), *config.encoders.values(), *config.evals.values(), config.scorer)
    ]
    for fields, key in kinds + [(fields, "reader") for fields in config.data.fields.values()]:
        if hasattr(fields, "items") and isinstance(fields.get(key), str):
            fields[key] = absolute(fields[key], pathlib.Path(path).parent)
    return config


def _check_call(path: str, function: Any, given: tuple[str, ...]) -> None:
    """Refuse a variant that `get_config` does not take, or none where it needs one."""
    try:
        inspect.signature(function).bind(*given)
    except TypeError:
        raise UserError(
            f"get_config of '{path}' takes no variant; write '{path}' without ':{given[0]}'"
            if given
            else f"get_config of '{path}' needs arguments; write '{path}:VARIANT', or a default in the file"
        ) from None


def _run_config(path: str, function: Callable[[], Any]) -> Any:
    """What `function` returns; an error of the config file is a UserError with the line and the error in one sentence."""
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        file = os.path.abspath(path)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines.append(error.lineno)
        at = f", line {lines[-1]}" if lines else ""
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        said = f"{type(error).__name__}: {' '.join(text.split())}".rstrip(": .")
        raise UserError(f"the config file '{path}'{at}, fails with {said}; correct the file") from error


def override(config: ConfigDict, item: str) -> None:
    """Apply one `a.b.c=value`; the value is a Python literal, anything else is taken as a string.

    `objectives.NAME={}` (or `evals`, `data.fields`) adds an entry with its fields at their defaults, `objectives.NAME={"weight": 0.1}` with some set.
    """
    path, equals, text = item.partition("=")
    if not equals:
        raise UserError(f"'--config.{item}' has no value; write --config.{item}=VALUE")
    *parents, name = path.split(".")
    node, where = config, "config"
    for parent in parents:
        if parent not in node:
            raise unknown_key(parent, where, list(node.keys()))
        node, where = node[parent], f"{where}.{parent}"
        if not hasattr(node, "keys"):
            raise UserError(f"'{where}' is a value, not a section; there is no '{path}'")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        value = text
    if name not in node and where in ("config.objectives", "config.evals", "config.data.fields"):
        fields = value if isinstance(value, dict) else {"": ""}
        plain = all(str(key).isidentifier() for key in fields) and isinstance(fields.get("kind", ""), str)
        if not plain:
            raise UserError(f"{where} has no '{name}'; to add it write --{where}.{name}={{}} or ={{'weight': 0.1}}")
    elif name not in node and not where.startswith(OPEN):
        raise unknown_key(name, where, list(node.keys()))
    if name in node and isinstance(node[name], str):
        value = text
    with node.ignore_type(), node.unlocked():
        node[name] = value
