"""How many lanes images are attacked in, and how often the host looks which attacks have ended.

Results do not depend on it.
"""

import os
from collections.abc import Collection

import jax
import numpy as np

MOST_STEPS = 8
"""Steps between two looks at which attacks have ended."""
OVERHEAD_PER_CORE, OVERHEAD_ELSEWHERE = 4, 256
"""Lanes that cost as much as what a step costs without any: for each core of a CPU (2 to 8 were measured, for networks
of several sizes), and for each accelerator (assumed, not measured)."""
NEARLY = 1.5
"""Times the least cost, up to which lanes are used whose program is there."""
COST_OF_REFILL = 1 / 8
"""Of giving lanes to other images, as a fraction of a step."""


def steps_until_look(rate: float) -> int:
    """Number of steps after which it pays to look which attacks have ended.

    With a fraction r of the attacks ending at each step, n steps leave a fraction ``r n / 2`` of the lanes idle, and a
    refill costs c steps: the sum ``r n / 2 + c / n`` for each step is smallest at ``n = sqrt(2 c / r)``.
    """
    return int(np.clip((2 * COST_OF_REFILL / max(rate, 1e-9)) ** 0.5, 1, MOST_STEPS))


def overhead(mesh: jax.sharding.Mesh) -> int:
    """Lanes on all devices together that cost as much as what a step costs without any."""
    if mesh.devices.flat[0].platform == "cpu":
        return OVERHEAD_PER_CORE * num_cores()
    return OVERHEAD_ELSEWHERE * mesh.devices.size


def num_cores() -> int:
    """Cores that this process may use, which virtual devices share."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def number_of_lanes(
    count: int, least: int, sizes: tuple[int, ...], overhead: int, compiled: Collection[int] = ()
) -> int:
    """The size, no less than ``least``, that suits ``count`` images best, or one that is ``compiled`` and nearly does.

    If a step in n lanes costs ``n + overhead``, attacks cost about ``(count / n + 1) (n + overhead)``: the lanes are
    filled ``count / n`` times, and become idle one by one in the end.
    """

    def cost(size: int) -> float:
        return (count / size + 1) * (size + overhead)

    possible = [size for size in sizes if size >= least]
    nearly = [size for size in possible if size in compiled and cost(size) <= NEARLY * min(map(cost, possible))]
    return min(nearly or possible, key=cost)
