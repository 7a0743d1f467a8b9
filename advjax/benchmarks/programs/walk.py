"""Where each instruction of a compiled program runs: in which loops, and whether inside a kernel."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from advjax.benchmarks.programs.hlo import Instruction, Module

_NO_WORK = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "opt-barrier", "add-dependency", "domain"),
}
_NO_WORK_TARGETS = {"AssumeGatherIndicesInBound", "ConcatBitcast", "AllocateBuffer"}
"""Custom calls that tell the compiler something and do nothing."""
_TRANSFERS = {"copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start"}
_KERNELS = {
    *("fusion", "reduce", "reduce-window", "select-and-scatter", "scatter", "sort", "map", "custom-call"),
    *("all-reduce", "all-reduce-start", "reduce-scatter"),
}
"""Operations whose computations are parts of one kernel."""


class Loop(NamedTuple):
    """A loop, by the instruction that runs it."""

    name: str
    trips: int | None
    """Number of turns; None if it is not known when the program is compiled."""


class Placed(NamedTuple):
    """An instruction and where it runs."""

    instruction: Instruction
    computation: str
    loops: tuple[Loop, ...]
    """The loops around it, the outermost first."""
    is_fused: bool
    """Whether it is a part of a kernel rather than one itself."""
    is_applied: bool
    """Whether it is in the function of a reduction, sort or scatter, whose operations are on single elements."""

    @property
    def times(self) -> int:
        """How often it runs in one call of the program; an unknown number of turns counts as one."""
        count = 1
        for loop in self.loops:
            count *= 1 if loop.trips is None else loop.trips
        return count

    @property
    def is_work(self) -> bool:
        """Whether it is a unit of work that the device is given: a kernel or a transfer."""
        kind = self.instruction.opcode
        is_nothing = kind in _NO_WORK or kind.endswith(("-done", "-update"))
        is_nothing |= self.instruction.target in _NO_WORK_TARGETS
        return not (self.is_fused or self.is_applied or is_nothing)

    @property
    def is_kernel(self) -> bool:
        """Whether it is work other than a transfer between memories, which runs beside the kernels."""
        return self.is_work and self.instruction.opcode not in _TRANSFERS


def walk(module: Module) -> Iterator[Placed]:
    """All instructions that can run; those of a computation that is called twice appear twice."""
    yield from _walk(module, module.entry, (), False, False)


def _walk(
    module: Module, computation: str, loops: tuple[Loop, ...], is_fused: bool, is_applied: bool
) -> Iterator[Placed]:
    for instruction in module.computations.get(computation, {}).values():
        yield Placed(instruction, computation, loops, is_fused, is_applied)
        opcode, inner = instruction.opcode, loops
        if opcode == "while":
            inner = (*loops, Loop(instruction.name, trip_count(module, computation, instruction)))
        for kind, called in instruction.called:
            if kind != "condition":
                applied = is_applied or (kind == "to_apply" and opcode != "call")
                yield from _walk(module, called, inner, is_fused or opcode in _KERNELS, applied)


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """Number of turns of a loop: what the compiler has noted, or that of ``for i in range(start, end)``.

    Args:
      module: the program.
      computation: where the loop is.
      loop: an instruction ``while``.

    Returns:
      The number, or None if it is not known when the program is compiled.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(known[1])
    called = dict(loop.called)
    outside, condition = module.computations[computation], module.computations.get(called.get("condition", ""), {})
    body = module.computations.get(called.get("body", ""), {})
    test, result = _root(condition), _root(body)
    if test is None or result is None or test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    index = _element(condition, test.operands[0])
    initial = outside.get(loop.operands[0])
    if index is None or initial is None or initial.opcode != "tuple" or result.opcode != "tuple":
        return None
    step = body.get(result.operands[index])
    if step is None or step.opcode != "add" or _element(body, step.operands[0]) != index:
        return None
    start, end = _constant(outside, initial.operands[index]), _constant(condition, test.operands[1])
    if start is None or end is None or _constant(body, step.operands[1]) != 1:
        return None
    return max(end - start, 0)


def _root(computation: Mapping[str, Instruction]) -> Instruction | None:
    return next((found for found in computation.values() if found.is_root), None)


def _element(computation: Mapping[str, Instruction], name: str) -> int | None:
    """The index of a value that is an element of the tuple which a computation is given."""
    found = _without_copies(computation, name)
    return int(found.attribute("index")) if found is not None and found.opcode == "get-tuple-element" else None


def _constant(computation: Mapping[str, Instruction], name: str) -> int | None:
    found = _without_copies(computation, name)
    is_number = found is not None and found.opcode == "constant" and re.fullmatch(r"-?\d+", found.arguments)
    return int(found.arguments) if found is not None and is_number else None


def _without_copies(computation: Mapping[str, Instruction], name: str) -> Instruction | None:
    found = computation.get(name)
    while found is not None and found.opcode in ("copy", "bitcast") and found.operands:
        found = computation.get(found.operands[0])
    return found
