"""Compiles our own programs for devices that need not be here, and prints what the compiler has made of them.

    python -m advjax.benchmarks.programs --target=cuda:h100 --program=stage --config=digits_fixer

Nothing is run and nothing is timed: the roofline is what published peaks allow.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from advjax.benchmarks.command_line import run_command
from advjax.benchmarks.reports import check_writable
from advjax.runtime.files import write_atomically
from advjax.types import UserError

PROGRAM_NAMES = ("train_base", "train_fixer", "attack", "stage", "verify")


def _flags() -> flags.FlagValues:
    """The command line; flags of its own, since importing this module must not define any for others."""
    found = flags.FlagValues()
    config_flags.DEFINE_config_file(
        *("config", None, "As for advjax: a file with get_config(), or the name of an installed config."),
        lock_config=False,
        accept_new_attributes=True,
        flag_values=found,
    )
    texts = {
        "target": (None, "tpu:v5e:1x1, tpu:v5e:4x4 or another slice, or cuda:h100."),
        "program": (None, f"Any of {', '.join(PROGRAM_NAMES)}, with commas between them; default all."),
        "run": ("", "Which run's network is attacked and judged; default the first."),
        "stage": ("apgd-ce", "The stage of AutoAttack of --program=stage."),
        "search_dtype": ("", "What attacks compute in, such as bfloat16; default what the network does."),
        "json": (None, "File to write all facts to."),
        "text": (None, "Folder to keep the text of the compiled programs in."),
    }
    for name, (default, text) in texts.items():
        flags.DEFINE_string(name, default, text, flag_values=found)
    text = "Number, height, width and channels of the training images; default those of the data of the config."
    flags.DEFINE_list("images", None, text, flag_values=found)
    flags.DEFINE_integer("classes", 10, "Number of classes, with --images.", flag_values=found)
    return found


def main(argv: Sequence[str]) -> None:
    """Compiles and prints what the command line says."""
    # Nothing may look for an accelerator: compilers alone are needed.
    jax.config.update("jax_platforms", "cpu")
    from advjax.experiment import config_flag

    options = _flags()
    try:
        argv = config_flag.find_config(argv)
        argv, emptied = config_flag.without_none(argv)
        # The flag of the config reads its overrides from here.
        sys.argv = argv
        surplus = options(argv)[1:]
        config_flag.set_none(options.config, emptied)
    except Exception as error:
        raise UserError(str(config_flag.explained(error, argv))) from error
    if surplus or not options.target or options.config is None:
        raise UserError(f"give --target and --config, and only flags (surplus: {' '.join(surplus) or 'nothing'})")
    if options.json is not None:
        check_writable(pathlib.Path(options.json))
    names = options.program.split(",") if options.program else list(PROGRAM_NAMES)
    if unknown := [name for name in names if name not in PROGRAM_NAMES]:
        raise UserError(f"--program: unknown {', '.join(unknown)}; known are {', '.join(PROGRAM_NAMES)}")
    said = _compile_all(options, names)
    if options.json is not None:
        write_atomically(pathlib.Path(options.json), (json.dumps(said, indent=1) + "\n").encode())


def _compile_all(options: flags.FlagValues, names: Sequence[str]) -> list[dict[str, Any]]:
    """Compiles the programs one after the other, and prints the facts about each."""
    from advjax.benchmarks.programs.facts import facts
    from advjax.benchmarks.programs.product import Subject, compile_program
    from advjax.benchmarks.programs.report import describe, lines
    from advjax.benchmarks.programs.targets import find_target
    from advjax.experiment.from_config import complete, from_config

    config = complete(options.config)
    data_facts = _facts(options, config)
    target = find_target(options.target)
    experiment = from_config(config, data_facts)
    # What is kept on disk cannot be read back for devices that are not here.
    jax.config.update("jax_enable_compilation_cache", False)
    is_streamed = bool(config["data"]["stream"])
    subject = Subject(experiment, target, is_streamed, options.run, options.stage, options.search_dtype)
    found = []
    for name in names:
        compiled = compile_program(name, subject)
        text = compiled.compiled.as_text()
        if text is None:
            raise UserError(f"{options.target}: its compiler does not say what it has made")
        if options.text is not None:
            folder = pathlib.Path(options.text)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"{options.target.replace(':', '_')}.{name}.hlo", text.encode())
        found.append(describe(target, name, compiled, facts(text), experiment.facts.image_shape))
        print("\n".join(lines(found[-1])), flush=True)
    return found


def _facts(options: flags.FlagValues, config: dict[str, Any]) -> Any:
    """What models depend on of the data, from the command line; None to read the data."""
    from advjax.experiment.build_data import number
    from advjax.experiment.spec import DataFacts

    if options.images is None:
        return None
    try:
        count, height, width, channels = (int(size) for size in options.images)
        if min(count, height, width, channels, options.classes) < 1:
            raise ValueError
    except ValueError as error:
        raise UserError("--images: give number, height, width and channels, such as 45000,32,32,3") from error
    counts = {name: max(1, round(number(config["run"][name]["train_fraction"]) * count)) for name in config["runs"]}
    validation = int(config["data"]["num_validation"]) or 1
    return DataFacts(config["data"]["name"], (height, width, channels), options.classes, validation, counts)


if __name__ == "__main__":
    run_command(main, sys.argv)
