"""Command line: ``advjax --config=digits_fixer``, or ``python -m advjax.main --config=configs/digits_fixer.py``.

Exit codes: 0 done, 2 a mistake that the one printed line explains, 42 stopped by SIGTERM or Ctrl-C, everything saved,
130 stopped by a second Ctrl-C without saving.
"""

import errno
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

if not any(argument.lstrip("-").startswith("distributed") for argument in sys.argv[1:]):
    # XLA prints paragraphs about programs that are slow to compile, at the level of errors; real ones are raised.  The
    # processes of a job do print theirs, among them which host was lost.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ.get("JAX_NUM_CPU_DEVICES", "1") != "1":
    # Several virtual devices on few cores: the thread pool needs a thread for each of them, or collectives never meet.
    os.environ.setdefault("NPROC", "16")

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from advjax.attacks.compilation_cache import DEFAULT_FOLDER, use_compilation_cache
from advjax.evaluation.adversarial_sets import FORMATS
from advjax.experiment import config_flag
from advjax.experiment.from_config import complete
from advjax.experiment.presets import PAPER, PRESETS, with_preset
from advjax.jobs.compare import compare
from advjax.jobs.evaluate import evaluate_experiment
from advjax.jobs.rescore import print_scores, rescore
from advjax.jobs.train import train
from advjax.jobs.workdir import locked, open_experiment, read_config
from advjax.reporting.terminal import print_report
from advjax.runtime import distributed
from advjax.runtime.devices import Devices, is_main_process, mesh, process_index
from advjax.runtime.preemption import PREEMPTED, PreemptedError, Preemption
from advjax.types import UserError

FLAGS = flags.FLAGS
MODES = ("train_and_evaluate", "train", "evaluate", "compare")
INTERRUPTED = 130

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Python file with get_config(), or the name of an installed config; override its keys with --config.KEY=VALUE.",
    # Arguments that a config leaves at their defaults (those of an attack, say) may be given too; they are checked when
    # the experiment is built.
    lock_config=False,
    accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_list(
    "workdir",
    None,
    "Folder of checkpoints and reports; default workdirs/NAME_OF_CONFIG. Several to evaluate or compare.",
)
_MODE = flags.DEFINE_enum(
    "mode", MODES[0], MODES, "What to do; evaluate needs only --workdir, and so does compare, which reads reports."
)
_PRESET = flags.DEFINE_enum(
    "preset",
    PAPER,
    list(PRESETS),
    "Attacks to evaluate with: the config's (paper), a short ensemble, or AutoAttack (rand: for stochastic models).",
)
_SAVE_ADVERSARIAL = flags.DEFINE_enum(
    "save_adversarial", None, FORMATS, "Keep the adversarial images, whatever evaluation.save_adversarial says."
)
_ADVERSARIAL = flags.DEFINE_list("adversarial", None, "Evaluate on these files of kept adversarial images alone.")
_TRUST_WORKDIR = flags.DEFINE_boolean(
    "trust_workdir", False, "Whether the config.json of a folder may name functions outside advjax, and so run code."
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "none"], "Whether to join the processes of a cluster job."
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get("ADVJAX_COMPILATION_CACHE", DEFAULT_FOLDER),
    "Folder that keeps compiled programs between runs; empty for none.",
)


def main(argv: Sequence[str]) -> int:
    """Trains and evaluates what the flags describe; returns the exit code."""
    del argv
    if not any(argument.startswith(("--verbosity", "-v")) for argument in sys.argv):
        # absl makes it INFO, at which the checkpoint library says dozens of lines for every save.
        logging.set_verbosity(logging.WARNING)
    console = Console(stderr=True, highlight=False)
    try:
        _run(lambda line: console.print(line, markup=False, soft_wrap=True))
    except UserError as error:
        return _refuse(error)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = ": free some disk space; the same command continues from what was saved" if full else ""
        return _refuse(UserError(f"{error}{remedy}"))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refuse(UserError(f"out of memory ({error}): choose a smaller batch_size or image_size, or data.stream"))
    except PreemptedError as error:
        console.print(f"{error}; repeat the command to go on", markup=False, soft_wrap=True)
        return _leave(PREEMPTED)
    except KeyboardInterrupt:
        console.print("stopped without saving; repeat the command to go on from what was saved before", soft_wrap=True)
        return _leave(INTERRUPTED)
    return 0


def _leave(code: int) -> int:
    """Ends the process; the interpreter would wait for a report card that is being made."""
    if not jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    return code


def _run(notify: Callable[[str], None]) -> None:
    distributed.initialize(_DISTRIBUTED.value)
    if _COMPILATION_CACHE.value:
        use_compilation_cache(_COMPILATION_CACHE.value)
    _check_flags()
    folders = _workdirs()
    if _MODE.value != "compare":
        with Preemption() as preemption:
            for workdir in folders:
                _work(workdir, notify, preemption.requested)
    if (_MODE.value == "compare" or len(folders) > 1) and not _ADVERSARIAL.value and is_main_process():
        compare(folders, _preset_folder(), Console(highlight=False))


def _work(workdir: str, notify: Callable[[str], None], stop_requested: Callable[[], bool]) -> None:
    """Trains and evaluates in one folder, as requested."""
    config = _with_flags(_config(workdir))
    devices = Devices(mesh(), config["mapping"])
    # Whatever is wrong with the config is said before the folder is made.
    open_experiment(config, workdir)
    with locked(workdir):
        _work_on(config, workdir, devices, notify, stop_requested)


def _work_on(
    config: Mapping[str, Any],
    workdir: str,
    devices: Devices,
    notify: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> None:
    """Trains, rescores or evaluates, by the mode."""
    if _MODE.value != "evaluate":
        train(config, workdir, devices, notify, stop_requested)
    for path in _ADVERSARIAL.value or ():
        kept, scores = rescore(config, workdir, path, devices, notify)
        if is_main_process():
            print_scores(path, kept, scores, Console(highlight=False))
    if _MODE.value != "train" and not _ADVERSARIAL.value:
        folder = os.path.join(workdir, _preset_folder())
        found = evaluate_experiment(config, workdir, devices, notify, stop_requested, folder)
        if is_main_process():
            print_report(found, Console(highlight=False))
            notify(f"report: {pathlib.Path(folder, 'report.html').absolute()}")


def _with_flags(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The complete config with what flags change in it."""
    changed = with_preset(complete(config), _PRESET.value)
    if _SAVE_ADVERSARIAL.value:
        changed["evaluation"]["save_adversarial"] = _SAVE_ADVERSARIAL.value
    return changed


def _check_flags() -> None:
    """What the flags must not be together."""
    mode, folders = _MODE.value, _WORKDIR.value or []
    if any("://" in folder for folder in folders):
        raise UserError(
            f"--workdir={','.join(folders)} is not a folder: reports and metrics need a local or mounted one"
        )
    if len(set(folders)) < len(folders) or "" in folders:
        raise UserError(f"--workdir={','.join(folders)} must name different folders, with commas between them")
    if len(folders) > 1 and (_CONFIG.value is not None or mode not in ("evaluate", "compare")):
        raise UserError("several folders in --workdir: they can only be evaluated or compared, and without --config")
    if _ADVERSARIAL.value and (mode != "evaluate" or _SAVE_ADVERSARIAL.value or _PRESET.value != PAPER):
        raise UserError("--adversarial needs --mode=evaluate, and neither --preset nor --save_adversarial")
    if _PRESET.value != PAPER and mode not in ("evaluate", "compare"):
        raise UserError(f"--preset={_PRESET.value} needs --mode=evaluate or --mode=compare")
    if mode == "compare" and not folders:
        raise UserError("nothing to compare: name one or more evaluated folders with --workdir=FOLDER,FOLDER")


def _workdirs() -> list[str]:
    if _WORKDIR.value:
        return _WORKDIR.value
    if _CONFIG.value is None:
        raise UserError("no config given: use --config=digits_fixer, or --mode=evaluate --workdir=FOLDER")
    return [f"workdirs/{pathlib.Path(config_flags.get_config_filename(FLAGS['config'])).stem}"]


def _config(workdir: str) -> ConfigDict | Mapping[str, Any]:
    """The config that was given, or the one that the folder was trained with."""
    if _CONFIG.value is not None:
        return _CONFIG.value
    if _MODE.value != "evaluate":
        raise UserError("no config given: use --config=digits_fixer, or --mode=evaluate --workdir=FOLDER")
    return read_config(workdir, trusted=_TRUST_WORKDIR.value)


def _preset_folder() -> str:
    """A preset has a report of its own, so that the config's own report stays."""
    return "" if _PRESET.value == PAPER else _PRESET.value


def _parse(argv: Sequence[str]) -> list[str]:
    """Flags from the command line; whatever is wrong with them or with the config file is one line and exit code 2."""
    try:
        argv = config_flag.find_config(argv)
        argv, emptied = config_flag.without_none(argv)
        # The flag of the config reads its overrides from here.
        sys.argv = argv
        parsed = FLAGS(argv)
        config_flag.set_none(_CONFIG.value, emptied)
        return parsed
    except Exception as error:
        sys.exit(_refuse(config_flag.explained(error, argv)))


def _refuse(error: Exception) -> int:
    line = " ".join(str(error).split()) or type(error).__name__
    # Whatever only one process of a job has met (a disk, a data directory) must still be heard of.
    who = f"process {process_index()}: " if jax.distributed.is_initialized() and process_index() else ""
    Console(stderr=True, highlight=False).print(f"{who}error: {line}", style="red", markup=False, soft_wrap=True)
    return 2


def run() -> None:
    """The command ``advjax``, and ``python -m advjax.main``; ends the process with the exit code."""
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
