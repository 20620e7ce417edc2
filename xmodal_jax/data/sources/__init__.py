"""The sources of pairs: `SOURCES` maps the names that `xmodal data prepare` takes to the functions that make them.

The command line has a sub-command for each, and for a user's own function named by its place, such as
"my_file.py:my_source"; the options are the parameters of the function.
"""

import dataclasses
import difflib
import inspect
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from xmodal_jax.data.media import read_states
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.emoji import emoji_source
from xmodal_jax.data.sources.fillets import fillets_source
from xmodal_jax.data.sources.inaturalist import inaturalist_source
from xmodal_jax.data.sources.jsonl import jsonl_source
from xmodal_jax.data.sources.karpathy import karpathy_source
from xmodal_jax.data.sources.labelled import mirflickr_source, nuswide_source, wikipedia_source
from xmodal_jax.data.sources.mat import mat_source
from xmodal_jax.data.sources.msrvtt import msrvtt_source
from xmodal_jax.data.sources.msvd import msvd_source
from xmodal_jax.data.sources.openclipart import openclipart_source
from xmodal_jax.data.sources.remote_sensing import albef_source, precomp_source
from xmodal_jax.data.sources.scan import scan_source
from xmodal_jax.data.sources.stamps import stamps_source
from xmodal_jax.data.sources.tfds import tfds_source
from xmodal_jax.data.sources.vatex import vatex_source
from xmodal_jax.data.sources.vqa import vqa_source
from xmodal_jax.errors import UserError
from xmodal_jax.plugins import absolute, file_of, load

SOURCES: dict[str, Callable[..., Source]] = {
    "emoji": emoji_source,
    "stamps": stamps_source,
    "openclipart": openclipart_source,
    "fillets": fillets_source,
    "karpathy": karpathy_source,
    "precomp": precomp_source,
    "scan": scan_source,
    "albef": albef_source,
    "inaturalist": inaturalist_source,
    "mirflickr": mirflickr_source,
    "nuswide": nuswide_source,
    "wikipedia": wikipedia_source,
    "mat": mat_source,
    "vqa": vqa_source,
    "msrvtt": msrvtt_source,
    "msvd": msvd_source,
    "vatex": vatex_source,
    "jsonl": jsonl_source,
    "tfds": tfds_source,
}
TAKEN = {"help", "out", "max_size", "allow_bad", "drop_copies", "force", "command", "action", "source", "run"}


def source_function(name: str) -> Callable[..., Source]:
    """Return the function of one of `SOURCES`, or a user's own by its place.

    Raises `UserError` if it cannot be loaded.
    """
    if name in SOURCES:
        return SOURCES[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"write one of {', '.join(SOURCES)}, or FILE.py:FUNCTION"
        raise UserError(f"there is no source '{name}'; {hint}")
    return load(name, "the source", "function", callable)


def source_options(name: str) -> list[inspect.Parameter]:
    """Return the parameters of a source's function that can be given by name, with their types.

    Raises `UserError` for a parameter that the command line cannot give.
    """
    try:
        options = inspect.signature(source_function(name), eval_str=True).parameters.values()
    except (TypeError, ValueError, NameError, AttributeError, SyntaxError) as error:
        raise UserError(f"the parameters of the source '{name}' cannot be read ({error}); write plain ones") from error
    given = [option for option in options if option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD)]
    for option in given:
        if option.name in TAKEN or option.kind == option.POSITIONAL_ONLY:
            raise UserError(
                f"the source '{name}' has the parameter '{option.name}', which `xmodal data prepare` cannot give it; "
                "let it take another name, by keyword"
            )
    return given


def make_source(name: str, given: dict[str, Any]) -> Source:
    """Make the source `name` with some options.

    A user's own is called by its place, whatever name it gives itself. Its arguments include the options, each
    `pathlib.Path` as an absolute one, and its file is one of those that the data set is made of. Raises `UserError` as
    the function does, and if a user's own returns no `Source`.
    """
    found = source_function(name)(**given)
    if name in SOURCES:
        return found
    if not isinstance(found, Source):
        raise UserError(f"the source '{name}' returned {type(found).__name__}; return a xmodal_jax.data.source.Source")

    def plain(value: Any) -> str:
        return os.path.abspath(value) if isinstance(value, os.PathLike) else str(value)

    arguments = json.loads(json.dumps(given | found.arguments, default=plain))  # JSON, as in a card
    files = found.files + read_states(*filter(None, [file_of(name)]))
    return dataclasses.replace(found, name=absolute(name, pathlib.Path.cwd()), arguments=arguments, files=files)
