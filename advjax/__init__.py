"""Adversarial robustness in JAX and Flax: exact attacks, robust training, honest evaluation.

``advjax.attacks``, ``advjax.data``, ``advjax.models`` and the functions are imported when they are first used, so that
``import advjax.attacks`` loads neither Flax nor Orbax nor TensorFlow Datasets.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advjax import attacks, data, models
    from advjax.jobs.evaluate_functions import evaluate
    from advjax.jobs.fit import fine_tune, fit_fixers
    from advjax.jobs.load import load

__all__ = ["__version__", "attacks", "data", "evaluate", "fine_tune", "fit_fixers", "load", "models"]

try:
    __version__ = importlib.metadata.version("advjax")
except importlib.metadata.PackageNotFoundError:  # Run from a source tree that was never installed.
    __version__ = "unknown"

_PACKAGES = ("attacks", "data", "models")
_FUNCTIONS = {
    "evaluate": "advjax.jobs.evaluate_functions",
    "fine_tune": "advjax.jobs.fit",
    "fit_fixers": "advjax.jobs.fit",
    "load": "advjax.jobs.load",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for (PEP 562)."""
    if name in _PACKAGES:
        return importlib.import_module(f"advjax.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'advjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
