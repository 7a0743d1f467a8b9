"""API pages: one for each module, or for each package with an ``__all__``, by autodoc; and the table of attacks."""

import collections
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from describe import cell, returns, summary
from sphinx.pycode import ModuleAnalyzer

import advjax
from advjax import attacks

EXPORTING = {
    "advjax.attacks": "Attacks on any JAX function; usable without the rest of the package.",
    "advjax.data": "Data sets, their splits, and the order in which they are visited.",
    "advjax.defenses": "Test-time defenses, to be evaluated with the attacker aware of them.",
}
"""Packages whose public names are those in their ``__all__``."""
BY_MODULE = {
    "advjax.models": "Classifiers as named blocks, and modules that patch them.",
    "advjax.training": "Objectives, batch transforms, augmentation, optimizers and the training loop.",
    "advjax.evaluation": "Attack outcomes, reports, the report card and statistics.",
    "advjax.papers": "Published results and their comparison with ours.",
}
"""Packages that are documented module by module."""
MODULES = {
    "advjax.types": "Types shared by the whole package.",
    "advjax.data.image_folder": "Data sets from folders of images.",
    "advjax.experiment.defaults": "Builds configs from the default values of their keys.",
    "advjax.jobs.fit": "What `advjax.fit_fixers` and `advjax.fine_tune` return.",
    "advjax.jobs.load": "What `advjax.load` returns.",
}


def api_pages() -> Iterator[tuple[str, str]]:
    """``(file, text)`` of the API index, and of one page for each module or exporting package."""
    listed: list[str] = []
    for name in EXPORTING:
        yield f"api/{name}.md", _exports_page(importlib.import_module(name))
        listed.append(name)
    for name in BY_MODULE:
        modules = sorted(_modules(name))
        for module in modules:
            yield f"api/{module}.md", _module_page(importlib.import_module(module))
        yield f"api/{name}.md", _package_page(name, modules)
        listed.append(name)
    for name in MODULES:
        yield f"api/{name}.md", _module_page(importlib.import_module(name))
        listed.append(name)
    listed.sort()
    summaries = EXPORTING | BY_MODULE | MODULES
    rows = [f"| [`{name}`]({name}.md) | {summaries[name]} |" for name in listed]
    yield (
        "api/index.md",
        "\n".join(
            [
                "# API",
                "",
                "Generated from the docstrings. Within one minor version, a documented name keeps its arguments and",
                "meaning; changes are announced in the [changelog](../../changelog.md).",
                "",
                *_top_level(),
                "| module | contents |",
                "|---|---|",
                *rows,
                "",
                "```{toctree}",
                ":hidden:",
                "",
                *listed,
                "```",
                "",
            ]
        ),
    )


def _top_level() -> list[str]:
    names = [name for name in getattr(advjax, "__all__", ()) if inspect.isfunction(getattr(advjax, name))]
    directives = [f".. autofunction:: advjax.{name}" for name in names]
    return ["```{eval-rst}", *directives, "```", ""] if directives else []


def _modules(package: str) -> Iterator[str]:
    """Public modules of a package, those of its subpackages included."""
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        if not module.ispkg and not any(part.startswith("_") for part in module.name.split(".")):
            yield module.name


def _package_page(name: str, modules: list[str]) -> str:
    rows = [f"| [`{module}`]({module}.md) | {summary(importlib.import_module(module))} |" for module in modules]
    text = [f"# {name}", "", BY_MODULE[name], "", "| module | contents |", "|---|---|", *rows, ""]
    entries = [f"{module.removeprefix(f'{name}.')} <{module}>" for module in modules]
    return "\n".join([*text, "```{toctree}", ":hidden:", "", *entries, "```", ""])


def _module_page(module: ModuleType) -> str:
    names = list(_defined(module))
    overview = ["", ".. autosummary::", "", *(f"   {name}" for name in names)] if len(names) > 1 else []
    text = [f"# {module.__name__}", "", "```{eval-rst}", f".. automodule:: {module.__name__}", "   :no-members:"]
    return "\n".join([*text, *overview, "", *(f"{_autodoc(module, name)}\n" for name in names), "```", ""])


def _defined(module: ModuleType) -> Iterator[str]:
    """The public functions and classes that a module defines itself, and its constants that have a docstring."""
    constants = {name for scope, name in ModuleAnalyzer.for_module(module.__name__).find_attr_docs() if not scope}
    for name in getattr(module, "__all__", None) or vars(module):
        value = getattr(module, name)
        is_defined = (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
        if not name.startswith("_") and (is_defined or name in constants):
            yield name


GROUPS: dict[str, Callable[[str, Any], bool]] = {
    "Attacks": lambda name, value: returns(value) in ("Attack", "AttackFn"),
    "Stages and the runner": lambda name, value: returns(value) in ("tuple", "Verdicts"),
    "Other functions": lambda name, value: inspect.isfunction(value),
    "Classes": lambda name, value: inspect.isclass(value),
    "Types and constants": lambda name, value: True,
}


def _exports_page(module: ModuleType) -> str:
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in module.__all__:
        value = getattr(module, name)
        groups[next(group for group, belongs in GROUPS.items() if belongs(name, value))].append(name)
    text = [f"# {module.__name__}", "", "```{eval-rst}", f".. automodule:: {module.__name__}", "   :no-members:", "```"]
    for group, names in groups.items():
        if names:
            entries = (_autodoc(module, name) for name in names)
            text += ["", f"## {group}", "", "```{eval-rst}", *entries, "```"]
    return "\n".join([*text, ""])


def _autodoc(module: ModuleType, name: str) -> str:
    value = getattr(module, name)
    if inspect.isfunction(value) or inspect.isclass(value):
        kind = "function" if inspect.isfunction(value) else "class"
        return f".. auto{kind}:: {module.__name__}.{name}"
    # Autodoc would look for the docstring of a constant in the package, and not where the constant is defined.
    return "\n   ".join([f".. py:data:: {module.__name__}.{name}", "", *_constant_docs(module)[name], ""])


@functools.cache
def _constant_docs(package: ModuleType) -> dict[str, list[str]]:
    """The docstrings below the assignments in a module, or in all modules of a package, and in ``advjax.types``."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    modules = _modules(package.__name__) if hasattr(package, "__path__") else [package.__name__]
    for name in ("advjax.types", *modules):
        for (scope, constant), lines in ModuleAnalyzer.for_module(name).find_attr_docs().items():
            if not scope:
                found[constant] = lines
    return found


def attack_table() -> str:
    """The exported attacks with the first lines of their docstrings."""
    rows = []
    for name in attacks.__all__:
        value = getattr(attacks, name)
        if returns(value) in ("Attack", "AttackFn") and "threat_model" in inspect.signature(value).parameters:
            rows.append(f"| {{py:func}}`~advjax.attacks.{name}` | {cell(summary(value))} |")
    return "\n".join(["| attack | |", "|---|---|", *rows, ""])
