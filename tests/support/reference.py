"""The small frozen networks of ``shared/reference`` (its README.md says what they are)."""

import pathlib
from types import ModuleType

from support.files import module_from


def reference_networks(shared: pathlib.Path) -> ModuleType:
    """``NETWORKS[name](params, images) -> logits`` and ``load(name) -> params``."""
    return module_from(shared / "reference" / "reference_networks.py")
