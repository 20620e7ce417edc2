"""The sources of pairs: `SOURCES` maps the names that `xmodal data prepare` takes to the functions that make them.

The command line has a sub-command for each, whose options are the parameters of the function.
"""

from collections.abc import Callable

from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.emoji import emoji_source
from xmodal_jax.data.sources.inaturalist import inaturalist_source
from xmodal_jax.data.sources.jsonl import jsonl_source
from xmodal_jax.data.sources.karpathy import karpathy_source
from xmodal_jax.data.sources.labelled import mirflickr_source, nuswide_source, wikipedia_source
from xmodal_jax.data.sources.mat import mat_source
from xmodal_jax.data.sources.openclipart import openclipart_source
from xmodal_jax.data.sources.remote_sensing import albef_source, precomp_source
from xmodal_jax.data.sources.stamps import stamps_source
from xmodal_jax.data.sources.tfds import tfds_source

SOURCES: dict[str, Callable[..., Source]] = {
    "emoji": emoji_source,
    "stamps": stamps_source,
    "openclipart": openclipart_source,
    "karpathy": karpathy_source,
    "precomp": precomp_source,
    "albef": albef_source,
    "inaturalist": inaturalist_source,
    "mirflickr": mirflickr_source,
    "nuswide": nuswide_source,
    "wikipedia": wikipedia_source,
    "mat": mat_source,
    "jsonl": jsonl_source,
    "tfds": tfds_source,
}
