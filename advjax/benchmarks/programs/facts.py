"""Facts about a compiled program, from its text."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from advjax.benchmarks.programs.arithmetic import Product, product
from advjax.benchmarks.programs.hlo import Instruction, Module, parse
from advjax.benchmarks.programs.traffic import kernel_bytes
from advjax.benchmarks.programs.walk import Loop, Placed, walk

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")
_MOVES = {"parameter", "bitcast", "copy", "transpose", "reshape", "constant", "get-tuple-element", "tuple"}


class Array(NamedTuple):
    """An array, by what makes it."""

    name: str
    kind: str
    """The operation."""
    type: str
    nbytes: int


class Facts(NamedTuple):
    """What a compiled program does on one device in one call."""

    flop: int
    """Of convolutions and products, in all turns of its loops."""
    nbytes: int
    """That kernels and transfers read from and write to main memory, in all turns of its loops."""
    kernels: int
    """In all turns of its loops; transfers between memories are not counted."""
    products: tuple[tuple[Product, int], ...]
    """Convolutions and products of one type and precision, with their FLOP in all, and their number in the text."""
    loops: tuple["Region", ...]
    """The loops, each with what is in it."""
    step: "Region"
    """The innermost loop that evaluates the model; the whole program if none does."""
    conditionals: int
    """In the whole program."""
    collectives: tuple[Array, ...]
    """In the text of the program, the largest first; the bytes are those of the result on one device."""
    copies: tuple[Array, ...]
    """Kernels that only move an array or change its layout, the largest first."""
    host_calls: tuple[str, ...]
    """Operations that need the host: callbacks, infeed, outfeed, send and receive."""
    largest_constant: int
    """Bytes."""


class Region(NamedTuple):
    """A loop, or the whole program."""

    name: str
    trips: int | None
    """Number of turns, 1 for the whole program; None if it is not known when the program is compiled."""
    depth: int
    """Number of loops around the kernels: 0 for the whole program."""
    kernels: int
    """In one turn, those of loops inside it once."""
    flop: int
    nbytes: int
    conditionals: int
    loops_inside: int


def facts(text: str) -> Facts:
    """Facts about the text of a compiled program."""
    module = parse(text)
    placed = [found for found in walk(module) if not found.is_applied]
    multiplied = [(found, made) for found in placed if (made := _product(module, found)) is not None]
    regions = _regions(module, placed, multiplied)
    working = [found for found in placed if found.is_work]
    return Facts(
        flop=sum(made.flop * found.times for found, made in multiplied),
        nbytes=sum(_bytes(module, found) * found.times for found in working),
        kernels=sum(found.times for found in working if found.is_kernel),
        products=_grouped(multiplied),
        loops=tuple(regions[1:]),
        step=max(
            (found for found in regions if found.flop or not found.depth), key=lambda found: (found.depth, found.flop)
        ),
        conditionals=sum(found.instruction.opcode == "conditional" for found in placed),
        collectives=_largest_first(filter(_is_collective, (found.instruction for found in placed))),
        copies=_largest_first(found.instruction for found in working if _only_moves(module, found)),
        host_calls=tuple(_host_name(found.instruction) for found in placed if _needs_host(found.instruction)),
        largest_constant=max((one.nbytes for one in _instructions(placed) if one.opcode == "constant"), default=0),
    )


def _instructions(placed: Sequence[Placed]) -> list[Instruction]:
    return [found.instruction for found in placed]


def _product(module: Module, found: Placed) -> Product | None:
    return product(found.instruction, module.computations[found.computation])


def _bytes(module: Module, found: Placed) -> int:
    return kernel_bytes(module, found.computation, found.instruction)


def _grouped(multiplied: Sequence[tuple[Placed, Product]]) -> tuple[tuple[Product, int], ...]:
    flop, count = Counter(), Counter()
    for found, made in multiplied:
        kind = made._replace(flop=0)
        flop[kind] += made.flop * found.times
        count[kind] += 1
    return tuple((kind._replace(flop=flop[kind]), count[kind]) for kind in count)


def _regions(module: Module, placed: Sequence[Placed], multiplied: Sequence[tuple[Placed, Product]]) -> list[Region]:
    """The whole program, and its loops."""
    loops = dict.fromkeys(found.loops for found in placed if found.loops)
    return [_region(module, placed, multiplied, around) for around in ((), *loops)]


def _region(
    module: Module,
    placed: Sequence[Placed],
    multiplied: Sequence[tuple[Placed, Product]],
    around: tuple[Loop, ...],
) -> Region:
    depth = len(around)
    inside = [found for found in placed if found.loops[:depth] == around]
    working = [found for found in inside if found.is_work]
    return Region(
        name=around[-1].name if around else module.entry,
        trips=around[-1].trips if around else 1,
        depth=depth,
        kernels=sum(found.is_kernel for found in working),
        flop=sum(made.flop for found, made in multiplied if found.loops[:depth] == around),
        nbytes=sum(_bytes(module, found) for found in working),
        conditionals=sum(found.instruction.opcode == "conditional" for found in inside),
        loops_inside=sum(found.instruction.opcode == "while" for found in inside),
    )


def _is_collective(instruction: Instruction) -> bool:
    return instruction.opcode.removesuffix("-start") in COLLECTIVES


def _only_moves(module: Module, found: Placed) -> bool:
    """Whether a kernel copies, transposes or changes the layout of arrays, and computes nothing.

    Transfers to and from on-chip memory are not meant: they are how such a memory works.
    """
    instruction = found.instruction
    if instruction.opcode == "copy-start":
        return not any(shape.is_on_chip for shape in instruction.shapes[:2])
    if instruction.opcode in ("copy", "transpose"):
        return True
    inside = module.computations.get(dict(instruction.called).get("calls", ""), {})
    kinds = {one.opcode for one in inside.values()}
    return instruction.opcode == "fusion" and kinds <= _MOVES and bool(kinds & {"copy", "transpose"})


def _needs_host(instruction: Instruction) -> bool:
    is_transfer = instruction.opcode in ("infeed", "outfeed") or (
        instruction.opcode in ("send", "recv") and "is_host_transfer=true" in instruction.attributes
    )
    return is_transfer or bool(re.search("callback|host", instruction.target, re.IGNORECASE))


def _host_name(instruction: Instruction) -> str:
    return instruction.target or instruction.opcode


def _largest_first(instructions: Iterable[Instruction]) -> tuple[Array, ...]:
    made = [Array(found.name, found.target or found.opcode, _type(found), _moved(found)) for found in instructions]
    return tuple(sorted(made, key=lambda one: -one.nbytes))


def _moved(instruction: Instruction) -> int:
    """Bytes of the result; of the beginning of a transfer, which names both sides, those of one side."""
    if instruction.opcode.endswith("-start") and not instruction.opcode.startswith("all-reduce"):
        return instruction.shapes[0].nbytes
    return instruction.nbytes


def _type(instruction: Instruction) -> str:
    return ", ".join(f"{shape.dtype}[{','.join(map(str, shape.dims))}]" for shape in instruction.shapes)
