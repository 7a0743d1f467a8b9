"""Generates the reference pages from the code before Sphinx reads its sources.

Writes Markdown into ``docs/generated``, which is not under version control: an API page per public module, the keys of
a config with their defaults and the comments beside them, the names that a config may use, the command line flags, and
the table of attacks.
"""

import ast
import collections
import functools
import importlib
import inspect
import pathlib
import pkgutil
import tokenize
import typing
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

from advjax import attacks
from advjax import main as command_line
from advjax.experiment import defaults, registry
from advjax.papers import __main__ as papers_command

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
    "advjax.jobs.load": "What `advjax.load` returns.",
}


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the generator and hides what Flax adds to every module."""
    app.connect("builder-inited", lambda app: generate(pathlib.Path(app.srcdir, "generated")))
    app.connect("autodoc-skip-member", _skip_linen_fields)
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)
    return {"parallel_read_safe": True}


def generate(folder: pathlib.Path) -> None:
    """Writes all pages; files that would not change are left alone, so that Sphinx does not read them again."""
    pages = {
        "config_keys.md": config_keys(),
        "config_names.md": config_names(),
        "flags.md": command_line_flags(),
        "attack_table.md": attack_table(),
        **dict(api_pages()),
    }
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).as_posix() not in pages:
            path.unlink()


# API


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
    import advjax

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
    rows = [f"| [`{module}`]({module}.md) | {_summary(importlib.import_module(module))} |" for module in modules]
    text = [f"# {name}", "", BY_MODULE[name], "", "| module | contents |", "|---|---|", *rows, ""]
    return "\n".join([*text, "```{toctree}", ":hidden:", "", *modules, "```", ""])


def _module_page(module: ModuleType) -> str:
    members = [name for name, _ in _defined(module)]
    overview = [".. autosummary::", "", *(f"   {name}" for name in members), ""]
    directive = [f".. automodule:: {module.__name__}", ""]
    text = [f"# {module.__name__}", "", "```{eval-rst}", *directive, *(overview if len(members) > 1 else []), "```"]
    return "\n".join([*text, ""])


def _defined(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public functions and classes that a module defines itself."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    for name in names:
        value = getattr(module, name)
        is_own = getattr(value, "__module__", None) == module.__name__
        if is_own and (inspect.isfunction(value) or inspect.isclass(value)):
            yield name, value


GROUPS: dict[str, Callable[[str, Any], bool]] = {
    "Attacks": lambda name, value: _returns(value) in ("Attack", "AttackFn"),
    "Stages and the runner": lambda name, value: _returns(value) in ("tuple", "Verdicts"),
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
    """The docstrings below the assignments in all modules of a package and in ``advjax.types``."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for name in ("advjax.types", *_modules(package.__name__)):
        for (scope, constant), lines in ModuleAnalyzer.for_module(name).find_attr_docs().items():
            if not scope:
                found[constant] = lines
    return found


def _returns(value: Any) -> str:
    """Name of the annotated result of a function, "" for anything else."""
    if not inspect.isfunction(value):
        return ""
    result = inspect.signature(value).return_annotation
    if result == attacks.AttackFn:
        return "AttackFn"
    return getattr(typing.get_origin(result) or result, "__name__", "")


def _skip_linen_fields(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields that every Flax module has."""
    return True if name in ("parent", "scope") else None


def _keep_colons(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keeps napoleon from taking "int [n]: the classes" for a type and a description, by an empty first line."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


# Configs


class Key(NamedTuple):
    """A key of a config."""

    path: str
    default: str
    comment: str


SECTIONS = {
    "EXPERIMENT": ("Experiment", ""),
    "DATA": ("Data", "data."),
    "RUN": ("Run", "run.RUN."),
    "EVALUATION": ("Evaluation", "evaluation."),
    "DEFENSE": ("Defense", "evaluation.defenses.DEFENSE."),
}
"""Tables of ``advjax.experiment.defaults`` with their headings, and where they stand in a config."""


def config_keys() -> str:
    """A table of keys, defaults and comments for each table in ``defaults.py``."""
    text = [
        "# Config keys",
        "",
        "Generated from `advjax/experiment/defaults.py`. `RUN`, `DEFENSE` and `ATTACK` stand for names that the config",
        'chooses. Numbers may be fractions in strings, such as `"8/255"`. Every key that is not `None` can be',
        "overridden on the command line: `--config.run.base.epochs=3`.",
    ]
    tables = _tables(pathlib.Path(defaults.__file__).read_text())
    for name, (heading, prefix) in SECTIONS.items():
        rows = [f"| `{prefix}{key.path}` | {_code(key.default)} | {_cell(key.comment)} |" for key in tables[name]]
        text += ["", f"## {heading}", "", "| key | default | meaning |", "|---|---|---|", *rows]
    return "\n".join([*text, ""])


def _tables(source: str) -> dict[str, list[Key]]:
    """The keys of each dictionary that a module assigns to a name, with the comments above them."""
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(iter(f"{line}\n" for line in lines).__next__)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = list(_keys(node.value, "", comments))
    return found


def _keys(table: ast.Dict, prefix: str, comments: Mapping[int, str]) -> Iterator[Key]:
    for key, value in zip(table.keys, table.values, strict=True):
        assert isinstance(key, ast.Constant)
        above, line = [], key.lineno - 1
        while line in comments and key.lineno > table.lineno:
            above.insert(0, comments[line])
            line -= 1
        path, comment = f"{prefix}{key.value}", " ".join(above)
        if isinstance(value, ast.Name):
            yield Key(path, "", f"see below{f'; {comment}' if comment else ''}")
        elif isinstance(value, ast.Dict) and value.keys:
            first, *others = _keys(value, f"{path}.", comments)
            yield first._replace(comment=first.comment or comment)
            yield from others
        else:
            yield Key(path, ast.unparse(value), comment)


def config_names() -> str:
    """A table for each kind of name in ``registry.py``: the arguments and what it is."""
    text = [
        "# Names in configs",
        "",
        "Generated from `advjax/experiment/registry.py`, where a `name` in a config becomes a function; the other keys",
        'beside the name are its arguments. `"configs.MODULE:FUNCTION"` names a function beside the configs instead.',
    ]
    for table, names in vars(registry).items():
        if not table.isupper() or not isinstance(names, Mapping):
            continue
        rows = [f"| `{name}` | {_arguments(value)} | {_cell(_summary(value))} |" for name, value in names.items()]
        heading = table.replace("_", " ").capitalize()
        text += ["", f"## {heading}", "", "| name | arguments | meaning |", "|---|---|---|", *rows]
    return "\n".join([*text, ""])


HANDED_IN = ("threat_model", "self", "base", "aim", "learning_rate", "loss_fn", "model", "axis_name", "parent")
"""Arguments that the experiment passes itself."""


def _arguments(value: Any) -> str:
    if not callable(value):
        return ""
    parameters = inspect.signature(value).parameters.values()
    shown = [
        f"`{parameter.name}`" if parameter.default is parameter.empty else f"`{parameter.name}={parameter.default!r}`"
        for parameter in parameters
        if parameter.name not in HANDED_IN and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return ", ".join(text for text in shown if " at 0x" not in text).replace("|", "\\|")


# Command line


def command_line_flags() -> str:
    """The flags of both programs."""
    text = [
        "# Command line flags",
        "",
        "## python -m advjax.main",
        "",
        "| flag | default | meaning |",
        "|---|---|---|",
    ]
    for flag in flags.FLAGS.flags_by_module_dict()[command_line.__name__]:
        if flag.name.startswith("config."):
            continue
        values = getattr(flag.parser, "enum_values", ())
        meaning = flag.help.removeprefix(f"<{'|'.join(values)}>: ")
        if values:
            meaning += f" One of {', '.join(f'`{value}`' for value in values)}."
        default = "" if flag.default is None else str(flag.default)
        text.append(f"| `--{flag.name}` | {_code(default)} | {_cell(meaning)} |")
    text += [
        "",
        "`--config.KEY=VALUE` overrides a [key of the config](config_keys.md). Exit codes: 0, done; 2, an error,",
        "explained in one line; 42, preempted: the state is saved, and the same command continues.",
        "",
        "| environment variable | meaning |",
        "|---|---|",
        "| `ADVJAX_COORDINATOR` | host:port of process 0, where no cluster manager says it |",
        "| `ADVJAX_NUM_PROCESSES`, `ADVJAX_PROCESS_ID` | the number of processes, and which one this is |",
        "| `ADVJAX_COMPILATION_CACHE` | default of `--compilation_cache` |",
        "| `ADVJAX_CACHE` | cache of decoded data; default `~/.cache/advjax` |",
        "| `ADVJAX_EXACT_CONVOLUTIONS` | 1: plain XLA convolutions on a CPU as well |",
        "| `TFDS_DATA_DIR` | folder of prepared TensorFlow Datasets |",
        "",
        "## python -m advjax.papers",
        "",
        "```text",
        papers_command.parser().format_help().rstrip(),
        "```",
        "",
    ]
    return "\n".join(text)


# Attacks


def attack_table() -> str:
    """The exported attacks with their arguments and the first lines of their docstrings."""
    rows = []
    for name in attacks.__all__:
        value = getattr(attacks, name)
        if _returns(value) in ("Attack", "AttackFn") and "threat_model" in inspect.signature(value).parameters:
            rows.append(f"| {{py:func}}`~advjax.attacks.{name}` | {_arguments(value)} | {_cell(_summary(value))} |")
    return "\n".join(["| attack | arguments | |", "|---|---|---|", *rows, ""])


def _summary(value: Any) -> str:
    """The first paragraph of the docstring, "" for what has none of its own."""
    if value is None or isinstance(value, str | int | float) or getattr(value, "__name__", "") == "<lambda>":
        return ""
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
