"""Checkpoints: exact, verified, and never in the way of the next run.

On disk, below the run's checkpoint folder::

    <step>/state/   every array of the training state (Orbax)
    <step>/about/   config, metrics, and dtype, shape and SHA-256 of every array; sealed by a SHA-256 of its own

The storage underneath notices a truncated file but returns a flipped byte as a different number, hence the sums.
A checkpoint counts as damaged when anything of it is missing or differs from what was saved.  ``Checkpoints.restore``
passes it over, says so, and renames it to ``<step>.damaged``, so that the step can be saved again.
"""

import contextlib
import gc
import hashlib
import json
import logging
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from jax.experimental import multihost_utils

from advjax.runtime.devices import fetch
from advjax.types import PyTree, UserError

VARIABLES = ("params", "model_state", "average")
_DAMAGED = ".damaged"


class Restored(NamedTuple):
    """What a checkpoint holds."""

    step: int
    state: PyTree
    metrics: dict[str, float]
    config: dict[str, Any]
    """As it was saved, but for tuples, which have become lists."""


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save when it ends.

    Saving is asynchronous: the arrays are copied before ``save`` returns, so that the caller may donate them, and are
    written meanwhile.  All processes of a run call every method together.

    Kept are the ``keep_latest`` newest checkpoints and the one with the largest ``best_metric`` (the newer one of
    equals; NaN, or no such metric, is never best).

    Args:
      directory: a folder (local or of a bucket), created if need be.
      save_every: steps between two saves.
      best_metric: name in ``metrics`` of the number that is better the larger it is, or None.
      keep_latest: how many of the newest checkpoints to keep.
      notify: receives one line when a damaged checkpoint is passed over; called on process 0 only.

    Raises:
      UserError: ``save_every`` or ``keep_latest`` is not positive.
    """

    def __init__(
        self,
        directory: str,
        *,
        save_every: int,
        best_metric: str | None = None,
        keep_latest: int = 1,
        notify: Callable[[str], None] = print,
    ) -> None:
        for name, value in (("save_every", save_every), ("keep_latest", keep_latest)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        self._directory = epath.Path(directory).absolute()
        self._save_every = save_every
        self._best_metric = best_metric
        self._retention = _Retention(keep_latest, {})
        self._notify = notify
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> "Checkpoints":
        self._retention.scores.update(_scores(self._directory, self._best_metric))
        self._resources.enter_context(_quiet_orbax())
        options = ocp.CheckpointManagerOptions(preservation_policy=self._retention, cleanup_tmp_directories=True)
        self._manager = self._resources.enter_context(ocp.CheckpointManager(self._directory, options=options))
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def latest_step(self) -> int | None:
        """The newest step on disk or being written; whether it is whole, only ``restore`` knows."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the largest ``best_metric``, None if no checkpoint has it."""
        scores = self._retention.scores
        return _best({step: scores[step] for step in self._manager.all_steps() if step in scores})

    def is_due(self, step: int) -> bool:
        """Whether ``save`` would write at this step without being forced."""
        return step > 0 and step % self._save_every == 0 and step not in self._manager.all_steps()

    def save(
        self, step: int, state: PyTree, *, metrics: dict[str, float], config: dict[str, Any], force: bool = False
    ) -> bool:
        """Starts to write ``state`` (arrays only) if it ``is_due``; with ``force``, at any step not yet on disk.

        Returns whether it did.  ``config`` must be plain JSON data.  Force the last step of a run.
        """
        if step in self._manager.all_steps() or not (force or self.is_due(step)):
            return False
        metrics = {name: float(value) for name, value in metrics.items()}
        about = {"step": step, "config": config, "metrics": metrics, "leaves": _describe(state)}
        about = json.loads(json.dumps(about))
        self._retention.scores.update(_score(step, metrics, self._best_metric))
        items = {
            "state": ocp.args.StandardSave(state),
            "about": ocp.args.JsonSave({**about, "seal": _seal(about)}),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        return True

    def restore(self, template: PyTree, *, which: str = "latest") -> Restored | None:
        """The latest or best checkpoint, verified; None if there is none.

        Args:
          template: the state's structure, of arrays or ``jax.ShapeDtypeStruct``; leaves come back with its sharding.
          which: ``"latest"`` or ``"best"``.

        Raises:
          UserError: every checkpoint is damaged; no checkpoint has the metric that ``"best"`` needs; or the arrays are
            not those of ``template``, that is, the run was started with another configuration.
        """
        self._manager.wait_until_finished()
        load = lambda step, about: _load_state(self._directory, step, about, template)  # noqa: E731
        restored, damaged = _first_whole(self._directory, which, self._best_metric, load)
        if damaged and restored:
            self._set_aside(damaged)
            _tell(
                self._notify,
                damaged,
                restored.step,
                "renamed to " + ", ".join(f"{self._directory / str(step)}{_DAMAGED}" for step in damaged),
            )
        return restored

    def _set_aside(self, damaged: dict[int, str]) -> None:
        if jax.process_index() == 0:
            for step in damaged:
                target = self._directory / f"{step}{_DAMAGED}"
                if target.exists():
                    target.rmtree()
                (self._directory / str(step)).rename(target)
        _barrier("advjax_checkpoint_set_aside")
        for step in damaged:
            self._retention.scores.pop(step, None)
        self._manager.reload()


def restore_variables(
    directory: str,
    *,
    which: str = "latest",
    best_metric: str | None = None,
    names: Sequence[str] = VARIABLES,
    notify: Callable[[str], None] = print,
) -> Restored:
    """Parts of the state as nested dicts of numpy arrays, without a template; reads nothing else and changes nothing.

    Args:
      directory: checkpoint folder of any run.
      which: ``"latest"`` or ``"best"``.
      best_metric: the metric of ``"best"``.
      names: fields of the state; one that holds no arrays comes back as ``{}``.
      notify: receives one line when a damaged checkpoint is passed over; called on process 0 only.

    Raises:
      UserError: there is no checkpoint, or none that is whole, or none with ``best_metric``.
    """
    path = epath.Path(directory).absolute()
    load = lambda step, about: _load_variables(path, step, about, names)  # noqa: E731
    restored, damaged = _first_whole(path, which, best_metric, load)
    if restored is None:
        raise UserError(f"no checkpoint in {directory}; train this run first or name another folder")
    if damaged:
        _tell(notify, damaged, restored.step, "left where it is")
    return restored


def read_config(directory: str) -> dict[str, Any]:
    """The config of the newest readable checkpoint.

    Raises:
      UserError: there is none.
    """
    path = epath.Path(directory).absolute()
    for step in reversed(_steps(path)):
        with contextlib.suppress(_DamagedError):
            return _read_about(path, step)["config"]
    raise UserError(f"no readable checkpoint in {directory}; train this run first or name another folder")


class _DamagedError(Exception):
    pass


class _Retention(NamedTuple):
    """Orbax preservation policy: the newest few and the best.  Reads no file, for any of them may be damaged."""

    keep_latest: int
    scores: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        keep = {*steps[-self.keep_latest :], _best({step: self.scores[step] for step in steps if step in self.scores})}
        return [checkpoint.step in keep for checkpoint in checkpoints]


def _best(scores: dict[int, float]) -> int | None:
    return max(scores, key=lambda step: (scores[step], step), default=None)


def _score(step: int, metrics: dict[str, float], name: str | None) -> dict[int, float]:
    """``{step: the metric}``, or nothing where it is absent or NaN."""
    if name is None or math.isnan(metrics.get(name, math.nan)):
        return {}
    return {step: metrics[name]}


def _scores(directory: epath.Path, metric: str | None) -> dict[int, float]:
    scores = {}
    for step in _steps(directory):
        with contextlib.suppress(_DamagedError):
            scores.update(_score(step, _read_about(directory, step)["metrics"], metric))
    return scores


def _steps(directory: epath.Path) -> list[int]:
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())


def _seal(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _read_about(directory: epath.Path, step: int) -> dict[str, Any]:
    try:
        about = json.loads((directory / str(step) / "about" / "metadata").read_text())
        seal = about.pop("seal")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _DamagedError("its description is missing or unreadable") from error
    if seal != _seal(about) or about["step"] != step:
        raise _DamagedError("its description was altered")
    return about


def _paths(tree: PyTree) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _describe(tree: PyTree) -> dict[str, list[Any]]:
    """dtype, shape and SHA-256 of the bytes of every leaf, by path."""
    leaves = _paths(tree)
    words = fetch(list(leaves.values()))
    with ThreadPoolExecutor() as pool:
        sums = pool.map(
            lambda array: hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data), words
        )
        entries = zip(leaves.items(), sums, strict=True)
        return {path: [str(leaf.dtype), list(leaf.shape), digest.hexdigest()] for (path, leaf), digest in entries}


def _first_whole(
    directory: epath.Path, which: str, metric: str | None, load: Callable[[int, dict[str, Any]], PyTree]
) -> tuple[Restored | None, dict[int, str]]:
    """The first undamaged checkpoint in the order of ``which``, and those passed over with the reason."""
    order = _steps(directory)[::-1]
    if which not in ("latest", "best"):
        raise UserError(f"unknown checkpoint {which!r}; choose latest or best")
    if which == "best" and order:
        unreadable = [step for step in order if not _is_readable(directory, step)]
        best = _best(_scores(directory, metric))
        if best is None and len(unreadable) < len(order):
            raise UserError(f"no checkpoint in {directory} has the metric {metric!r}; use the latest one instead")
        first = unreadable if best is None else [*unreadable, best]
        order = [*first, *(step for step in order if step not in first)]
    damaged = {}
    for step in order:
        problem, restored = "", None
        try:
            about = _read_about(directory, step)
            restored = Restored(step, load(step, about), about["metrics"], about["config"])
        except _DamagedError as error:
            problem = str(error)
        if _all_processes(not problem):
            return restored, damaged
        damaged[step] = problem or "another process could not read it"
    if damaged:
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise UserError(f"every checkpoint in {directory} is damaged ({reasons}); remove the folder to start afresh")
    return None, damaged


def _is_readable(directory: epath.Path, step: int) -> bool:
    try:
        return bool(_read_about(directory, step))
    except _DamagedError:
        return False


def _load_state(directory: epath.Path, step: int, about: dict[str, Any], template: PyTree) -> PyTree:
    expected = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in _paths(template).items()}
    stored = {path: entry[:2] for path, entry in about["leaves"].items()}
    for path in sorted(expected.keys() | stored.keys()):
        if expected.get(path) != stored.get(path):
            raise UserError(
                f"checkpoint {directory / str(step)} belongs to another configuration: {path} is "
                f"{_name(stored.get(path))} there and {_name(expected.get(path))} here; "
                "give this run another folder or its old configuration"
            )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here),
        template,
    )
    return _read(directory, step, about, template, ocp.checkpoint_utils.construct_restore_args(template))


def _load_variables(directory: epath.Path, step: int, about: dict[str, Any], names: Sequence[str]) -> PyTree:
    template: dict[str, Any] = {name: {} for name in names}
    for path, (dtype, shape, _) in about["leaves"].items():
        *parents, last = path.split("/")
        if path.split("/")[0] in names:
            node = template
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jax.ShapeDtypeStruct(shape, dtype)
    present = {name: tree for name, tree in template.items() if tree}
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), present)
    return {**template, **_read(directory, step, about, present, kinds)}


def _name(entry: list[Any] | None) -> str:
    return "absent" if entry is None else f"{entry[0]}{entry[1]}"


def _read(directory: epath.Path, step: int, about: dict[str, Any], template: PyTree, restore_args: PyTree) -> PyTree:
    """Reads the leaves of ``template`` and compares their sums; whatever fails in there is damage."""
    args = ocp.args.PyTreeRestore(item=template, restore_args=restore_args, partial_restore=True)
    state, problem = None, ""
    with _quiet_orbax(), warnings.catch_warnings(), ocp.PyTreeCheckpointer() as reader:
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            state = reader.restore(directory / str(step) / "state", args=args)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            problem = f"reading it failed with {type(error).__name__}"
        if problem:
            gc.collect()
            time.sleep(0.2)  # The abandoned reads end in here, where nobody hears them.
    if problem:
        raise _DamagedError(problem)
    for path, entry in _describe(state).items():
        if entry != about["leaves"][path]:
            raise _DamagedError(f"{path} differs from what was saved")
    return state


def _all_processes(here: bool) -> bool:
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.asarray(here)).all())


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _tell(notify: Callable[[str], None], damaged: dict[int, str], used: int, fate: str) -> None:
    if jax.process_index() == 0:
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        notify(f"damaged checkpoint passed over ({reasons}), {fate}; using step {used}")


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Drops what Orbax logs, unless absl logs more than by default; what goes wrong in there comes as an exception.

    A failing read abandons the other reads, and each would print a traceback of its own, from a thread and too late.
    """
    if absl_logging.get_verbosity() > absl_logging.WARNING:
        yield
        return

    def from_orbax(error_traceback: Any) -> bool:
        files = [frame.filename for frame in traceback.extract_tb(error_traceback)]
        return any("orbax" in file or "asyncio" in file for file in files)

    hooks = sys.excepthook, sys.unraisablehook
    filters = {
        "absl": lambda record: "orbax" not in record.pathname,
        # A read that the storage library ended has no Python frames at all.
        "asyncio": lambda record: (
            not (record.exc_info and (record.exc_info[2] is None or from_orbax(record.exc_info[2])))
        ),
    }
    sys.excepthook = lambda *error: None if from_orbax(error[2]) else hooks[0](*error)
    sys.unraisablehook = lambda event: None if from_orbax(event.exc_traceback) else hooks[1](event)
    for name, passes in filters.items():
        logging.getLogger(name).addFilter(passes)
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        for name, passes in filters.items():
            logging.getLogger(name).removeFilter(passes)
