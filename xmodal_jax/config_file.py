"""From a config file and overrides to a checked `Config`.

`load` runs the file, `override` changes any field (`--config.optimizer.lr=1e-4`), `freeze` checks every key and value.
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
import os
import pathlib
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from xmodal_jax.config_build import build, unknown_key
from xmodal_jax.config_checks import check, check_fields, check_fused, check_pairs
from xmodal_jax.data.config import PAIR
from xmodal_jax.errors import UserError
from xmodal_jax.models import build_encoders, build_scorer
from xmodal_jax.plugins import absolute
from xmodal_jax.settings import Config, defaults

OPEN = (
    "config.objectives.",
    "config.evals.",
    "config.encoders",
    "config.scorer",
    "config.data.fields.",
)  # sections whose keys `freeze` checks, not `override`


def freeze_value(value: Any) -> Any:
    """Return a value of a ConfigDict as plain Python."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def freeze(config: ConfigDict | dict[str, Any]) -> Config:
    """Check a ConfigDict and return the frozen `Config`."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    built = build(Config, values, "config")
    built = with_sizes(
        dataclasses.replace(built, encoders=build_encoders(built.encoders), scorer=build_scorer(built.scorer))
    )
    check(built)
    return built


def with_sizes(config: Config) -> Config:
    """Fill in `fusion.pair` and `bridge.sides` where they are (), `fusion.width` where it is 0, from other fields."""
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


def shipped() -> pathlib.Path:
    """Return the folder of the configs that come with the package: inside a wheel, or beside the package in a clone."""
    inside = pathlib.Path(__file__).parent / "configs"
    return inside if inside.is_dir() else pathlib.Path(__file__).parents[1] / "configs"


def find_config(path: str) -> pathlib.Path:
    """Return the file of a config: `path` itself, or the one that comes with the package under that name.

    Raises UserError for a file that is not there; it names those that come with the package.
    """
    own = pathlib.Path(path)
    if own.is_file() and own.suffix in (".py", ".json"):
        return own
    ours = shipped() / f"{own.stem}.py"
    if ours.is_file() and path in (own.stem, f"configs/{own.stem}.py"):
        return ours
    known = ", ".join(sorted(file.stem for file in shipped().glob("[a-z]*.py")))
    raise UserError(f"there is no config file '{path}'; write a .py file with get_config, or one of {known}")


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Read `NAME[:variant]` or `path/to/config.py[:variant]`, and apply overrides `a.b=value`.

    NAME is a config that comes with the package; a .json file holds a whole config, as `config` in run.json does. The
    file of a class of one's own is looked for in the folder of the config file, and that of an override in the current
    folder first.

    Raises:
      UserError: a file that is missing, fails or has no such variant, or an override of a field that is not there.
    """
    path, _, variant = spec.partition(":")
    file = find_config(path)
    config: Any = _read_json(file) if file.suffix == ".json" else _call(file, path, variant)
    _place_classes(config, [file.parent])
    for item in overrides:
        override(config, item)
    _place_classes(config, [pathlib.Path.cwd(), file.parent])
    return config


def _place_classes(config: Any, folders: Sequence[pathlib.Path]) -> None:
    """Make the files of one's own classes absolute: taken from the first folder that has them, or the last."""
    kinds = [
        (fields, "kind")
        for fields in (*config.objectives.values(), *config.encoders.values(), *config.evals.values(), config.scorer)
    ]
    for fields, key in kinds + [(fields, "reader") for fields in config.data.fields.values()]:
        if hasattr(fields, "items") and isinstance(fields.get(key), str):
            place = fields[key].rpartition(":")[0]
            folder = next((own for own in folders if place and (own / place).is_file()), folders[-1])
            fields[key] = absolute(fields[key], folder)


def _read_json(file: pathlib.Path) -> ConfigDict:
    """Read a whole config as JSON, or the one inside a run.json."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"the config file '{file}' is not valid JSON ({error}); correct the file") from error
    found = found.get("config", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise UserError(f"the config file '{file}' holds no object; write a whole config, as run.json has it")
    config = defaults()
    with config.ignore_type(), config.unlocked():
        config.update(found)
    return config


def _call(file: pathlib.Path, path: str, variant: str) -> ConfigDict:
    """Run a config file and return what its `get_config` makes of a variant."""
    module_spec = importlib.util.spec_from_file_location("xmodal_config", file)
    assert module_spec is not None and module_spec.loader is not None  # a .py file has both
    module, run = importlib.util.module_from_spec(module_spec), module_spec.loader.exec_module
    _run_config(str(file), lambda: run(module))
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"'{path}' has no function get_config; write one, as in the folder configs/")
    given = (variant,) if variant else ()
    _check_call(path, function, given)
    config = _run_config(str(file), lambda: function(*given))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config of '{path}' returns {type(config).__name__}; "
            "write `return config` with the ConfigDict of defaults()"
        )
    return config


def _check_call(path: str, function: Any, given: tuple[str, ...]) -> None:
    """Raise UserError for a variant that `get_config` does not take, or none where it needs one."""
    try:
        inspect.signature(function).bind(*given)
    except TypeError:
        raise UserError(
            f"get_config of '{path}' takes no variant; write '{path}' without ':{given[0]}'"
            if given
            else f"get_config of '{path}' needs arguments; write '{path}:VARIANT', or a default in the file"
        ) from None


def _run_config(path: str, function: Callable[[], Any]) -> Any:
    """Return what `function` returns; an error of the config file becomes a UserError that says line and error."""
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
    """Apply one `a.b.c=value` of the command line; the value is a Python literal, or else a string.

    `objectives.NAME={}` (or `evals`, `data.fields`) adds an entry with its fields at their defaults,
    `objectives.NAME={"weight": 0.1}` one with some of them set.
    """
    path, equals, text = item.partition("=")
    if not equals:
        raise UserError(f"'--config.{item}' has no value; write --config.{item}=VALUE")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        value = text
    node, _, name = _place(config, path)
    assign(config, path, text if isinstance(node.get(name), str) else value)


def assign(config: ConfigDict, path: str, value: Any) -> None:
    """Set one field of a config by its dotted path, such as "optimizer.lr".

    Raises UserError for a field that is not there, with the nearest one that is.
    """
    node, where, name = _place(config, path)
    if name not in node and where in ("config.objectives", "config.evals", "config.data.fields"):
        fields = value if isinstance(value, dict) else {"": ""}
        plain = all(str(key).isidentifier() for key in fields) and isinstance(fields.get("kind", ""), str)
        if not plain:
            raise UserError(f"{where} has no '{name}'; to add it write {where}.{name}={{}} or ={{'weight': 0.1}}")
    elif name not in node and not where.startswith(OPEN):
        raise unknown_key(name, where, list(node.keys()))
    with node.ignore_type(), node.unlocked():
        node[name] = value


def _place(config: ConfigDict, path: str) -> tuple[Any, str, str]:
    """Return the section that a dotted path is in, the section's own path, and the name of the field."""
    *parents, name = path.split(".")
    node: Any = config
    where = "config"
    for parent in parents:
        if parent not in node:
            raise unknown_key(parent, where, list(node.keys()))
        node, where = node[parent], f"{where}.{parent}"
        if not hasattr(node, "keys"):
            raise UserError(f"'{where}' is a value, not a section; there is no '{path}'")
    return node, where, name
