"""Several processes as one job: starting, agreeing on the config, and leaving when a peer is gone or stuck."""

import contextlib
import ipaddress
import json
import logging
import os
import pathlib
import re
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.parallel import stuck

log = logging.getLogger(__name__)

HEARTBEAT = 100  # seconds of silence after which jax itself gives a peer up, where no PeerWatch does it
LAST = 3.0  # seconds that process 0, which holds jax's store, leaves after its peers: jax aborts those that are left
GONE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the input, start again
SLOTS = 64  # digests that `agree` exchanges: a fixed number, so that other versions of this package can be told apart
LOST = re.compile(
    r"gloo|connection (closed|reset|refused)|socket closed|broken pipe|heartbeat|coordination ?service"
    r"|unavailable|deadline.exceeded|barrier|nccl.*(remote|network)",
    re.IGNORECASE,
)
WIRE = re.compile(r"\bgloo \w+ failed|coordination ?service", re.IGNORECASE)  # also told by other errors, as of a save
TIMED_OUT = re.compile(r"timed? ?out|deadline", re.IGNORECASE)


def is_first() -> bool:
    """Whether this is the process that writes logs and prints."""
    return jax.process_index() == 0


def first_says(value: int) -> int:
    """The first process's number, in every process; all must ask at the same point."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return int(broadcast_one_to_all(np.int32(value)))


def refuse_bad_flags(coordinator: str, processes: int, process: int, distributed: bool) -> None:
    """Only nothing, --distributed alone, or --coordinator, --processes and --process together make sense."""
    given = {"--coordinator": bool(coordinator), "--processes": processes != 0, "--process": process != -1}
    if distributed:
        extra = ", ".join(name for name, there in given.items() if there)
        if extra:
            raise UserError(f"--distributed finds {extra} by itself; leave one or the other out")
    elif any(given.values()):
        missing = ", ".join(name for name, there in given.items() if not there)
        if missing:
            raise UserError(f"{missing} is missing; write --coordinator HOST:PORT --processes N --process I together")
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f"--coordinator is '{coordinator}'; write HOST:PORT of process 0, such as node1:8476")
        if processes <= 0:
            raise UserError(f"--processes is {processes}; write the number of processes, above 0")
        if not 0 <= process < processes:
            raise UserError(f"--process is {process}; write 0 to {processes - 1}, another one for each process")


def refuse_loopback(coordinator: str, environment: Mapping[str, str]) -> None:
    """Refuse an address that only one machine reaches where the launcher's `environment` tells of several.

    SLURM tells the nodes of a step (not those of an allocation: a part of them may be used), Open MPI the processes on this
    machine, a TPU pod its hosts. Elsewhere nothing is known before the processes meet; see `_not_complete`.
    """

    def number(name):
        return int(value) if (value := environment.get(name, "")).isdecimal() else 0

    said = {
        "SLURM_STEP_NUM_NODES": number("SLURM_STEP_NUM_NODES") > 1,
        "OMPI_COMM_WORLD_LOCAL_SIZE": 0 < number("OMPI_COMM_WORLD_LOCAL_SIZE") < number("OMPI_COMM_WORLD_SIZE"),
        "TPU_WORKER_HOSTNAMES": "," in environment.get("TPU_WORKER_HOSTNAMES", ""),
    }
    several = [name for name, there in said.items() if there]
    if several and loopback(coordinator):
        raise UserError(
            f"--coordinator {coordinator} is reached from one machine only, and {', '.join(several)} tells of several hosts; "
            "write a name or address of process 0's machine that the others reach, or --distributed"
        )


def loopback(coordinator: str) -> bool:
    """Whether HOST of HOST:PORT is this very machine by definition: localhost, 127.x or ::1."""
    host = coordinator.rpartition(":")[0].strip("[]").lower().rstrip(".")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def initialize(
    coordinator: str = "",
    processes: int = 0,
    process: int = -1,
    distributed: bool = False,
    heartbeat_seconds: int = HEARTBEAT,
    wait_seconds: int = 300,
) -> None:
    """Join the job's other processes; nothing to do when no flag is given. Call it before anything touches a device.

    `coordinator` is host:port of process 0, `process` this one's number; or `distributed`: TPU pods, SLURM and Open MPI
    know all three. A peer is dead after `heartbeat_seconds` of silence. Raises UserError for impossible flags and a port in
    use. Ends the process with code 75 when the job is not complete after `wait_seconds`.
    """
    refuse_bad_flags(coordinator, processes, process, distributed)
    if not (coordinator or distributed):
        return
    refuse_loopback(coordinator, os.environ)
    if process == 0:
        _refuse_taken(coordinator)
    explicit = {"cluster_detection_method": "deactivate"} if coordinator else {}
    place = (coordinator or None, processes or None, process if coordinator else None)
    waiting = _not_complete(place, wait_seconds)
    try:  # jax aborts at its own deadline without a Python exception: ours is earlier
        jax.distributed.initialize(
            *place, initialization_timeout=wait_seconds + 60, heartbeat_timeout_seconds=heartbeat_seconds, **explicit
        )
    except ValueError as error:
        raise UserError(_not_started(coordinator, error)) from error
    except RuntimeError as error:  # the service that did not start can crash the interpreter's own exit
        end(2, f"xmodal: {_not_started(coordinator, error)}")
    finally:
        waiting.cancel()
    if jax.default_backend() == "cpu":
        # Only process 0 would find its programs there, and Gloo gives the others 30 s to catch up.
        jax.config.update("jax_enable_compilation_cache", False)
    log.info(
        "process %d of %d: when a peer dies, this one ends with code %d, or by jax's abort (134) after %d s of silence",
        jax.process_index(),
        jax.process_count(),
        GONE,
        heartbeat_seconds,
    )


def _refuse_taken(coordinator: str) -> None:
    """A port in use is found here: jax's service that cannot start may crash the interpreter."""
    port = int(coordinator.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # what an ended job leaves behind is no hindrance
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"the port of --coordinator {coordinator} is in use on this machine; write another one"
            ) from error


def _not_started(coordinator: str, error: Exception) -> str:
    if not coordinator:
        return (
            f"--distributed found no TPU pod, SLURM or Open MPI job ({error}); "
            "write --coordinator HOST:PORT --processes N --process I"
        )
    return f"the job at --coordinator {coordinator} could not start ({error}); look at the logs of the other processes"


def _not_complete(place: tuple, seconds: int) -> threading.Timer:
    """A started timer that ends the process, as only a thread can: the main one waits inside jax."""
    coordinator, processes, process = place

    def leave() -> None:
        what = f"process {process} of {processes}: the job at --coordinator {coordinator}" if coordinator else "the job"
        near = " (which only processes on the same machine reach)" if loopback(coordinator) else ""
        hint = f"check the address{near} and that all processes run"
        end(GONE, f"xmodal: {what} was not complete after {seconds} s; {hint}")

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    return timer


def agree(values: dict[str, Any]) -> None:
    """Refuse to go on unless every process was started with the same `values` (names to JSON values).

    Raises UserError on all processes, naming the first one that differs from process 0 and what differs.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digests = np.zeros(SLOTS, np.uint32)
    digests[: len(values)] = [zlib.crc32(json.dumps(value, sort_keys=True).encode()) for value in values.values()]
    table = multihost_utils.process_allgather(digests)
    for process, row in enumerate(table):
        other = [name for name, differs in zip(values, row != table[0], strict=True) if differs]
        if not (row == table[0]).all():
            raise UserError(
                f"process {process} was started with another {', '.join(other) or 'version'} than process 0; "
                "start all processes of a job with the same command"
            )


def again(workdir: str | pathlib.Path) -> str:
    """What is left in a work directory and what to do after code 75, in words."""
    steps = [int(path.name) for path in pathlib.Path(workdir).glob("checkpoints/*") if path.name.isdigit()]
    saved = f"the last save is step {max(steps)}" if steps else "nothing was saved yet"
    return f"{saved}; start all processes again with the same command"


def heartbeat_for(stall: float) -> int:
    """The seconds after which jax's own heartbeat may end a process, so that a watch of `stall` seconds is first."""
    return int(stall) + 60 if stall else HEARTBEAT


@contextlib.contextmanager
def watching(stall: float, workdir: str | pathlib.Path) -> Iterator[None]:
    """End this process with code 75 when another one, or this one, is stuck for `stall` seconds (parallel/stuck.py).

    Nothing with one process, and nothing with 0 seconds.
    """
    if not stall or jax.process_count() == 1:
        yield
        return
    from jax._src import distributed  # jax has no public way to its store

    def leave(said: str, after: float) -> None:
        where = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"xmodal: {where}: {said}; {again(workdir)}", file=sys.stderr, flush=True)
        time.sleep(after)
        end(GONE, "")

    client = distributed.global_state.client
    with stuck.PeerWatch(stall, leave, client, jax.process_index(), jax.process_count()):
        yield


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what is behind it, each once: its causes, and the errors of a group."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is not None and one not in seen:
            yield one
            seen.append(one)
            waiting += [*getattr(one, "exceptions", ()), one.__cause__, one.__context__]


def lost_peer(error: BaseException) -> bool:
    """Whether an error of the runtime, or one behind it, is about a process that cannot be reached."""

    def told(one):
        return (isinstance(one, jax.errors.JaxRuntimeError) and LOST.search(str(one))) or WIRE.search(str(one))

    return any(told(one) for one in with_causes(error))


def verdict(error: BaseException, workdir: str | pathlib.Path) -> tuple[int, str]:
    """The exit code that an error gives one process of several, and what it says."""
    if lost_peer(error):
        where = f"process {jax.process_index()} of {jax.process_count()}"
        cause = str(error).rpartition("dispatching computation: ")[2].splitlines()[0]
        named = stuck.suspect() if TIMED_OUT.search(str(error)) else ""
        what = f"{named} ({cause})" if named else f"a peer died or cannot be reached ({cause})"
        return GONE, f"xmodal: {where}: {what}; {again(workdir)}"
    if isinstance(error, UserError | OSError):
        return 2, f"xmodal: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, ""
    return 1, "".join(traceback.format_exception(error))


def end(code: int, text: str) -> None:
    """Say `text` and leave at once: what Python does at exit waits for the peers."""
    if text:
        print(text, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@contextlib.contextmanager
def leaving_at_once(workdir: str | pathlib.Path, hung: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """An error of one process of several ends it at once, so that its peers see it go instead of waiting for it.

    Process 0 tells the error at once and leaves `LAST` seconds later: peers that found the same error can tell it too.

    Exit codes: 75 when a peer died or is stuck (start again), 2 for bad input, 130 after Ctrl-C, 1 otherwise. With one
    process errors pass through, unless `hung()` says that a thread would keep Python from ending; then it leaves also
    without an error, with code 0.
    """
    try:
        yield
    except BaseException as error:
        alone = not jax.distributed.is_initialized() or jax.process_count() == 1
        if alone and not hung():
            raise
        code, said = verdict(error, workdir)
        if said and not alone and is_first():
            print(said, file=sys.stderr, flush=True)
            said = ""
            time.sleep(LAST)
        end(code, said)
    if hung():
        end(0, "")
