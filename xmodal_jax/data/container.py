"""Files of sound and video as PyAV opens them (extra `media`)."""

import contextlib
from typing import IO, Any

from xmodal_jax.errors import UserError

# A playlist (HLS, concat) would name other files and addresses, which must not be read.
FORMATS = "wav,w64,aiff,au,flac,ogg,mp3,aac,mov,mp4,m4a,3gp,matroska,webm,avi,mpeg,mpegts,asf,flv"


def av_module() -> Any:
    """Return PyAV. Raises `UserError` where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise UserError("sound and video files are decoded by PyAV, which is missing: pip install -e '.[media]'") from (
            error
        )
    return av


def opened_container(file: str | IO[bytes]) -> contextlib.AbstractContextManager[Any]:
    """Open a file of one of `FORMATS`, which reads nothing but itself."""
    return av_module().open(file, options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
