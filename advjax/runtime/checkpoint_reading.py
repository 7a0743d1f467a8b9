"""Reads checkpoints, verified: the newest or best one that is not damaged."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from advjax.runtime import checkpoint_integrity as integrity
from advjax.runtime.checkpoint_integrity import DamagedError, leaves_by_path, read_about, steps
from advjax.runtime.devices import agree, is_main_process
from advjax.runtime.quiet_orbax import quiet_orbax
from advjax.types import PyTree, UserError

VARIABLES = ("params", "model_state", "average")
"""The fields of a training state that a model needs."""


class Restored(NamedTuple):
    """The content of a checkpoint."""

    step: int
    state: PyTree
    metrics: dict[str, float]
    config: dict[str, Any]
    """As saved, except that tuples have become lists."""


def restore_variables(
    directory: str,
    *,
    which: str = "latest",
    best_metric: str | None = None,
    names: Sequence[str] = VARIABLES,
    notify: Callable[[str], None] = print,
) -> Restored:
    """Restores fields of the state as nested dicts of numpy arrays, without a template.

    Only these fields are read and verified, so damage elsewhere (in the optimizer state, say) does not matter. Nothing
    on disk is changed.

    Args:
      directory: checkpoint folder of any run.
      which: ``"latest"`` or ``"best"``.
      best_metric: the metric of ``"best"``.
      names: fields of the state; one without arrays comes back as ``{}``.
      notify: receives one line if a damaged checkpoint is skipped; called on process 0 only.

    Raises:
      UserError: there is no checkpoint, or all are damaged, or none has ``best_metric``.
    """
    path = epath.Path(directory).absolute()
    load = lambda step, about: _load_fields(path, step, about, names)  # noqa: E731
    restored, damaged = first_whole(path, which, best_metric, load)
    if restored is None:
        raise UserError(f"no checkpoint in {directory}; train this run first, or give another folder")
    if damaged:
        tell(notify, damaged, restored.step, "left in place")
    return restored


def first_whole(
    directory: epath.Path, which: str, metric: str | None, load: Callable[[int, dict[str, Any]], PyTree]
) -> tuple[Restored | None, dict[int, str]]:
    """The first undamaged checkpoint in the order of ``which``, and the damaged ones that were skipped, with reasons.

    Args:
      directory: the checkpoint folder.
      which: ``"latest"`` or ``"best"``.
      metric: the metric of ``"best"``.
      load: ``(step, description) -> state``; raises DamagedError.

    Raises:
      UserError: every checkpoint is damaged, or none has the metric, or ``which`` is unknown.
    """
    damaged: dict[int, str] = {}
    for step in _order(directory, which, metric):
        problem, restored = "", None
        try:
            about = read_about(directory, step)
            restored = Restored(step, load(step, about), about["metrics"], about["config"])
        except DamagedError as error:
            problem = str(error)
        if agree(not problem):
            return restored, damaged
        damaged[step] = problem or "another process could not read it"
    if damaged:
        raise UserError(
            f"every checkpoint in {directory} is damaged ({integrity.reasons(damaged)}): "
            "remove the folder to start over"
        )
    return None, damaged


def _order(directory: epath.Path, which: str, metric: str | None) -> list[int]:
    """The steps in the order in which they are tried."""
    order = steps(directory)[::-1]
    if which not in ("latest", "best"):
        raise UserError(f"unknown checkpoint {which!r}; choose latest or best")
    if which == "latest" or not order:
        return order
    # An unreadable one may have been the best, so it is reported.
    unreadable = [step for step in order if not integrity.is_readable(directory, step)]
    best = integrity.best(integrity.scores(directory, metric))
    if best is None and len(unreadable) < len(order):
        raise UserError(f"no checkpoint in {directory} has the metric {metric!r}; use the latest one instead")
    first = unreadable if best is None else [*unreadable, best]
    return [*first, *(step for step in order if step not in first)]


def load_state(directory: epath.Path, step: int, about: dict[str, Any], template: PyTree) -> PyTree:
    """The whole state, with the structure and shardings of ``template``.

    Raises:
      DamagedError: it is not what was saved.
      UserError: its arrays are not those of ``template``.
    """
    expected = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves_by_path(template).items()}
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


def _load_fields(directory: epath.Path, step: int, about: dict[str, Any], names: Sequence[str]) -> PyTree:
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


def _read(directory: epath.Path, step: int, about: dict[str, Any], template: PyTree, restore_args: PyTree) -> PyTree:
    """Reads the leaves of ``template`` and verifies their checksums; any failure to read them is damage."""
    folder = directory / str(step) / integrity.STATE
    integrity.check_storage(folder, {path.split("/")[0] for path in leaves_by_path(template)})
    args = ocp.args.PyTreeRestore(item=template, restore_args=restore_args, partial_restore=True)
    with quiet_orbax(), warnings.catch_warnings(), ocp.PyTreeCheckpointer() as reader:
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            state = reader.restore(folder, args=args)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            raise DamagedError(f"reading it failed with {type(error).__name__}") from error
    integrity.verify(state, about)
    return state


def _name(entry: list[Any] | None) -> str:
    return "absent" if entry is None else f"{entry[0]}{entry[1]}"


def tell(notify: Callable[[str], None], damaged: dict[int, str], used: int, fate: str) -> None:
    """Reports damaged checkpoints that were skipped, on process 0."""
    if is_main_process():
        notify(f"damaged checkpoint skipped ({integrity.reasons(damaged)}), {fate}; using step {used}")
