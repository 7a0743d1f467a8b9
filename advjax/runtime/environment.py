"""Versions and devices, for the provenance of a result."""

import importlib.metadata
import platform
from typing import Any

import jax

from advjax.runtime.devices import process_count


def describe_environment() -> dict[str, Any]:
    """Versions and devices that a result depends on; the same on every call in one process."""
    packages = ("advjax", "jax", "jaxlib", "flax", "numpy", "optax")
    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in packages},
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": process_count(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
