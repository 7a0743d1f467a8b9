"""Checkpoints that are exact and verified, and that never block the next run.

On disk, below the checkpoint folder of a run::

    <step>/state/   every array of the training state (Orbax)
    <step>/about/   config, metrics, and dtype, shape, and SHA-256 of every array

A checkpoint is damaged if any part of it is missing or differs from what was saved. ``Checkpoints.restore`` skips it,
reports it, and renames it to ``<step>.damaged``, so that the step can be saved again.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from advjax.runtime import checkpoint_integrity as integrity
from advjax.runtime.checkpoint_reading import (
    Restored,
    first_whole,
    load_state,
    restore_variables,
    tell,
)
from advjax.runtime.devices import is_main_process, sync
from advjax.runtime.quiet_orbax import quiet_orbax
from advjax.types import PyTree, UserError

__all__ = ["Checkpoints", "Restored", "restore_variables"]

_DAMAGED, _UNFINISHED = ".damaged", ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save on exit.

    Saving is asynchronous: the arrays are copied before ``save`` returns, so that the caller may donate them, and are
    written in the background. All processes of a run must call every method together.

    The ``keep_latest`` newest checkpoints are kept, and the one with the highest ``best_metric`` (the newer one if
    equal; a checkpoint without it, or where it is NaN, is never best).

    Args:
      directory: a folder (local or in a bucket), created if necessary.
      save_every: number of steps between two saves.
      best_metric: name in ``metrics`` of the number to maximize, or None.
      keep_latest: how many of the newest checkpoints to keep; with two, damage to one costs one interval.
      notify: receives one line if a damaged checkpoint is skipped; called on process 0 only.

    Raises:
      UserError: ``save_every`` or ``keep_latest`` is not positive.
    """

    def __init__(
        self,
        directory: str,
        *,
        save_every: int,
        best_metric: str | None = None,
        keep_latest: int = 2,
        notify: Callable[[str], None] = print,
    ) -> None:
        for name, value in (("save_every", save_every), ("keep_latest", keep_latest)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        self._directory = epath.Path(directory).absolute()
        self._save_every = save_every
        self._best_metric = best_metric
        self._keep_latest = keep_latest
        self._notify = notify
        self._resources = contextlib.ExitStack()
        self._scores: dict[int, float] = {}
        self._policies: list[checkpoint_managers.PreservationPolicy] = []

    def __enter__(self) -> "Checkpoints":
        self._scores = integrity.scores(self._directory, self._best_metric)
        self._preserve(self._scores)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(self._policies), cleanup_tmp_directories=True
        )
        self._resources.enter_context(quiet_orbax())
        self._manager = self._resources.enter_context(ocp.CheckpointManager(self._directory, options=options))
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            with self._write_errors():
                self._resources.close()
        finally:
            # Every save has ended, so these have failed, and take the space that the next one needs.
            if is_main_process():
                for unfinished in self._directory.glob(f"*{_UNFINISHED}*"):
                    unfinished.rmtree()

    def latest_step(self) -> int | None:
        """The newest step that is saved or being saved; only ``restore`` knows whether it is damaged."""
        return self._manager.latest_step()

    def is_due(self, step: int) -> bool:
        """Whether ``save`` would save at this step without ``force``."""
        return step > 0 and step % self._save_every == 0 and step not in self._manager.all_steps()

    def save(
        self, step: int, state: PyTree, *, metrics: dict[str, float], config: dict[str, Any], force: bool = False
    ) -> bool:
        """Starts saving ``state`` (arrays only) if it ``is_due``; with ``force``, at any step not yet saved.

        ``config`` must be plain JSON data. Use ``force`` for the last step of a run.

        Returns:
          Whether it is saved.

        Raises:
          UserError: this or the previous checkpoint cannot be written, for example because the disk is full.
        """
        if step in self._manager.all_steps() or not (force or self.is_due(step)):
            return False
        metrics = {name: float(value) for name, value in metrics.items()}
        score = integrity.score(metrics, self._best_metric)
        if score is not None:
            self._scores[step] = score
        self._preserve({at: self._scores[at] for at in (*self._manager.all_steps(), step) if at in self._scores})
        items = {
            integrity.STATE: ocp.args.StandardSave(state),
            integrity.ABOUT: ocp.args.JsonSave(integrity.describe(step, state, metrics, config)),
        }
        with self._write_errors():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        return True

    def restore(self, template: PyTree, *, which: str = "latest") -> Restored | None:
        """The latest or best checkpoint, verified; None if there is none.

        Args:
          template: the structure of the state, with arrays or ``jax.ShapeDtypeStruct`` as leaves, whose shardings are
            restored as well.
          which: ``"latest"`` or ``"best"``.

        Raises:
          UserError: every checkpoint is damaged; no checkpoint has the metric that ``"best"`` needs; or the arrays are
            not those of ``template``, that is, the run was started with another configuration.
        """
        with self._write_errors():
            self._manager.wait_until_finished()
        load = lambda step, about: load_state(self._directory, step, about, template)  # noqa: E731
        restored, damaged = first_whole(self._directory, which, self._best_metric, load)
        if damaged and restored:
            self._set_aside(damaged)
            targets = ", ".join(f"{self._directory / str(step)}{_DAMAGED}" for step in damaged)
            tell(self._notify, damaged, restored.step, f"renamed to {targets}")
        return restored

    def _preserve(self, scores: dict[int, float]) -> None:
        """Sets the policies that Orbax follows after the next save.

        ``BestN`` would read the metrics from files, any of which may be damaged.
        """
        best = integrity.best(scores)
        kept = [] if best is None else [checkpoint_managers.preservation_policy.CustomSteps([best])]
        self._policies[:] = [checkpoint_managers.LatestN(self._keep_latest), *kept]

    def _set_aside(self, damaged: dict[int, str]) -> None:
        if is_main_process():
            for step in damaged:
                target = self._directory / f"{step}{_DAMAGED}"
                if target.exists():
                    target.rmtree()
                (self._directory / str(step)).rename(target)
        sync("advjax_checkpoint_set_aside")
        for step in damaged:
            self._scores.pop(step, None)
        self._manager.reload()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            # TensorStore raises a ValueError with the status of the operating system.
            if not isinstance(error, OSError) and "os_error_code" not in str(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"a checkpoint in {self._directory} cannot be written ({reason}): free some disk space or give another "
                "folder; the checkpoints written before are intact, so the same command continues from them"
            ) from error
