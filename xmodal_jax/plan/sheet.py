"""The printed plan."""

from collections.abc import Iterator

from xmodal_jax.plan.advice import changes
from xmodal_jax.plan.chips import GIB, Chip, Topology
from xmodal_jax.plan.collectives import by_kind
from xmodal_jax.plan.program import Facts
from xmodal_jax.plan.roofline import roofline
from xmodal_jax.train.loop import Run

NAMES = {"params": "parameters", "teacher": "teacher", "opt_state": "optimizer", "memory": "queues", "rest": "counters"}


def gib(size: float) -> str:
    """Bytes as text in GiB, or MiB below a tenth."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 1024**2:.1f} MiB"


def milliseconds(seconds: float) -> str:
    """Seconds as text in ms."""
    return f"{1e3 * seconds:.3g} ms"


def head_lines(run: Run, facts: Facts, topology: Topology, chip: Chip | None) -> Iterator[str]:
    """Config, devices, model."""
    config, mesh = run.assembly.config, dict(run.mesh.shape)
    yield f"plan of {config.name} on {topology.text}" + (f", judged as {chip.name}" if topology.local and chip else "")
    rows = config.batch_size // (mesh["data"] * mesh["fsdp"])
    axes = " x ".join(f"{name} {size}" for name, size in mesh.items())
    yield f"mesh        {axes} = {facts.devices} devices"
    yield f"batch       {config.batch_size} pairs, {rows} on each of {mesh['data'] * mesh['fsdp']} devices; {config.dtype}; objectives {', '.join(run.assembly.objectives)}"
    yield f"parameters  {facts.params / 1e6:.1f} M; vocabulary {run.assembly.config.text.vocab_size}"


def memory_lines(facts: Facts, chip: Chip | None) -> Iterator[str]:
    """Bytes of one device."""
    memory = facts.memory
    yield "memory of one device"
    for name, size in facts.state.items():
        yield f"  {NAMES[name]:<12}{gib(size):>12}"
    yield f"  {'batch':<12}{gib(facts.batch_bytes):>12}"
    yield f"  {'activations and temporaries':<12} {gib(memory.temporary)}" + (" (as refused)" if memory.refused else "")
    if memory.results + memory.code:
        yield f"  {'results and code':<12} {gib(memory.results + memory.code)}"
    limit = memory.usable or (chip.usable if chip else 0)
    share = f" of {gib(limit)} usable, {100 * memory.total / limit:.0f} %" if limit else ""
    yield f"  total       {gib(memory.total)}{share}"
    yield from (f"  large buffer: {text}" for text in memory.largest)


def work_lines(facts: Facts, pairs: int) -> Iterator[str]:
    """FLOPs and what is sent."""
    yield f"work        {facts.useful_flops / pairs / 1e9:.4g} GFLOP per pair useful; {facts.executed_flops / pairs / 1e9:.4g} executed, recomputation included"
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
        yield f"  largest: {one.times} x {one.kind} of {one.payload / 1e6:.4g} MB over {one.group}{' (between slices)' if one.far else ''}  {one.source[-80:]}"
    if facts.unknown_loops:
        yield f"  {facts.unknown_loops} loops with unknown trips count once: the figures above are lower bounds"


def roofline_lines(facts: Facts, chip: Chip, topology: Topology, pairs: int) -> Iterator[str]:
    """The least step time."""
    roof = roofline(facts, chip, topology, pairs)
    yield f"roofline    arithmetic {milliseconds(roof.compute)}, memory {milliseconds(roof.hbm)}, network {milliseconds(roof.network)}"
    yield f"            at least {milliseconds(roof.seconds)} a step, bound by {roof.bound}: at most {roof.rate:,.0f} pairs/s, MFU {100 * roof.mfu:.1f} %"


def verdict_lines(run: Run, facts: Facts, chip: Chip | None) -> Iterator[str]:
    """Fits or not, and what would make it."""
    memory = facts.memory
    limit = memory.usable or (chip.usable if chip else 0)
    if not limit:
        yield "verdict     not judged: no chip is known for these devices; write --chip NAME to judge them as one"
        return
    missing = memory.total - limit
    if missing <= 0 and facts.compiled:
        yield f"verdict     fits, {gib(-missing)} free"
        return
    yield f"verdict     does not fit: {gib(missing)} too much. Cheapest changes first (ESTIMATES, not compiled):"
    for one in changes(run, facts, missing):
        note = "" if one.saves >= missing else ", not enough alone"
        yield f"  --config.{one.override}: {one.why}, saves about {gib(one.saves)}{note}"


def fits(facts: Facts, chip: Chip | None) -> bool:
    """Whether the step fits (True where nothing is known of the devices)."""
    limit = facts.memory.usable or (chip.usable if chip else float("inf"))
    return facts.compiled and facts.memory.total <= limit


def sheet(run: Run, facts: Facts, topology: Topology, chip: Chip | None) -> Iterator[str]:
    """All lines of a plan."""
    pairs = run.assembly.config.batch_size
    yield from head_lines(run, facts, topology, chip)
    yield from memory_lines(facts, chip)
    yield from work_lines(facts, pairs)
    if chip is not None and facts.compiled:
        yield from roofline_lines(facts, chip, topology, pairs)
    yield "time        " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in facts.seconds.items())
    yield from verdict_lines(run, facts, chip)
