"""Functions that a config or a command line names as ``package.module:function``.

``configs.MODULE:FUNCTION`` is a function beside the configs that come with advjax: the folder ``configs`` of the
repository, which is installed as ``advjax/configs``.  Any other name is the user's own code, and importing it runs it.
Such names are therefore taken from the command line and from config files that the user gives, but not from a
``config.json`` that was found in a folder, see ``refuse_foreign_names``.
"""

import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from advjax.types import UserError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_PACKAGE = pathlib.Path(__file__).parents[1]
INSTALLED_CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""The folder of the configs that come with advjax: inside the installed package, or beside it in a clone."""


def is_function_name(text: Any) -> bool:
    """Whether a text has the form ``package.module:function``."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def named_function(name: str, where: str) -> Callable[..., Any]:
    """Imports a function.

    Args:
      name: ``package.module:function``.
      where: the config key or flag that has the name, for error messages.

    Raises:
      UserError: the name is malformed, or there is no such module or function.
    """
    if not is_function_name(name):
        raise UserError(f"{where}: {name!r} is not a function's name; write package.module:function")
    module, _, function = name.partition(":")
    if module.startswith("configs."):
        make_configs_importable()
    else:
        search_current_folder()
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: {name!r} cannot be imported: {error}") from error
    try:
        inspect.signature(found)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {name!r} is not a function, or has no signature") from None
    return found


def search_current_folder() -> None:
    """Appends the current folder to the places that modules are imported from, where ``python -m`` has put it first."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def make_configs_importable(first: pathlib.Path | None = None) -> None:
    """Lets ``from configs import common`` find the configs that come with advjax, wherever advjax is installed.

    Args:
      first: another folder named ``configs`` to search before the installed one: that of a config file in a clone.
    """
    package = sys.modules.get("configs")
    if package is None:
        # Whatever else is named configs is searched as well, but its __init__.py is not executed.
        spec = importlib.util.find_spec("configs")
        package = sys.modules["configs"] = types.ModuleType("configs")
        package.__path__ = list((spec and spec.submodule_search_locations) or ())
    folders = [*([str(first)] if first else []), str(INSTALLED_CONFIGS), *getattr(package, "__path__", ())]
    package.__path__ = list(dict.fromkeys(folders))


def refuse_foreign_names(config: Mapping[str, Any], where: str) -> None:
    """Refuses a config that names functions outside advjax and its installed configs.

    Args:
      config: plain data.
      where: the file that it comes from.

    Raises:
      UserError: it names such a function, under any key.
    """
    for path, name in _texts(config, ""):
        if is_function_name(name) and not _is_installed(name, f"{where}: {path}"):
            raise UserError(
                f"{where}: {path} is {name!r}, a function outside advjax, and a folder's config may not run code: give "
                "--trust_workdir (trust_workdir=True in Python) if you trust it"
            )


def _is_installed(name: str, where: str) -> bool:
    """Whether a module of the installed configs defines the function."""
    module, _, _ = name.partition(":")
    first, *parts = module.split(".")
    path = INSTALLED_CONFIGS.joinpath(*parts)
    if first != "configs" or not any(file.is_file() for file in (path.with_suffix(".py"), path / "__init__.py")):
        return False
    try:
        function = named_function(name, where)
    except UserError:
        return False
    file = pathlib.Path(str(sys.modules[module].__file__)).resolve()
    return INSTALLED_CONFIGS.resolve() in file.parents and getattr(function, "__module__", None) == module


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """All strings in plain data, with their paths."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            yield from _texts(entry, f"{path}[{number}]")
    elif isinstance(value, str):
        yield path, value
