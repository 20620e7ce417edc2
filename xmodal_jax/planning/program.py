"""Compile the real train step of a config for devices that need not exist, and read facts off the program."""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import jax
from jax.stages import Compiled, Lowered

from xmodal_jax.data.fields import batch_fields
from xmodal_jax.errors import UserError
from xmodal_jax.parallel.chips import Topology
from xmodal_jax.parallel.mesh import batch_sharding
from xmodal_jax.planning.collectives import Collective, collectives
from xmodal_jax.planning.hlo import parse_module, unknown_loops
from xmodal_jax.planning.traffic import step_traffic
from xmodal_jax.training.flops import executed_flops, step_flops
from xmodal_jax.training.loop import Run
from xmodal_jax.types import Batch

UNITS = {"": 1, "B": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
PARTS = ("params", "teacher", "opt_state", "memory")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: the arguments (state and batch), buffers of the step, results that are no argument, code.

    `usable` is the memory that the compiler says it may use (0: unknown); `largest` are the biggest buffers it named.
    """

    arguments: float
    temporary: float
    results: float = 0.0
    code: float = 0.0
    usable: float = 0.0
    refused: bool = False
    largest: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Total bytes on one device."""
        return self.arguments + self.temporary + self.results + self.code


@dataclass(frozen=True)
class Facts:
    """Facts of a compiled step. One that the compiler refused for memory (`compiled` False) has none of its HLO."""

    devices: int
    seconds: dict[str, float]
    useful_flops: float
    executed_flops: float
    xla_flops: float
    memory: Memory
    state: dict[str, float]  # bytes per device of each part of the state
    params: int
    batch_bytes: float
    collectives: tuple[Collective, ...] = ()
    traffic: float = 0.0
    unknown_loops: int = 0

    @property
    def compiled(self) -> bool:
        """True if the compiler made a program."""
        return not self.memory.refused


def topology_devices(topology: Topology) -> list[Any]:
    """Return the devices of a topology, which need not be here.

    Raises UserError if the TPU compiler is missing or refuses the shape.
    """
    if topology.local:
        return jax.devices()
    from jax.experimental import topologies

    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.compiler_name, **more)
    except Exception as error:  # the compiler's exceptions have no common class
        raise UserError(
            f"topology '{topology.text}': the TPU compiler refuses it ({str(error).splitlines()[0]}); "
            "write a shape that is sold"
        ) from error
    return list(found.devices)


def batch_shapes(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the fields of a global batch as shapes on the mesh (`types.Batch`)."""
    config, rows = run.assembly.config, batch_sharding(run.mesh)
    fields = batch_fields(config, run.assembly.facts)
    size = config.batch_size
    return {name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=rows) for name, (shape, dtype) in fields.items()}


def device_bytes(tree: Any) -> float:
    """Count the bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


class Phases:
    """A stopwatch with seconds by phase; it calls `say` at the start and end of each."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the body as the phase `name`."""
        self.say(f"{name} ...")
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started
            self.say(f"{name}: {self.seconds[name]:.1f} s")


def compile_step(
    run: Run, topology: Topology, say: Callable[[str], None], keep: Callable[[str], None] | None = None
) -> Facts:
    """Trace, lower and compile the step of `run`; `say` hears the phases, `keep` gets the compiled program's text.

    A program that the compiler refuses for memory gives facts with the numbers of its message.
    """
    batch, phase = batch_shapes(run), Phases(say)
    parts = {name: device_bytes(getattr(run.abstract, name)) for name in PARTS}
    state = parts | {"rest": device_bytes(run.abstract) - sum(parts.values())}
    arguments = sum(state.values()) + device_bytes(batch)
    with phase("tracing"):
        traced = run.step.trace(run.abstract, batch)
        executed = executed_flops(traced.jaxpr, run.mesh.size)
        useful = step_flops(run.recipe, run.abstract, cast(Batch, batch))  # shapes are enough
    with phase("lowering"):
        lowered = traced.lower()
    with phase("compiling"):
        compiled = _compile(lowered, arguments)
    facts = Facts(
        devices=run.mesh.size,
        seconds=phase.seconds,
        useful_flops=useful,
        executed_flops=executed,
        xla_flops=0.0,
        memory=compiled if isinstance(compiled, Memory) else memory_of(compiled),
        state=state,
        params=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.abstract.params)),
        batch_bytes=device_bytes(batch),
    )
    return facts if isinstance(compiled, Memory) else _with_program(facts, compiled, topology, phase, keep)


def _compile(lowered: Lowered, arguments: float) -> Compiled | Memory:
    """Return the compiled program, or the numbers of the compiler's refusal."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = parse_refusal(str(error), arguments)
        if refusal is None:
            raise
        return refusal


def _with_program(
    facts: Facts, compiled: Compiled, topology: Topology, phase: Phases, keep: Callable[[str], None] | None
) -> Facts:
    """Add the facts that the text of the compiled program gives."""
    with phase("reading the program"):
        text = compiled.as_text()
        assert text is not None, "XLA's backends give a program's text"
        if keep is not None:
            keep(text)
        module = parse_module(text)
        per_slice = topology.per_slice if topology.slices > 1 else 0
        found = tuple(collectives(module, facts.devices, per_slice))
        cost = compiled.cost_analysis() or {}
        return dataclasses.replace(
            facts,
            collectives=found,
            traffic=step_traffic(module),
            unknown_loops=unknown_loops(module),
            xla_flops=float(cost.get("flops", 0.0)),
        )


def memory_of(compiled: Compiled) -> Memory:
    """Read the compiler's own account of a program's memory on one device."""
    stats = compiled.memory_analysis()
    if stats is None:
        raise UserError("this backend does not say how much memory a program needs; plan for a TPU topology")
    return Memory(
        arguments=stats.argument_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
        results=max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes),
        code=stats.generated_code_size_in_bytes,
    )


def _amount(text: str, pattern: str) -> float:
    """Find the first size such as 15.75G after `pattern`, in bytes; 0 if there is none."""
    found = re.search(pattern + r"\s*([\d.]+)([KMGT]?)", text)
    return float(found[1]) * UNITS[found[2]] if found else 0.0


def _first(pattern: str, text: str) -> str:
    """Return the first group of the first match of `pattern`; "" if there is none."""
    found = re.search(pattern, text)
    return found[1] if found else ""


def parse_refusal(message: str, arguments: float = 0.0) -> Memory | None:
    """Read the numbers in XLA's RESOURCE_EXHAUSTED for device memory; None for any other error.

    Two spellings are in use: one gives the total ("Used 20.7G of 15.75G hbm") with a table of arguments and buffers,
    the other ("the total memory required for HLO temporaries (27.95G) exceeds available HBM (15.75G)") the temporaries
    alone; `arguments` (bytes) stands in where the message has none.
    """
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    named = _amount(message, r"\n\s+arguments") or arguments
    temporary, usable = _amount(message, r"HLO temporaries \("), _amount(message, r"available HBM \(")
    if not temporary:
        used, usable = _amount(message, r"Used"), _amount(message, r"Used [\d.]+[KMGT]? of")
        temporary = max(0.0, used - named)
    if not temporary or not usable:
        return None
    largest = []
    for entry in re.findall(r"\n\s+\d+\. Size: .*?(?=\n\s+=====|\Z)", message, re.DOTALL)[:8]:
        size, shape = _first(r"Size: (\S+)", entry), _first(r"Shape: (\S+)", entry).split("{")[0]
        source = _first(r'op_name="([^"]*)"', entry)
        largest.append(f"{size} {shape} {source}".rstrip())
    return Memory(named, temporary, usable=usable, refused=True, largest=tuple(largest))
