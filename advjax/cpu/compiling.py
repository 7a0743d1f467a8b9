"""How programs are compiled for CPUs."""

import functools
import os
from typing import Any

import jax

NEW_EMITTERS = "xla_cpu_use_fusion_emitters"
"""How XLA turns fused operations into LLVM's code.  In jaxlib 0.10, the newer way takes 1.5 to 2.4 times longer to
compile attacks on small networks (on a ResNet9 no longer), for about the same speed; jaxlib 0.12 compiles quickly, and
no longer has the older way."""


LEVEL, QUICK_LEVEL = "xla_backend_optimization_level", 2
"""Of 3.  In jaxlib 0.10, it compiles in about half the time; the convolutions of ``advjax.cpu.winograd`` then take a
quarter longer."""


def compiler_options(mesh: jax.sharding.Mesh, *, quickly: bool = False) -> dict[str, Any]:
    """What ``jax.jit(..., compiler_options=...)`` and ``Lowered.compile(...)`` are given, for programs on a mesh.

    Args:
      mesh: of the devices that the program is for, which need not be here.
      quickly: whether all runs of the program take less time than compiling it.

    Returns:
      The options that make compilation for CPUs quicker; none for other devices, where XLA has no such choice, and
      where the user has made it (``XLA_FLAGS``, ``jax_disable_most_optimizations``).
    """
    if any(device.platform != "cpu" for device in mesh.devices.flat):
        return {}
    wanted: dict[str, Any] = {NEW_EMITTERS: False}
    if quickly and not jax.config.read("jax_disable_most_optimizations"):
        wanted[LEVEL] = QUICK_LEVEL
    chosen = os.environ.get("XLA_FLAGS", "")
    return {option: value for option, value in wanted.items() if option not in chosen and _knows(option, value)}


@functools.cache
def _knows(option: str, value: Any) -> bool:
    """Whether XLA has this option, any longer or yet."""
    program = jax.jit(lambda: 0).trace().lower(lowering_platforms=("cpu",))
    try:
        program.compile({option: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True
