"""Write a plan as lines of text: memory, work, network, roofline and verdict."""

from collections.abc import Iterator

from xmodal_jax.parallel.chips import GIB, Chip, Topology
from xmodal_jax.planning.advice import changes
from xmodal_jax.planning.collectives import by_kind
from xmodal_jax.planning.program import Facts
from xmodal_jax.planning.roofline import roofline
from xmodal_jax.training.loop import Run

NAMES = {"params": "student", "teacher": "teacher", "opt_state": "optimizer", "memory": "queues", "rest": "counters"}


def gib(size: float) -> str:
    """Format bytes in GiB, or in MiB below a tenth of one."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 1024**2:.3g} MiB"


def milliseconds(seconds: float) -> str:
    """Format seconds in ms."""
    return f"{1e3 * seconds:.3g} ms"


def head_lines(run: Run, facts: Facts, topology: Topology, chip: Chip | None) -> Iterator[str]:
    """Yield the lines on config, devices and model."""
    config, mesh = run.assembly.config, dict(run.mesh.shape)
    yield f"plan of {config.name} on {topology.text}" + (f", judged as {chip.name}" if topology.local and chip else "")
    holders = mesh["data"] * mesh["fsdp"]
    axes = " x ".join(f"{name} {size}" for name, size in mesh.items())
    yield f"mesh        {axes} = {facts.devices} devices"
    share = f"{config.batch_size // holders} on each of {holders} devices"
    chunk = f", in chunks of {config.chunk}" if config.chunk else ""
    yield f"batch       {config.batch_size} pairs, {share}{chunk}; {config.dtype}"
    yield f"objectives  {', '.join(run.assembly.objectives)}"
    yield f"parameters  {facts.params / 1e6:.1f} M; vocabulary {run.assembly.config.asking.vocab_size}"


def memory_lines(facts: Facts, chip: Chip | None) -> Iterator[str]:
    """Yield the lines on the memory of one device."""
    memory = facts.memory
    yield "memory of one device"
    for name, size in facts.state.items():
        yield f"  {NAMES[name]:<12}{gib(size):>12}"
    yield f"  {'batch':<12}{gib(facts.batch_bytes):>12}"
    refused = ", as refused" if memory.refused else ""
    yield f"  {'temporary':<12}{gib(memory.temporary):>12}  activations, gradients{refused}"
    yield f"  {'code':<12}{gib(memory.code + memory.results):>12}  and results that are no argument"
    limit = memory.usable or (chip.usable if chip else 0)
    share = f" of {gib(limit)} usable, {100 * memory.total / limit:.0f} %" if limit else ""
    yield f"  {'total':<12}{gib(memory.total):>12}{share}"
    yield from (f"  large buffer: {text}" for text in memory.largest)


def work_lines(facts: Facts, pairs: int) -> Iterator[str]:
    """Yield the lines on FLOPs, memory traffic and collectives."""
    useful, executed = (flops / pairs / 1e9 for flops in (facts.useful_flops, facts.executed_flops))
    yield f"work        {useful:.4g} GFLOP per pair useful; {executed:.4g} executed, recomputation included"
    if not facts.compiled:
        return
    yield f"            XLA counts {facts.xla_flops / 1e9:.4g} GFLOP per device and step, bodies of loops once"
    yield f"            {facts.traffic / 1e9:.4g} GB to and from memory per device and step (estimate from the program)"
    yield "collectives per step (count, bytes of the arrays on one device; loops multiplied by their trips)"
    for kind, (count, size) in by_kind(list(facts.collectives)).items():
        yield f"  {kind:<20}{count:>6}  {size / 1e9:9.4g} GB"
    if not facts.collectives:
        yield "  none"
    for one in facts.collectives[:5]:
        over = f"over {one.group} devices{' in several slices' if one.far else ''}"
        yield f"  largest: {one.times} x {one.kind} of {one.payload / 1e6:.4g} MB {over}  {one.source[-80:]}"
    if facts.unknown_loops:
        yield f"  {facts.unknown_loops} loops with unknown trips count once: the figures above are lower bounds"


def roofline_lines(facts: Facts, chip: Chip, topology: Topology, pairs: int) -> Iterator[str]:
    """Yield the lines on the least step time."""
    roof = roofline(facts, chip, topology, pairs)
    times = {"arithmetic": roof.compute, "memory": roof.hbm, "network": roof.network}
    yield "roofline    " + ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in times.items())
    yield f"            at least {milliseconds(roof.seconds)} a step, bound by {roof.bound}"
    yield f"            at most {roof.rate:,.0f} pairs/s, MFU {100 * roof.mfu:.1f} %"


def verdict_lines(run: Run, facts: Facts, chip: Chip | None) -> Iterator[str]:
    """Yield whether the step fits, and if not, the changes that would make it."""
    memory = facts.memory
    limit = memory.usable or (chip.usable if chip else 0)
    if not limit:
        yield "verdict     not judged: no chip is known for these devices; name one (option 'chip') to judge them as it"
        return
    missing = memory.total - limit
    if missing <= 0 and facts.compiled:
        yield f"verdict     fits, {gib(-missing)} free"
        return
    yield f"verdict     does not fit: {gib(missing)} too much. Cheapest changes first (ESTIMATES, not compiled):"
    for one in changes(run, facts, missing):
        note = "" if one.saves >= missing else ", not enough alone"
        yield f"  --config.{one.override}: {one.why}, saves about {gib(one.saves)}{note}"


def sheet(run: Run, facts: Facts, topology: Topology, chip: Chip | None) -> Iterator[str]:
    """Yield all lines of a plan."""
    pairs = run.assembly.config.batch_size
    yield from head_lines(run, facts, topology, chip)
    yield from memory_lines(facts, chip)
    yield from work_lines(facts, pairs)
    if chip is not None and facts.compiled:
        yield from roofline_lines(facts, chip, topology, pairs)
    yield "time        " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in facts.seconds.items())
    yield from verdict_lines(run, facts, chip)
