"""Parse compiled HLO text into instructions, and count how often each computation runs in one step.

XLA's own cost analysis counts the body of a loop once, whatever its trips. The towers are loops over layers, so counts
here are multiplied by the trips, read off the loop's annotation or its condition.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
}
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(?:ENTRY\s+)?%?([\w.\-]+)")
_HEAD = re.compile(r"^\s*(ROOT\s+)?%?([\w.\-]+) = ")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation: `shape` is its text, `operands` the names it reads, `rest` its attributes."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    inside: str  # text of the parentheses: the literal of a constant, the number of a parameter
    root: bool = False

    def called(self, *kinds: str) -> list[str]:
        """List the computations that it names under these attributes."""
        return [name for kind, name in _CALLED.findall(self.rest) if kind in kinds]


@dataclass
class Computation:
    """The instructions of one computation, in the order they are scheduled."""

    name: str
    entry: bool
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def root(self) -> Instruction:
        """Return the instruction whose value the computation returns."""
        return next(item for item in self.instructions.values() if item.root)


def shape_bytes(shape: str, everywhere: bool = True) -> float:
    """Count the bytes of an array or tuple shape; without `everywhere` only arrays in main memory (not `S(n)`)."""
    total = 0.0
    for kind, dimensions, layout in ARRAY.findall(shape):
        if kind in BYTES and (everywhere or "S(" not in (layout or "")):
            total += math.prod(map(int, filter(None, dimensions.split(",")))) * BYTES[kind]
    return total


def _closing(text: str, start: int) -> int:
    """Find the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"no closing parenthesis in {text[start : start + 80]!r}")


def parse_instruction(line: str) -> Instruction | None:
    """Parse one line of HLO text; None for a line that holds no instruction."""
    head = _HEAD.match(line)
    if head is None:
        return None
    body = line[head.end() :]
    end = _closing(body, 0) + 1 if body.startswith("(") else body.index(" ")
    shape, body = body[:end], body[end:].lstrip()
    opening = body.index("(")
    closing = _closing(body, opening)
    inside = body[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(head[2], shape, body[:opening], operands, body[closing + 1 :], inside, bool(head[1]))


def parse_module(text: str) -> dict[str, Computation]:
    """Parse compiled HLO text into {name: computation}."""
    module: dict[str, Computation] = {}
    current = None
    for line in text.splitlines():
        if line.endswith("{") and " -> " in line and not line.startswith(" "):
            head = _COMPUTATION.match(line)
            assert head is not None, "a line that opens a computation begins with its name"
            current = module[head[1]] = Computation(head[1], line.startswith("ENTRY"))
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := parse_instruction(line)) is not None:
            current.instructions[found.name] = found
    return module


def trips(module: dict[str, Computation], loop: Instruction) -> int:
    """Return how often the body of a `while` runs, by its annotation or its condition's bound; 0 if unknown."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = module[loop.called("condition")[0]]
    test = condition.root()
    if test.opcode == "fusion":  # of the comparison alone
        condition = Computation("", False, condition.instructions | module[test.called("calls")[0]].instructions)
        test = next((x for x in condition.instructions.values() if x.opcode == "compare"), test)
    bounds = [x for x in condition.instructions.values() if x.opcode == "constant" and re.fullmatch(r"\d+", x.inside)]
    if test.opcode != "compare" or len(bounds) != 1 or "direction=LT" not in test.rest:
        return 0
    return int(bounds[0].inside)


def _calls(module: dict[str, Computation], item: Instruction) -> Iterator[tuple[str, int]]:
    """Yield (computation, times) for each run by one instruction; reducers run per number and are left out."""
    if item.opcode == "while":
        for name in item.called("body"):
            yield name, max(1, trips(module, item))
    elif item.opcode == "call":
        yield from ((name, 1) for name in item.called("to_apply", "calls"))
    else:
        yield from ((name, 1) for name in item.called("calls", "true_computation", "false_computation"))
        for branches in _BRANCHES.findall(item.rest):
            yield from ((name.strip().lstrip("%"), 1) for name in branches.split(","))


def runs(module: dict[str, Computation]) -> dict[str, int]:
    """Count the runs of each computation in one step; those that never run are left out, all branches count."""
    callers: dict[str, list[tuple[str, int]]] = {}
    for computation in module.values():
        for item in computation.instructions.values():
            for name, times in _calls(module, item):
                callers.setdefault(name, []).append((computation.name, times))

    @functools.cache
    def count(name: str) -> int:
        if module[name].entry:
            return 1
        return sum(times * count(caller) for caller, times in callers.get(name, ()))

    return {name: times for name in module if (times := count(name))}


def unknown_loops(module: dict[str, Computation]) -> int:
    """Count the loops of the step with unknown trips: their bodies count once."""
    counted = runs(module)
    loops = [x for name in counted for x in module[name].instructions.values() if x.opcode == "while"]
    return sum(trips(module, loop) == 0 for loop in loops)
