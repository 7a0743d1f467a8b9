"""The training loop: data order, logging, validation, checkpoints, early stopping, and resumption.

Data order and randomness are functions of the step, so an interrupted run that is resumed ends in the same state as an
uninterrupted one.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from advjax.data import Dataset, Source
from advjax.runtime.checkpoint import Checkpoints, Restored, restore_variables
from advjax.runtime.devices import Devices, Parallel, fetch, is_main_process
from advjax.runtime.metrics import MetricWriter, OnMetrics
from advjax.runtime.preemption import PreemptedError
from advjax.runtime.progress import progress
from advjax.training.calls import calls, run_steps
from advjax.training.feed import Feed, make_feed
from advjax.training.step import Method, TrainState, evaluation_variables, init_state, refresh_step
from advjax.training.train_log import TrainLog, Window
from advjax.types import PyTree, UserError, Variables

__all__ = ["Method", "Plan", "TrainState", "evaluation_variables", "fit"]


class Plan(NamedTuple):
    """Length, batch size, and intervals of a run."""

    num_steps: int
    batch_size: int
    log_every: int
    validate_every: int
    """Steps between two validations; every validation is followed by a checkpoint."""
    seed: int
    select: str
    """"last", or "best" by ``select_metric``."""
    select_metric: str
    """The validation metric to maximize."""
    patience: int = 0
    """Stop after this many consecutive validations without a new best ``select_metric``; 0 for never."""
    num_workers: int = 8
    """Number of threads that read the images of a ``Source``."""
    extra_rows: int = 0
    """Number of extra examples in every batch."""
    steps_per_call: int = 1
    """Number of steps per call of the compiled program, where neither a record nor a validation comes before."""


class _Run(NamedTuple):
    """What ``fit`` was asked to do, compiled."""

    name: str
    plan: Plan
    config: dict[str, Any]
    step: Callable[..., tuple[TrainState, Any]]
    refresh: Callable[..., TrainState]
    num_refreshed: int
    feed: Feed
    sources: Mapping[str, Variables]
    validate: Callable[[Variables], dict[str, float]]
    stop_requested: Callable[[], bool]
    on_metrics: OnMetrics | None


def fit(
    name: str,
    method: Method,
    plan: Plan,
    variables: Variables,
    dataset: Dataset | Source,
    sources: Mapping[str, Variables],
    validate: Callable[[Variables], dict[str, float]],
    *,
    folder: str,
    devices: Devices,
    config: dict[str, Any],
    notify: Callable[[str], None],
    stop_requested: Callable[[], bool] = lambda: False,
    on_metrics: OnMetrics | None = None,
    extra: Dataset | None = None,
) -> None:
    """Trains a run to its last step, or until patience is exhausted, resuming from the checkpoints in ``folder``.

    Repeating the call after any interruption gives the same final state as an uninterrupted run. Metrics are written to
    ``folder``, checkpoints below it. A finished run is left alone; only its weights need to be intact.

    Args:
      name: name of the run, for the progress bar and messages.
      method: how to train.
      plan: how long.
      variables: of the untrained model.
      dataset: training examples; a ``Dataset`` is kept on the devices, a ``Source`` is streamed.
      sources: variables of the models that the transforms use.
      validate: variables to evaluate -> metrics, including ``plan.select_metric`` if the plan needs it; {} if there is
        nothing to validate on.
      folder: folder of this run.
      devices: what to run on.
      config: stored in every checkpoint.
      notify: receives a line if a damaged checkpoint is skipped, and when a run resumes.
      stop_requested: called after every call of the program, on all processes together.
      on_metrics: called with every record of the metrics, on the main process.
      extra: more training examples, of which every batch has ``plan.extra_rows``.

    Raises:
      PreemptedError: ``stop_requested`` returned true; the state has been saved.
      UserError: the loss or the weights became NaN or infinite; the last good checkpoint is kept.
    """
    if _is_finished(f"{folder}/checkpoints", plan):
        return
    state = devices.replicate(init_state(method, variables, jax.random.key(plan.seed)))
    best = plan.select_metric if plan.select == "best" else None
    with Checkpoints(
        f"{folder}/checkpoints", save_every=plan.validate_every, best_metric=best, notify=notify
    ) as checkpoints:
        restored = checkpoints.restore(state)
        is_streamed = isinstance(dataset, Source)
        step, refresh = step_programs(method, dataset.num_classes, devices, is_streamed=is_streamed)
        order = {"batch_size": plan.batch_size, "seed": plan.seed, "num_workers": plan.num_workers}
        mixed = {} if extra is None else {"extra": extra, "extra_rows": plan.extra_rows}
        run = _Run(
            name,
            plan,
            config,
            step,
            refresh,
            method.average.refresh_steps if method.average else 0,
            make_feed(dataset, **order, **mixed, devices=devices),
            devices.replicate(dict(sources)),
            validate,
            stop_requested,
            on_metrics,
        )
        _train(run, state, restored, checkpoints, folder, notify)


def _train(
    run: _Run,
    state: TrainState,
    restored: Restored | None,
    checkpoints: Checkpoints,
    folder: str,
    notify: Callable[[str], None],
) -> None:
    plan, start, metrics = run.plan, 0, {}
    if restored:
        state, start, metrics = restored.state, restored.step, restored.metrics
        if is_main_process():
            notify(f"{run.name}: resuming at step {start} of {plan.num_steps}")
    patience = {key: metrics[key] for key in _PATIENCE if key in metrics}
    with (
        MetricWriter(folder, resume_step=start, notify=notify, on_metrics=run.on_metrics) as writer,
        progress(f"train {run.name}", plan.num_steps, initial=start) as bar,
        run.feed(start, plan.num_steps) as batches,
    ):
        log = TrainLog(
            writer,
            bar,
            Window.from_metrics(metrics),
            log_every=plan.log_every,
            num_steps=plan.num_steps,
            failure=lambda loss, step: _diverged(run.name, f"the training loss is {loss}", step, checkpoints),
        )
        step, intervals = start, (plan.log_every, plan.validate_every)
        for count, arguments in calls(batches, start, plan.num_steps, plan.steps_per_call, *intervals):
            state, values = run.step(state, run.sources, *arguments)
            step += count
            log.add(step, values)
            is_last, scores = step == plan.num_steps, {}
            if is_last or step % plan.validate_every == 0:
                log.flush()
                state = _refreshed(run, state)
                _check_finite(run.name, state, step, checkpoints)
                if scores := run.validate(evaluation_variables(state)):
                    writer.write(step, "validation", scores)
                patience = _after(patience, scores, plan)
                is_last = is_last or _is_over(patience, plan)
                metrics = scores | patience | log.window.to_metrics()
                checkpoints.save(step, state, metrics=metrics, config=run.config, force=is_last)
            if is_last:
                return
            if run.stop_requested():
                log.flush()
                _check_finite(run.name, state, step, checkpoints)
                metrics = scores | patience | log.window.to_metrics()
                checkpoints.save(step, state, metrics=metrics, config=run.config, force=True)
                raise PreemptedError(f"{run.name}: stopped at step {step} of {plan.num_steps}, state saved")


def step_programs(
    method: Method, num_classes: int, devices: Devices, *, is_streamed: bool
) -> tuple[Parallel, Parallel]:
    """One or several training steps, and the step that refreshes batch statistics, on all devices; not compiled yet."""

    def replicated(function: Callable[..., PyTree]) -> Parallel:
        options = {"method": method, "num_classes": num_classes}
        return devices.parallelize(
            lambda *args, axis_name: function(*args, axis_name=axis_name, **options),
            in_sharded=(False, False, is_streamed, True, True),
            out_sharded=False,
            donate=(0,),
        )

    return replicated(run_steps), replicated(refresh_step)


def _refreshed(run: _Run, state: TrainState) -> TrainState:
    """The state with re-estimated batch statistics of the averaged model."""
    if run.num_refreshed:
        with run.feed(0, run.num_refreshed) as batches:
            for batch in batches:
                state = jax.block_until_ready(run.refresh(state, run.sources, *batch))
    return state


def _is_finished(directory: str, plan: Plan) -> bool:
    """Whether the newest checkpoint ends the run and its weights are intact; the optimizer state is not read."""
    try:
        found = restore_variables(directory, notify=lambda line: None)
    except UserError:
        # No checkpoint, or only damaged ones, about which ``Checkpoints.restore`` says more.
        return False
    return found.step >= plan.num_steps or _is_over(found.metrics, plan)


def _check_finite(name: str, state: TrainState, step: int, checkpoints: Checkpoints) -> None:
    """Raises before weights that are NaN or infinite are validated or saved."""
    if not fetch(_all_finite((state.params, state.model_state, state.average))):
        raise _diverged(name, "the weights are NaN or infinite", step, checkpoints)


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def _diverged(name: str, what: str, step: int, checkpoints: Checkpoints) -> UserError:
    saved = checkpoints.latest_step()
    kept = "nothing was saved before" if saved is None else f"the checkpoint of step {saved} is kept"
    return UserError(f"{name}: {what} at step {step}; {kept}. Lower the learning rate, or clip the gradients")


# Stored in every checkpoint, so that an interrupted run ends where an uninterrupted one does.
_PATIENCE = ("best_so_far", "validations_since_best")


def _after(patience: Mapping[str, float], scores: Mapping[str, float], plan: Plan) -> dict[str, float]:
    """The state of early stopping after another validation; NaN is never a new best."""
    if not plan.patience:
        return {}
    if scores[plan.select_metric] > patience.get("best_so_far", -math.inf):
        return {"best_so_far": scores[plan.select_metric], "validations_since_best": 0}
    return {**patience, "validations_since_best": patience.get("validations_since_best", 0) + 1}


def _is_over(patience: Mapping[str, float], plan: Plan) -> bool:
    return 0 < plan.patience <= patience.get("validations_since_best", 0)
