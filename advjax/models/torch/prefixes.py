"""Finds a network in weights whose names have prefixes: "module.", "model.", "1.", "_orig_mod.", "model_ema." etc."""

from collections.abc import Mapping, Sequence

import numpy as np

from advjax.types import UserError


def without_prefix(
    weights: Mapping[str, np.ndarray], wanted: Sequence[Sequence[str]], prefix: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Splits weights into those of the network, without their prefix, and the others.

    The prefix is the one under which most of the wanted names are found.

    Args:
      weights: by full name.
      wanted: for each parameter of the network, candidate names.
      prefix: of the network, if it is known; everything else in the weights is then ignored.

    Raises:
      UserError: there is nothing under the given prefix, or the network is there several times with different values.
    """
    counts = _counts(weights, wanted)
    if prefix is None:
        best = max(counts.values(), default=0)
        most = sorted((name for name, count in counts.items() if count == best), key=lambda name: (len(name), name))
        prefix = most[0] if most else ""
        for other in most[1:]:
            _refuse_if_different(weights, wanted, prefix, other)
        others = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    else:
        others = {}
        if not any(name.startswith(prefix) for name in weights):
            known = ", ".join(repr(name) for name in sorted(counts, key=counts.__getitem__, reverse=True)[:3])
            raise UserError(
                f"no weights start with {prefix!r}" + (f"; the network may be under {known}" if known else "")
            )
    inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return inside, others


def refuse_unused(names: Sequence[str], weights: Mapping[str, np.ndarray], used: Mapping[str, np.ndarray], model: str):
    """Raises UserError if one of the names is neither used nor a copy of a used weight.

    Args:
      names: of the weights that are not used.
      weights: their values.
      used: what the network was built from.
      model: its name.
    """
    layers = {name.split(".")[0] for name in used}
    for name in names:
        twin = next((rest for start, rest in _splits(name) if rest in used and start.split(".")[0] not in layers), None)
        if twin is None:
            raise UserError(f"{name} is in the weights but not in this {model}; remove it if it is unused")
        if not np.array_equal(weights[name], used[twin]):
            raise UserError(
                f"the weights have {twin} twice, also as {name}, with different values: remove one, or pass prefix"
            )


def _splits(name: str) -> list[tuple[str, str]]:
    """All (prefix, suffix) of a name, split after its dots."""
    dots = [0, *(i + 1 for i, character in enumerate(name) if character == ".")]
    return [(name[:i], name[i:]) for i in dots]


def _counts(weights: Mapping[str, np.ndarray], wanted: Sequence[Sequence[str]]) -> dict[str, int]:
    """How many parameters are found under each prefix."""
    parameters: dict[str, set[int]] = {}
    for number, candidates in enumerate(wanted):
        for name in candidates:
            parameters.setdefault(name, set()).add(number)
    found: dict[str, set[int]] = {}
    for full in weights:
        for prefix, suffix in _splits(full):
            if suffix in parameters:
                found.setdefault(prefix, set()).update(parameters[suffix])
    return {prefix: len(numbers) for prefix, numbers in found.items()}


def _refuse_if_different(
    weights: Mapping[str, np.ndarray], wanted: Sequence[Sequence[str]], first: str, second: str
) -> None:
    for name in (name for candidates in wanted for name in candidates):
        one, other = weights.get(first + name), weights.get(second + name)
        if one is not None and other is not None and not np.array_equal(one, other):
            raise UserError(
                f"the weights have {name} twice, under {first!r} and {second!r}, with different values: "
                "pass prefix to choose one"
            )
