"""Run several processes as one job: start them, compare their configs, and leave when a peer is gone or stuck.

Nothing here touches the process on import. `initialize`, `leaving_at_once` and `watching` do, as they say; the command
line and the train loop call them.
"""

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

HEARTBEAT = 100  # seconds of silence after which jax itself gives a peer up, if no PeerWatch does
LAST = 3.0  # seconds by which process 0 leaves after its peers: it holds jax's store, without which jax aborts them
GONE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the input, start again
SLOTS = 64  # digests that `agree` exchanges: the same number in every version, so that versions can be compared
LOST = re.compile(
    r"gloo|connection (closed|reset|refused)|socket closed|broken pipe|heartbeat|coordination ?service"
    r"|unavailable|deadline.exceeded|barrier|nccl.*(remote|network)",
    re.IGNORECASE,
)
WIRE = re.compile(r"\bgloo \w+ failed|coordination ?service", re.IGNORECASE)  # in other errors too, such as a save's
TIMED_OUT = re.compile(r"timed? ?out|deadline", re.IGNORECASE)


def is_first() -> bool:
    """Return True in the process that writes logs and prints."""
    return jax.process_index() == 0


def first_says(value: int) -> int:
    """Return process 0's number in every process; all of them must call this at the same point."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return int(broadcast_one_to_all(np.int32(value)))


def refuse_bad_flags(coordinator: str, processes: int, process: int, distributed: bool) -> None:
    """Refuse flags other than none, --distributed alone, or --coordinator, --processes and --process together."""
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
    """Refuse a loopback coordinator if the launcher's `environment` tells of several machines.

    SLURM tells the nodes of a step (not those of an allocation: only part of them may be used), Open MPI
    the processes on this machine, a TPU pod its hosts. Elsewhere nothing is known before the processes
    meet; see `_ending_if_incomplete`.
    """

    def number(name: str) -> int:
        return int(value) if (value := environment.get(name, "")).isdecimal() else 0

    said = {
        "SLURM_STEP_NUM_NODES": number("SLURM_STEP_NUM_NODES") > 1,
        "OMPI_COMM_WORLD_LOCAL_SIZE": 0 < number("OMPI_COMM_WORLD_LOCAL_SIZE") < number("OMPI_COMM_WORLD_SIZE"),
        "TPU_WORKER_HOSTNAMES": "," in environment.get("TPU_WORKER_HOSTNAMES", ""),
    }
    several = [name for name, there in said.items() if there]
    if several and loopback(coordinator):
        raise UserError(
            f"--coordinator {coordinator} is reached from one machine only, and {', '.join(several)} tells of several "
            "hosts; write a name or address of process 0's machine that the others reach, or --distributed"
        )


def loopback(coordinator: str) -> bool:
    """Return True if HOST of HOST:PORT means this very machine by definition: localhost, 127.x or ::1."""
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
    """Join the job's other processes, or return when no flag is given. Call it before anything touches a device.

    This is for programs that own their process: it starts jax's distributed runtime, on CPUs turns jax's compilation
    cache off, and ends the process with code 75 when the job is not complete after `wait_seconds`, with code 2 when
    jax's service cannot start.

    Args:
      coordinator: HOST:PORT of process 0.
      processes: number of processes of the job.
      process: number of this one.
      distributed: find the three above on TPU pods, under SLURM and Open MPI.
      heartbeat_seconds: silence after which jax takes a peer for dead.
      wait_seconds: longest wait for the other processes.

    Raises:
      UserError: impossible flags, or a port in use.
    """
    refuse_bad_flags(coordinator, processes, process, distributed)
    if not (coordinator or distributed):
        return
    refuse_loopback(coordinator, os.environ)
    if process == 0:
        _refuse_taken(coordinator)
    place = (coordinator or None, processes or None, process if coordinator else None)
    with _ending_if_incomplete(place, wait_seconds):
        try:
            jax.distributed.initialize(
                *place,
                cluster_detection_method="deactivate" if coordinator else None,
                # at its own deadline jax aborts without a Python exception, so ours is earlier
                initialization_timeout=wait_seconds + 60,
                heartbeat_timeout_seconds=heartbeat_seconds,
            )
        except ValueError as error:
            raise UserError(_not_started(coordinator, error)) from error
        except RuntimeError as error:  # a service that did not start can crash the interpreter's own exit
            end(2, f"xmodal: {_not_started(coordinator, error)}")
    if jax.default_backend() == "cpu":
        # only process 0 would find its programs there, and Gloo gives the others 30 s to catch up
        jax.config.update("jax_enable_compilation_cache", False)
    log.info(
        "process %d of %d: when a peer dies, this one ends with code %d, or by jax's abort (134) after %d s of silence",
        jax.process_index(),
        jax.process_count(),
        GONE,
        heartbeat_seconds,
    )


def _refuse_taken(coordinator: str) -> None:
    """Refuse a port in use before jax tries it: its service may crash the interpreter when it cannot start."""
    port = int(coordinator.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            # a port that an ended job left behind is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"the port of --coordinator {coordinator} is in use on this machine; write another one"
            ) from error


def _not_started(coordinator: str, error: Exception) -> str:
    """Write the error sentence for a job that jax could not start."""
    if not coordinator:
        return (
            f"--distributed found no TPU pod, SLURM or Open MPI job ({error}); "
            "write --coordinator HOST:PORT --processes N --process I"
        )
    return f"the job at --coordinator {coordinator} could not start ({error}); look at the logs of the other processes"


@contextlib.contextmanager
def _ending_if_incomplete(place: tuple[str | None, int | None, int | None], seconds: int) -> Iterator[None]:
    """End the process if the body takes longer than `seconds`: a timer thread does it, as the main one waits in jax."""
    coordinator, processes, process = place

    def leave() -> None:
        what = f"process {process} of {processes}: the job at --coordinator {coordinator}" if coordinator else "the job"
        local = coordinator is not None and loopback(coordinator)
        near = " (which only processes on the same machine reach)" if local else ""
        hint = f"check the address{near} and that all processes run"
        end(GONE, f"xmodal: {what} was not complete after {seconds} s; {hint}")

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def agree(values: dict[str, Any]) -> None:
    """Refuse to go on unless every process was started with the same `values` (names to JSON values).

    Raises UserError on all processes, naming the first one that differs from process 0 and the values that differ.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digests = np.zeros(SLOTS, np.uint32)
    digests[: len(values)] = [zlib.crc32(json.dumps(value, sort_keys=True).encode()) for value in values.values()]
    table = multihost_utils.process_allgather(digests)
    for process, row in enumerate(table):
        differs = row != table[0]
        other = [name for name, own in zip(values, differs[: len(values)], strict=True) if own]
        if differs.any():  # also where another version of this package has more values
            raise UserError(
                f"process {process} was started with another {', '.join(other) or 'version'} than process 0; "
                "start all processes of a job with the same command"
            )


def again(workdir: str | pathlib.Path) -> str:
    """Describe the last save in a work directory and how to go on after code 75."""
    steps = [int(path.name) for path in pathlib.Path(workdir).glob("checkpoints/*") if path.name.isdigit()]
    saved = f"the last save is step {max(steps)}" if steps else "nothing was saved yet"
    return f"{saved}; start all processes again with the same command"


def heartbeat_for(stall: float) -> int:
    """Return the seconds of jax's own heartbeat, long enough for a watch of `stall` seconds to act first."""
    return int(stall) + 60 if stall else HEARTBEAT


@contextlib.contextmanager
def watching(stall: float, workdir: str | pathlib.Path) -> Iterator[None]:
    """End this process with code 75 when it or another one is stuck for `stall` seconds (parallel/stuck.py).

    Does nothing with one process, or with 0 seconds.
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
    """Yield an error and everything behind it, each once: causes, contexts, and the errors of a group."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is not None and one not in seen:
            yield one
            seen.append(one)
            waiting += [*getattr(one, "exceptions", ()), one.__cause__, one.__context__]


def lost_peer(error: BaseException) -> bool:
    """Return True if an error of the runtime, or one behind it, says that a process cannot be reached."""

    def told(one: BaseException) -> bool:
        runtime = isinstance(one, jax.errors.JaxRuntimeError)
        return bool((runtime and LOST.search(str(one))) or WIRE.search(str(one)))

    return any(told(one) for one in with_causes(error))


def verdict(error: BaseException, workdir: str | pathlib.Path) -> tuple[int, str]:
    """Return the exit code and the message for an error in one process of several."""
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
    """Print `text` and leave at once, without Python's own exit, which would wait for the peers."""
    if text:
        print(text, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@contextlib.contextmanager
def leaving_at_once(workdir: str | pathlib.Path, hung: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """End a process of several at once when it fails, so that its peers see it go instead of waiting for it.

    Process 0 prints its error at once and leaves `LAST` seconds later, so that peers with the same error can print
    it too.

    Exit codes: 75 when a peer died or is stuck (start again), 2 for bad input, 130 after Ctrl-C, 1 otherwise. With one
    process errors pass through, unless `hung()` says that a thread would keep Python from ending; then the process
    leaves this way even without an error, with code 0.
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
