"""JSON files of measurements: where and by what something was measured, and whether the file can be written."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

from advjax.types import UserError

PACKAGES = (
    *("advjax", "jax", "jaxlib", "flax", "numpy", "torch", "torchattacks", "foolbox"),
    "adversarial-robustness-toolbox",
)


def provenance(command: str, processors: Sequence[int]) -> dict[str, Any]:
    """Date, command, machine, package versions and environment of a measurement."""
    import jax

    device = jax.local_devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "python": platform.python_version(),
            "processors": list(processors),
            "backend": device.platform,
            "device": device.device_kind,
            "load_average": os.getloadavg(),
        },
        "versions": {package: _version(package) for package in PACKAGES},
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_", "OMP_", "NPROC"))
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def check_writable(path: pathlib.Path) -> None:
    """Refuses, before minutes of measurements, a file that could not be written after them.

    Raises:
      UserError: the file, or its folder, cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--json: the folder of {path} cannot be created ({error.strerror})") from error
    # The file is replaced, so what counts is the folder.
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--json: {path} cannot be written")


def write(path: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes a report, readable by people and by ``json``."""
    from advjax.runtime.files import write_atomically

    write_atomically(path, (json.dumps(report, indent=1) + "\n").encode())


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a report.

    Raises:
      UserError: there is none, or it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not a report ({error}): delete it to start afresh") from None
