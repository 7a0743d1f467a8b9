"""Convolutions and products of a compiled program: their types, their precision, and how much they compute.

The count is that of multiply-adds, two FLOP each, of positions inside the image alone.  Everything else that a network
computes is elementwise, and limited by memory.
"""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from advjax.benchmarks.programs.hlo import Instruction, Shape


class Product(NamedTuple):
    """A convolution or a product of matrices."""

    kind: str
    """"convolution" or "dot"; a product is a convolution without a window in programs for TPUs."""
    dtypes: tuple[str, str, str]
    """Of both operands and of the result."""
    precision: str
    """"default", "high" or "highest", as the program asks for."""
    flop: int

    @property
    def types(self) -> str:
        """The types as text."""
        return f"{self.dtypes[0]} x {self.dtypes[1]} -> {self.dtypes[2]}"


def product(instruction: Instruction, computation: Mapping[str, Instruction]) -> Product | None:
    """What an instruction multiplies; None if it is neither a convolution nor a product of matrices."""
    name = instruction.target or instruction.opcode
    is_convolution = name == "convolution" or name.startswith("__cudnn$conv")
    if not (is_convolution or name == "dot" or name.startswith("__cublas$")):
        return None
    given = [computation[operand].shapes[0] for operand in instruction.operands[:2]]
    result = instruction.shapes[0]
    if not is_convolution:
        flop = 2 * result.size * _contracted(instruction, given[0])
    else:
        # Of the forward convolution, which the window describes: its result, and its kernel.
        image, kernel, out = given[0], given[1], result
        if name == "__cudnn$convBackwardInput":
            image, out = result, given[0]
        elif name == "__cudnn$convBackwardFilter":
            kernel, out = result, given[1]
        flop = convolution_flop(
            image, kernel, out, instruction.attribute("dim_labels"), instruction.attribute("window")
        )
    kind = "convolution" if is_convolution and instruction.attribute("window") else "dot"
    return Product(kind, (given[0].dtype, given[1].dtype, result.dtype), _precision(instruction), flop)


def convolution_flop(image: Shape, kernel: Shape, out: Shape, labels: str, window: str) -> int:
    """FLOP of a convolution, without multiplications by padding or by the zeros of a dilation.

    Args:
      image: the left operand.
      kernel: the right operand.
      out: the result.
      labels: as in ``b01f_01io->b01f``.
      window: as in ``size=3x3 stride=2x2 pad=1_1x1_1 lhs_dilate=1x1 rhs_dilate=1x1``.
    """
    of_image, of_kernel, of_out = re.split("_|->", labels)
    spatial = sorted(set(of_image) - {"b", "f"})
    options = dict(part.split("=") for part in window.split())

    def numbers(name: str, default: int) -> list[int]:
        return [int(number) for number in options[name].split("x")] if name in options else [default] * len(spatial)

    strides, dilations = numbers("stride", 1), numbers("lhs_dilate", 1)
    kernel_dilations = numbers("rhs_dilate", 1)
    low = [int(pad.split("_")[0]) for pad in options["pad"].split("x")] if "pad" in options else [0] * len(spatial)
    count = out.size * kernel.dims[of_kernel.index("i")]
    for number, label in enumerate(spatial):
        sizes = image.dims[of_image.index(label)], kernel.dims[of_kernel.index(label)], out.dims[of_out.index(label)]
        pairs = _pairs(*sizes, strides[number], low[number], dilations[number], kernel_dilations[number])
        count = count // sizes[2] * pairs
    return 2 * count


def _pairs(image: int, kernel: int, out: int, stride: int, low: int, dilation: int, kernel_dilation: int) -> int:
    """Along one dimension, the number of pairs of an output and an entry of the kernel that meet a pixel."""
    end = (image - 1) * dilation + 1
    places = (o * stride + k * kernel_dilation - low for o in range(out) for k in range(kernel))
    return sum(0 <= place < end and place % dilation == 0 for place in places)


def _contracted(instruction: Instruction, left: Shape) -> int:
    """Number of products that are summed up for each entry of the result of a product of matrices."""
    dims = [int(number) for number in re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))]
    if found := re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.attributes):
        dims = [int(number) for number in json.loads(found[1])]
    size = 1
    for number in dims:
        size *= left.dims[number]
    return size


def _precision(instruction: Instruction) -> str:
    """The lower precision of both operands."""
    given = instruction.attribute("operand_precision").split(",")
    if found := re.search(r'"operand_precision":(\[[^\]]*\])', instruction.attributes):
        given = [name.lower() for name in json.loads(found[1])]
    order = ("default", "high", "highest")
    return min((name for name in given if name in order), key=order.index, default="default")
