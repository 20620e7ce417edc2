"""Bytes that a compiled step reads from and writes to main memory on one device: an estimate from the HLO text.

Every scheduled instruction reads its operands and writes its result once; what lives in on-chip memory (layout `S(n)`)
is free, and an instruction that takes a slice of an array, or writes one into it, moves the slice only.
"""

from xmodal_jax.plan.hlo import Computation, Instruction, runs, shape_bytes

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "add-dependency", "iota",
}  # fmt: skip
SLICES = ("dynamic-slice", "gather")


def step_traffic(module: dict[str, Computation]) -> float:
    """Bytes per device and step."""
    inner = {name for c in module.values() for x in c.instructions.values() if x.opcode == "fusion"
             for name in x.called("calls")}  # fmt: skip
    total = 0.0
    for name, times in runs(module).items():
        if name not in inner:
            scheduled = module[name].instructions.values()
            total += times * sum(moved(item, module[name], module) for item in scheduled)
    return total


def moved(item: Instruction, computation: Computation, module: dict[str, Computation]) -> float:
    """Bytes that one scheduled instruction reads and writes."""
    if item.opcode in FREE or item.opcode.endswith("-done"):
        return 0.0
    size = lambda name: _size(computation, name)
    if item.opcode in SLICES:
        return 2 * shape_bytes(item.shape, False)
    if item.opcode == "dynamic-update-slice":
        return 2 * size(item.operands[1])
    if item.opcode.endswith("-start"):  # the result lists the operands again, and the new array
        return shape_bytes(item.shape, False)
    if item.opcode == "fusion":
        return _fused(item, computation, module[item.called("calls")[0]])
    return shape_bytes(item.shape, False) + sum(map(size, item.operands))


def _size(computation: Computation, name: str) -> float:
    found = computation.instructions.get(name)
    return shape_bytes(found.shape, False) if found is not None else 0.0


def _fused(item: Instruction, computation: Computation, body: Computation) -> float:
    """Bytes of a fusion: each operand by how the fused code uses it, and the result."""
    parameters = {int(x.inside): x.name for x in body.instructions.values() if x.opcode == "parameter"}
    read = 0.0
    for number, operand in enumerate(item.operands):
        whole = _size(computation, operand)
        users = [x for x in body.instructions.values() if parameters.get(number) in x.operands]
        read += min(whole, sum(_use(user, parameters[number], body, whole) for user in users)) if users else 0.0
    root = body.root()
    written = shape_bytes(item.shape, False)
    if root.opcode == "dynamic-update-slice":
        written = min(written, shape_bytes(body.instructions[root.operands[1]].shape))
    return read + written


def _use(user: Instruction, name: str, body: Computation, whole: float) -> float:
    """Bytes of the parameter `name` that one instruction inside a fusion needs."""
    if user.opcode in SLICES and user.operands[0] == name:
        return shape_bytes(user.shape)
    if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        return 0.0  # written in place
    return whole
