"""The flag ``--config``: where the named config file is, and what is wrong with it or its overrides."""

import inspect
import pathlib
import runpy
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from advjax.runtime.named_function import INSTALLED_CONFIGS, make_configs_importable, search_current_folder
from advjax.types import UserError


def find_config(argv: Sequence[str]) -> list[str]:
    """The command line with the path of the config file in place of the name of an installed config.

    ``--config=digits_fixer`` is the config of this name that comes with advjax, unless there is a file of this name,
    and ``--config=NAME:ARGUMENT`` passes an argument to its ``get_config``.

    Raises:
      UserError: there is neither a file nor an installed config of this name.
    """
    given = _config_arguments(argv).get("config", "")
    name, colon, argument = given.partition(":")
    if not name:
        return list(argv)
    found = f"{config_file(name)}{colon}{argument}"
    last = max(number for number, word in enumerate(argv) if word.startswith("-") and _key(word) == "config")
    if "=" in argv[last]:
        return [*argv[:last], f"--config={found}", *argv[last + 1 :]]
    return [*argv[: last + 1], found, *argv[last + 2 :]]


def config_file(name: str) -> pathlib.Path:
    """The path of a config file, given by its path or as the name of an installed one, which can then be run.

    Modules that it imports are also searched for in the current folder, and ``configs`` in the folder of this name that
    the file lies in.

    Raises:
      UserError: there is neither a file nor an installed config of this name.
    """
    path = _path(name)
    search_current_folder()
    make_configs_importable(next((folder for folder in path.absolute().parents if folder.name == "configs"), None))
    return path


def without_none(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without overrides such as ``--config.evaluation.curve=None``, and their keys.

    The flags cannot parse them: they give a mapping or None no other type.
    """
    kept, emptied, number = [], [], 0
    while number < len(argv):
        word = argv[number]
        _, equals, value = word.partition("=")
        value = value if equals else "".join(argv[number + 1 : number + 2])
        if word.startswith("-") and _key(word).startswith("config.") and value == "None":
            emptied.append(_key(word).removeprefix("config."))
            number += 1 if equals else 2
        else:
            kept.append(word)
            number += 1
    return kept, emptied


def set_none(config: ConfigDict | None, keys: Sequence[str]) -> None:
    """Sets keys of a config to None.

    Raises:
      UserError: a key is unknown, or its value can be neither None nor described by keys of its own.
    """
    for key in keys:
        if config is None:
            raise UserError(f"--config.{key}=None needs --config")
        *parents, last = key.split(".")
        if problem := _mistaken_key(config, [*parents, ""] if parents else []):
            raise problem
        node: Any = config
        for parent in parents:
            node = node[parent]
        if last in node and not (node[last] is None or isinstance(node[last], ConfigDict | str)):
            raise UserError(f"config key {key} cannot be None: it is {node[last]!r} in the config file")
        with config.unlocked(), config.ignore_type():
            # A string may be meant.
            node[last] = "None" if isinstance(node.get(last), str) else None


def explained(error: Exception, argv: Sequence[str]) -> Exception:
    """What was wrong with an override, where the flags report it in terms of their implementation."""
    given = _config_arguments(argv)
    name, _, argument = given.pop("config", "").partition(":")
    try:
        get_config = runpy.run_path(name)["get_config"]
        parameters = inspect.signature(get_config).parameters
        if argument and not parameters:
            return UserError(f"--config={name}:{argument}: this config takes no argument after the colon")
        config = get_config(*([argument] if argument else []))
    except UserError as mistake:
        return mistake
    except Exception:
        return error
    paths = (key.removeprefix("config.").split(".") for key in given)
    return next(filter(None, (_mistaken_key(config, path) for path in paths)), error)


def _path(name: str) -> pathlib.Path:
    path = pathlib.Path(name)
    if path.is_file():
        return path
    installed = INSTALLED_CONFIGS / f"{name}.py"
    if all(part.isidentifier() for part in path.parts) and installed.is_file():
        return installed
    beside = ", ".join(sorted(map(str, pathlib.Path("configs").glob("*.py"))))
    names = ", ".join(sorted(file.stem for file in INSTALLED_CONFIGS.glob("*.py")))
    raise UserError(
        f"no config file at {name}{f'; there are {beside}' if beside else ''}; installed configs, which need no path, "
        f"are {names}"
    )


def _key(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0]


def _config_arguments(argv: Sequence[str]) -> dict[str, str]:
    """``config`` and ``config.KEY`` with their values, whether these come after "=" or as the next argument."""
    given = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        _, equals, value = argument.partition("=")
        key = _key(argument)
        if argument.startswith("-") and (key == "config" or key.startswith("config.")):
            given[key] = value if equals else following
    return given


def _mistaken_key(config: ConfigDict, path: Sequence[str]) -> UserError | None:
    """The error for an override of a key that cannot be given; only the last part of a path may be new."""
    node, known = config, ""
    for number, key in enumerate(path, 1):
        if isinstance(node, ConfigDict) and key not in node and number < len(path):
            return UserError(f"unknown config key {known}{key}; known there are {', '.join(node)}")
        if isinstance(node, ConfigDict):
            node, known = node.get(key, ()), f"{known}{key}."
        if node is None:
            return UserError(f"config key {known[:-1]} is None and has no type yet: give it in the config file")
    return None
