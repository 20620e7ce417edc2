"""The sources of pairs: `SOURCES` maps the names that `xmodal data prepare` takes to the functions that make them."""

from collections.abc import Callable

from xmodal_jax.data.jsonl import jsonl_source
from xmodal_jax.data.karpathy import karpathy_source
from xmodal_jax.data.source import Source
from xmodal_jax.data.tfds import tfds_source


def _emoji(**arguments) -> Source:
    from xmodal_jax.data.emoji import emoji_source

    return emoji_source(**arguments)


def _openclipart(**arguments) -> Source:
    from xmodal_jax.data.openclipart import openclipart_source

    return openclipart_source(**arguments)


def _stamps(**arguments) -> Source:
    from xmodal_jax.data.stamps import stamps_source

    return stamps_source(**arguments)


def _inaturalist(**arguments) -> Source:
    from xmodal_jax.data.inaturalist import inaturalist_source

    return inaturalist_source(**arguments)


def _precomp(**arguments) -> Source:
    from xmodal_jax.data.remote_sensing import precomp_source

    return precomp_source(**arguments)


def _albef(**arguments) -> Source:
    from xmodal_jax.data.remote_sensing import albef_source

    return albef_source(**arguments)


def _mirflickr(**arguments) -> Source:
    from xmodal_jax.data.labelled import mirflickr_source

    return mirflickr_source(**arguments)


def _nuswide(**arguments) -> Source:
    from xmodal_jax.data.labelled import nuswide_source

    return nuswide_source(**arguments)


def _wikipedia(**arguments) -> Source:
    from xmodal_jax.data.labelled import wikipedia_source

    return wikipedia_source(**arguments)


def _mat(**arguments) -> Source:
    from xmodal_jax.data.mat import mat_source

    return mat_source(**arguments)


SOURCES: dict[str, Callable[..., Source]] = {
    "emoji": _emoji,
    "stamps": _stamps,
    "openclipart": _openclipart,
    "karpathy": karpathy_source,
    "precomp": _precomp,
    "albef": _albef,
    "inaturalist": _inaturalist,
    "mirflickr": _mirflickr,
    "nuswide": _nuswide,
    "wikipedia": _wikipedia,
    "mat": _mat,
    "jsonl": jsonl_source,
    "tfds": tfds_source,
}
