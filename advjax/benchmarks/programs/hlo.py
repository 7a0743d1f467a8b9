"""Reads the text of a compiled program (XLA's HLO) into records: computations, instructions, shapes."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
"""Size of an element by its type; types of eight bits that start with ``f8`` are not listed."""
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations|called_computations"
    r"|async_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)


class Shape(NamedTuple):
    """An array type."""

    dtype: str
    dims: tuple[int, ...]
    layout: str
    """What stands between the braces: the order of the dimensions, tiles, and the memory that the array is in."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, without padding; 0 for a token or an opaque value."""
        return math.ceil(self.size * (1 if self.dtype.startswith("f8") else BYTES.get(self.dtype, 0)))

    @property
    def is_on_chip(self) -> bool:
        """Whether the compiler keeps it in another memory than the main one, such as the vector memory of a TPU."""
        # 0 is the main memory, which goes without saying, and 5 that of the host.
        return bool(re.search(r"S\([1-46-9]", self.layout))


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shapes: tuple[Shape, ...]
    """Of the result; several for a tuple."""
    opcode: str
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    arguments: str
    """What stands between the parentheses."""
    attributes: str
    """What stands behind them."""
    is_root: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return sum(shape.nbytes for shape in self.shapes)

    def attribute(self, name: str) -> str:
        """The text of an attribute such as ``window={...}`` or ``dim_labels=...``; "" if there is none."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^\s,]+)", self.attributes)
        return found[1].strip("{}") if found else ""

    @property
    def called(self) -> tuple[tuple[str, str], ...]:
        """``(attribute, name)`` of the computations that it calls."""
        # Metadata name functions of Python, and backend configurations may say anything.
        text = re.split(r"\b(?:metadata|backend_config)=", self.attributes)[0]
        return tuple((kind, name) for kind, names in _CALLED.findall(text) for name in re.findall(r"[\w.\-]+", names))

    @property
    def target(self) -> str:
        """What a custom call calls; "" for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Module(NamedTuple):
    """A program."""

    computations: dict[str, dict[str, Instruction]]
    """Name -> instructions in order, by their names."""
    entry: str


def parse(text: str) -> Module:
    """Reads the text of a program.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif found := _INSTRUCTION.match(line):
            current[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    if not entry:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return Module(computations, entry)


def shapes(text: str) -> tuple[Shape, ...]:
    """The array types in a text, in order."""
    found = _SHAPE.findall(text)
    return tuple(Shape(kind, tuple(map(int, filter(None, dims.split(",")))), layout) for kind, dims, layout in found)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    kind, rest = _split_type(text)
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    arguments, attributes = rest[:end], rest[end + 1 :]
    operands = tuple(_NAME.findall(arguments))
    return Instruction(name, shapes(kind), opcode.strip(), operands, arguments, attributes, is_root)


def _split_type(text: str) -> tuple[str, str]:
    """The type at the beginning of an instruction, which contains spaces if it is a tuple, and what follows."""
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _closing(text: str) -> int:
    """Position of the parenthesis that closes the one at the beginning."""
    depth = 0
    for position, character in _parentheses(text):
        depth += 1 if character == "(" else -1
        if depth == 0:
            return position
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _parentheses(text: str) -> Iterator[tuple[int, str]]:
    """Positions of parentheses outside quotes."""
    is_quoted = False
    for position, character in enumerate(text):
        if character == '"' and text[position - 1 : position] != "\\":
            is_quoted = not is_quoted
        elif character in "()" and not is_quoted:
            yield position, character
