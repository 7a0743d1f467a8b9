"""Python files outside the packages, imported by their paths."""

import importlib.util
import pathlib
from types import ModuleType


def module_from(path: pathlib.Path) -> ModuleType:
    """Executes the file and returns it as a module; every call returns a new one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
