"""Pieces of Markdown about Python objects."""

import inspect
import typing
from typing import Any

from advjax import attacks

HANDED_IN = ("threat_model", "self", "base", "aim", "learning_rate", "loss_fn", "model", "axis_name", "parent")
"""Arguments that the experiment passes itself."""


def arguments(value: Any) -> str:
    """The arguments of a function with their defaults, without those that the experiment passes."""
    if not callable(value):
        return ""
    parameters = inspect.signature(value).parameters.values()
    shown = [
        f"`{parameter.name}`" if parameter.default is parameter.empty else f"`{parameter.name}={parameter.default!r}`"
        for parameter in parameters
        if parameter.name not in HANDED_IN and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return ", ".join(text for text in shown if " at 0x" not in text).replace("|", "\\|")


def returns(value: Any) -> str:
    """Name of the annotated result of a function, "" for anything else."""
    if not inspect.isfunction(value):
        return ""
    result = inspect.signature(value).return_annotation
    if result == attacks.AttackFn:
        return "AttackFn"
    return getattr(typing.get_origin(result) or result, "__name__", "")


def summary(value: Any) -> str:
    """The first paragraph of the docstring, "" for what has none of its own."""
    if value is None or isinstance(value, str | int | float) or getattr(value, "__name__", "") == "<lambda>":
        return ""
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def code(text: str) -> str:
    """Text as code, nothing for none."""
    return f"`{text}`" if text else ""


def cell(text: str) -> str:
    """reStructuredText of a docstring, as one cell of a Markdown table."""
    return text.replace("``", "`").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
