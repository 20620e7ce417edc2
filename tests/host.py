"""What tests ask of the machine they run on: a limit on the size of files, a free port."""

import contextlib
import resource
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file of this process may be longer than `size` bytes: a full disk or a quota, without any rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def free_port() -> int:
    """A port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
