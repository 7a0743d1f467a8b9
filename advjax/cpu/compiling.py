"""How programs are compiled for CPUs."""

import functools
import os
from typing import Any

import jax

NEW_EMITTERS = "xla_cpu_use_fusion_emitters"
"""How XLA turns fused operations into LLVM's code.  In jaxlib 0.10, the newer way takes 1.5 to 2.4 times longer to
compile attacks on small networks (on a ResNet9 no longer), for about the same speed; jaxlib 0.12 compiles quickly, and
no longer has the older way."""


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What ``jax.jit(..., compiler_options=...)`` and ``Lowered.compile(...)`` are given, for programs on a mesh.

    Args:
      mesh: of the devices that the program is for, which need not be here.

    Returns:
      The options that make compilation for CPUs quicker; none for other devices, where XLA has no such choice, and
      where the user has made it (``XLA_FLAGS``).
    """
    on_cpu = all(device.platform == "cpu" for device in mesh.devices.flat)
    is_chosen = NEW_EMITTERS in os.environ.get("XLA_FLAGS", "")
    return {NEW_EMITTERS: False} if on_cpu and not is_chosen and _knows(NEW_EMITTERS) else {}


@functools.cache
def _knows(option: str) -> bool:
    """Whether XLA has this option, any longer or yet."""
    program = jax.jit(lambda: 0).trace().lower(lowering_platforms=("cpu",))
    try:
        program.compile({option: False})
    except jax.errors.JaxRuntimeError:
        return False
    return True
