"""Split names and slices of splits: "train", "train+test", "train[1024:]"."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from advjax.types import UserError

_PIECE = re.compile(r"(.*?)(?:\[(\d*):(\d*)\])?")


class Piece(NamedTuple):
    """A contiguous slice of a split."""

    split: str
    """Name of the split."""
    start: int
    """First position, in the original order."""
    stop: int | None
    """One past the last position; None for the end of the split."""

    def overlaps(self, other: "Piece") -> bool:
        """Whether the two have an example in common."""
        starts_before_end = all(b.stop is None or a.start < b.stop for a, b in ((self, other), (other, self)))
        return self.split == other.split and starts_before_end


def parse(split: str) -> tuple[Piece, ...]:
    """Parses names such as ``"train[1024:]+test[:100]"``; without brackets a piece is the whole split.

    Raises:
      UserError: a piece is empty, or two pieces overlap.
    """
    pieces = []
    for text in split.split("+"):
        match = _PIECE.fullmatch(text)
        assert match is not None
        name, start, stop = match.groups()
        piece = Piece(name, int(start or 0), int(stop) if stop else None)
        if piece.stop is not None and piece.stop <= piece.start:
            raise UserError(f"split {split!r}: {text} is empty; the second number must be larger than the first")
        if any(piece.overlaps(other) for other in pieces):
            raise UserError(f"split {split!r} names a split, or a part of one, twice; name each example once")
        pieces.append(piece)
    return tuple(pieces)


def have_common_examples(one: str, other: str) -> bool:
    """Whether two split names of a dataset share an example; raises as ``parse`` does."""
    return any(piece.overlaps(another) for piece in parse(one) for another in parse(other))


def whole(pieces: Sequence[Piece]) -> tuple[str, ...]:
    """The distinct splits that the pieces belong to."""
    return tuple(dict.fromkeys(piece.split for piece in pieces))


def positions(pieces: Sequence[Piece], sizes: Sequence[int]) -> np.ndarray:
    """int32 positions of the pieces' examples in the concatenation of the splits of ``whole``.

    Args:
      pieces: from ``parse``.
      sizes: numbers of examples of the splits of ``whole``.

    Raises:
      UserError: a piece extends beyond its split.
    """
    names = whole(pieces)
    size_of, start_of = dict(zip(names, sizes, strict=True)), dict(zip(names, np.cumsum([0, *sizes]), strict=False))
    found = []
    for split, start, stop in pieces:
        size = size_of[split]
        if max(start + 1, stop or 0) > size:
            wanted = f"{split}[{start or ''}:{'' if stop is None else stop}]"
            raise UserError(f"{wanted} is out of range: {split} has {size} examples")
        found.append(start_of[split] + np.arange(start, size if stop is None else stop))
    return np.concatenate(found).astype(np.int32)
