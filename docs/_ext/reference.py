"""Generates the reference pages from the code before Sphinx reads its sources.

Writes Markdown into ``docs/generated``, which is not under version control: an API page per public module, the keys of
a config with their defaults and the comments above them, the names that a config may use, the command line flags, and
the table of attacks.
"""

import pathlib
import re
from typing import Any

import api_pages
import config_pages
import flax.linen as nn
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the generator and hides what Flax adds to every module."""
    app.connect("builder-inited", lambda app: generate(pathlib.Path(app.srcdir, "generated")))
    app.connect("autodoc-skip-member", _skip_linen_fields)
    app.connect("autodoc-process-signature", _without_linen_fields)
    app.connect("autodoc-process-docstring", _set_aside, priority=400)
    app.connect("autodoc-process-docstring", _put_back, priority=600)
    return {"parallel_read_safe": True}


def generate(folder: pathlib.Path) -> None:
    """Writes all pages; files that would not change are left alone, so that Sphinx does not read them again."""
    pages = {
        "config_keys.md": config_pages.config_keys(),
        "config_names.md": config_pages.config_names(),
        "flags.md": config_pages.command_line_flags(),
        "attack_table.md": api_pages.attack_table(),
        **dict(api_pages.api_pages()),
    }
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).as_posix() not in pages:
            path.unlink()


_LINEN_FIELDS = re.compile(r"(?:, )?(?:parent: [^,]*object>|name: str \| None = None)(?=[,)])")


def _skip_linen_fields(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what every Flax module has."""
    return True if name in ("parent", "scope", "setup") else None


def _without_linen_fields(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """The arguments of a Flax module without those that every one has."""
    is_linen = what == "class" and issubclass(value, nn.Module)
    return (_LINEN_FIELDS.sub("", signature), returned) if is_linen and signature else None


_TRAILING_UNDERSCORE = re.compile(r"((?<![\w`])\w*[a-z0-9])_(?=[\"'\s.,;)]|$)")
_SET_ASIDE: dict[str, list[str]] = {}


def _set_aside(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Hides docstrings of attributes from napoleon, which takes "int [n]: the classes" for a type and a description."""
    if what in ("attribute", "data", "property"):
        _SET_ASIDE[name], lines[:] = list(lines), []


def _put_back(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Returns what was set aside; a name such as clean_ in plain text is not a link."""
    lines[:] = [_TRAILING_UNDERSCORE.sub(r"\1\\_", line) for line in _SET_ASIDE.pop(name, lines)]
