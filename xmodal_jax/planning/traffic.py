"""Estimate, from the HLO text, the bytes that a compiled step reads from and writes to main memory on one device.

Every scheduled instruction reads its operands and writes its result once. Arrays in on-chip memory (layout `S(n)`) are
free, and an instruction that takes a slice of an array, or writes one into it, moves the slice only.
"""

from xmodal_jax.planning.hlo import ARRAY, Computation, Instruction, runs, shape_bytes

FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
    "iota",
}
SLICES = ("dynamic-slice", "gather")


def step_traffic(module: dict[str, Computation]) -> float:
    """Count the bytes moved per device and step."""
    every = (item for computation in module.values() for item in computation.instructions.values())
    inner = {name for item in every if item.opcode == "fusion" for name in item.called("calls")}
    total = 0.0
    for name, times in runs(module).items():
        if name not in inner:
            scheduled = module[name].instructions.values()
            total += times * sum(moved(item, module[name], module) for item in scheduled)
    return total


def moved(item: Instruction, computation: Computation, module: dict[str, Computation]) -> float:
    """Count the bytes that one scheduled instruction reads and writes."""
    if item.opcode in FREE or item.opcode.endswith("-done"):
        return 0.0

    def size(name: str) -> float:
        return _size(computation, name)

    if item.opcode in SLICES:
        return 2 * shape_bytes(item.shape, False)
    if item.opcode == "dynamic-update-slice":
        return 2 * size(item.operands[1])
    if item.opcode.endswith("-start"):  # the result lists the operands again, and the new array
        return shape_bytes(item.shape, False)
    if item.opcode == "fusion":
        return _fused(item, computation, module)
    return shape_bytes(item.shape, False) + sum(map(size, item.operands))


def _size(computation: Computation, name: str) -> float:
    """Return the bytes of a named array in main memory, 0 for a name of another computation."""
    found = computation.instructions.get(name)
    return shape_bytes(found.shape, False) if found is not None else 0.0


def _fused(item: Instruction, computation: Computation, module: dict[str, Computation]) -> float:
    """Count the bytes of a fusion: each operand by how the fused code uses it, and each result."""
    body = module[item.called("calls")[0]]
    read = sum(
        _need(_parameter(body, number), body, module, _size(computation, operand))
        for number, operand in enumerate(item.operands)
    )
    root, arrays = body.root(), ARRAY.findall(item.shape)
    parts = [body.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(arrays):
        return read + shape_bytes(item.shape, False)
    return read + sum(
        _written(part, f"{kind}[{size}]{layout}", body)
        for part, (kind, size, layout) in zip(parts, arrays, strict=True)
    )


def _parameter(body: Computation, number: int) -> str:
    """Find the name of a computation's parameter by its number."""
    return next(x.name for x in body.instructions.values() if x.opcode == "parameter" and int(x.inside) == number)


def _written(part: Instruction, shape: str, body: Computation) -> float:
    """Count the bytes that one result of a fusion writes: the slice if updated in place, 0 if passed through."""
    if part.opcode == "parameter":
        return 0.0
    size = shape_bytes(shape, False)
    if part.opcode == "dynamic-update-slice":
        return min(size, shape_bytes(body.instructions[part.operands[1]].shape))
    return size


def _need(name: str, body: Computation, module: dict[str, Computation], whole: float) -> float:
    """Count the bytes of `name` (`whole` in all) that the instructions of a fused computation need."""
    if not whole:
        return 0.0
    users = [x for x in body.instructions.values() if name in x.operands]
    return min(whole, sum(_use(user, name, body, module, whole) for user in users))


def _use(user: Instruction, name: str, body: Computation, module: dict[str, Computation], whole: float) -> float:
    """Count the bytes of `name` that one instruction inside a fusion needs."""
    first = user.operands[0] == name
    if user.opcode in SLICES and first:
        return shape_bytes(user.shape)
    if user.opcode == "tuple" or (user.opcode == "dynamic-update-slice" and first):
        return 0.0  # passed through, or written in place
    if user.opcode == "bitcast":
        return _need(user.name, body, module, whole)
    if user.opcode == "fusion":
        inner = module[user.called("calls")[0]]
        return _need(_parameter(inner, user.operands.index(name)), inner, module, whole)
    return whole
