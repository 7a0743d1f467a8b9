"""Pages about configs and the command line: keys with their defaults, registered names, flags."""

import ast
import pathlib
import tokenize
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from absl import flags
from describe import arguments, cell, code, summary

from advjax import main as command_line
from advjax.experiment import defaults, registry
from advjax.papers import __main__ as papers_command


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
        rows = [
            f"| {', '.join(f'`{prefix}{key.path}`' for key in keys)} | {', '.join(code(key.default) for key in keys)} "
            f"| {cell(keys[0].comment)} |"
            for keys in _with_shared_comments(tables[name])
        ]
        text += ["", f"## {heading}", "", "| key | default | meaning |", "|---|---|---|", *rows]
    return "\n".join([*text, ""])


def _with_shared_comments(keys: list[Key]) -> list[list[Key]]:
    """Keys in groups: those that have no comment of their own share the one above."""
    groups: list[list[Key]] = []
    for key in keys:
        if key.comment or not groups:
            groups.append([key])
        else:
            groups[-1].append(key)
    return groups


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
        'beside the name are its arguments. `"configs.MODULE:FUNCTION"` names a function beside the configs instead,',
        'and `"package.module:function"` one of your own.',
    ]
    for table, names in vars(registry).items():
        if not table.isupper() or not isinstance(names, Mapping):
            continue
        rows = [f"| `{name}` | {arguments(value)} | {cell(summary(value))} |" for name, value in names.items()]
        heading = table.replace("_", " ").capitalize()
        text += ["", f"## {heading}", "", "| name | arguments | meaning |", "|---|---|---|", *rows]
    return "\n".join([*text, ""])


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
        text.append(f"| `--{flag.name}` | {code(default)} | {cell(meaning)} |")
    text += [
        "",
        "`--config.KEY=VALUE` overrides a [key of the config](config_keys.md). Exit codes: 0, done; 2, an error,",
        "explained in one line; 42, preempted: the state is saved, and the same command continues; 130, stopped by a",
        "second Ctrl-C without saving.",
        "",
        "| environment variable | meaning |",
        "|---|---|",
        "| `ADVJAX_COORDINATOR` | host:port of process 0, where no cluster manager says it |",
        "| `ADVJAX_NUM_PROCESSES`, `ADVJAX_PROCESS_ID` | the number of processes, and which one this is |",
        "| `ADVJAX_COMPILATION_CACHE` | default of `--compilation_cache` |",
        "| `ADVJAX_CACHE` | cache of decoded data; default `~/.cache/advjax` |",
        "| `ADVJAX_EXACT_CONVOLUTIONS` | 1: plain XLA convolutions and pooling on a CPU as well |",
        "| `TFDS_DATA_DIR` | folder of prepared TensorFlow Datasets |",
        "",
        "## python -m advjax.papers",
        "",
        "```text",
        papers_command.parser().format_help().rstrip(),
        "```",
        "",
        "```text",
        papers_command.command_parser().format_help().rstrip(),
        "```",
        "",
    ]
    return "\n".join(text)
