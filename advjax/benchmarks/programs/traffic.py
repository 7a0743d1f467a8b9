"""What the kernels of a compiled program read from and write to the main memory of the device."""

from collections.abc import Mapping

from advjax.benchmarks.programs.hlo import Instruction, Module, Shape

_PARTS = ("gather", "dynamic-slice", "slice")
"""Operations that read no more of their first operand than they return."""


def kernel_bytes(module: Module, computation: str, instruction: Instruction) -> int:
    """Bytes that a kernel reads and writes, each operand once, whatever caches may save.

    Of an operand of which only slices are used, those count; arrays in on-chip memory do not.
    """
    here = module.computations[computation]
    if instruction.opcode.endswith("-start") and len(instruction.shapes) > 1:
        # A transfer: its type is that of the arrays on both sides, and of a flag.
        sides = instruction.shapes[:2]
        return min(shape.nbytes for shape in sides) * sum(not shape.is_on_chip for shape in sides)
    inside = module.computations.get(dict(instruction.called).get("calls", ""), {})
    read = 0
    for position, name in enumerate(instruction.operands):
        if name in instruction.operands[:position] or name not in here:
            continue
        for number, shape in enumerate(here[name].shapes):
            if not shape.is_on_chip:
                is_array = len(here[name].shapes) == 1 and number == 0
                part = _part_read(instruction, position, inside) if is_array else None
                read += shape.nbytes if part is None else min(part, shape.nbytes)
    return read + _written(instruction, inside)


def _part_read(instruction: Instruction, position: int, inside: Mapping[str, Instruction]) -> int | None:
    """Bytes of an operand that are read if only slices of it are used; None if all of it may be."""
    if instruction.opcode in _PARTS and position == 0:
        return instruction.nbytes
    if instruction.opcode == "dynamic-update-slice" and position == 0:
        return 0
    parameter = next(
        (found for found in inside.values() if found.opcode == "parameter" and found.arguments == str(position)), None
    )
    if parameter is None:
        return None
    total, names = 0, [parameter.name]
    while names:
        name = names.pop()
        for user in inside.values():
            if name not in user.operands:
                continue
            if user.opcode in ("bitcast", "reshape"):
                names.append(user.name)
            elif user.opcode in _PARTS and user.operands.index(name) == 0:
                total += user.nbytes
            elif user.opcode != "dynamic-update-slice" or user.operands.index(name) != 0:
                return None
    return total


def _written(instruction: Instruction, inside: Mapping[str, Instruction]) -> int:
    """Bytes of the results in main memory; of a result that is updated in place, those of the update."""
    root = next((found for found in inside.values() if found.is_root), instruction)
    while root.opcode == "bitcast" and root.operands[0] in inside:
        root = inside[root.operands[0]]
    if root.opcode == "dynamic-update-slice" and root.operands[1] in inside:
        return inside[root.operands[1]].nbytes
    return sum(_in_memory(shape) for shape in instruction.shapes)


def _in_memory(shape: Shape) -> int:
    return 0 if shape.is_on_chip else shape.nbytes
