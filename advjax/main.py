"""Command line: ``python -m advjax.main --config=configs/digits_fixer.py``.

Exit codes: 0 done, 2 a mistake that the one printed line explains, 42 stopped by SIGTERM with everything saved.
"""

import os
import pathlib
import sys

# Several virtual CPU devices on few cores: the thread pool needs one thread per device, or collectives never meet.
os.environ.setdefault("NPROC", "16")

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from advjax import experiment, sharding, workflow
from advjax.evaluation import table
from advjax.training.loop import PreemptedError
from advjax.types import UserError

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config(); override its keys with --config.key=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and reports; default workdirs/<name of the config>.")
MODE = flags.DEFINE_enum("mode", "train_and_evaluate", ["train_and_evaluate", "train", "evaluate"], "What to do.")
DISTRIBUTED = flags.DEFINE_enum("distributed", "auto", ["auto", "none"], "Join the processes of a cluster job.")
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("ADVJAX_COMPILATION_CACHE", "~/.cache/advjax/xla"),
    "Folder where compiled programs are kept between runs; empty for none.",
)


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit code."""
    console = Console(stderr=True, highlight=False)
    try:
        _parse(argv)
        run(console)
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except PreemptedError as error:
        console.print(f"{error}; repeat the command to go on", markup=False, soft_wrap=True)
        return 42
    return 0


def _parse(argv: list[str]) -> None:
    FLAGS(argv)


def run(console: Console) -> None:
    """Builds the experiment that the flags describe, trains and evaluates it."""
    sharding.initialize(DISTRIBUTED.value)
    if COMPILATION_CACHE.value:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(COMPILATION_CACHE.value).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    workdir = WORKDIR.value or f"workdirs/{pathlib.Path(FLAGS['config'].config_filename).stem}"
    built = experiment.from_config(CONFIG.value)
    devices = sharding.Devices(sharding.mesh(), built.mapping)

    def notify(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if MODE.value != "evaluate":
        workflow.train(built, workdir, devices, notify)
    if MODE.value != "train":
        found = workflow.evaluate(built, workdir, devices, notify)
        if jax.process_index() == 0:
            table.print_report(found, Console(highlight=False))
            notify(f"report: {pathlib.Path(workdir, 'report.html').absolute()}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
