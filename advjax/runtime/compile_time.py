"""How long this process has spent compiling, so that estimates of the time left can leave it out."""

import jax

_COUNTED = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")
_seconds = 0.0


def seconds_compiling() -> float:
    """Seconds that this process has spent lowering and compiling programs since this module was imported."""
    return _seconds


def _count(event: str, duration_secs: float, **_: object) -> None:
    global _seconds
    if event in _COUNTED:
        _seconds += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count)
