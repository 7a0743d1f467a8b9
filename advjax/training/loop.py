"""The training loop: around the replica step, data order, logs, validation, checkpoints, early stop and resumption."""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from advjax.data import Dataset, Source, StreamedBatch, batch_positions, stream
from advjax.runtime.checkpoint import Checkpoints
from advjax.runtime.devices import Devices, fetch, shard
from advjax.runtime.metrics import MetricWriter
from advjax.runtime.preemption import PreemptedError
from advjax.runtime.progress import progress
from advjax.training.step import DeviceData, Method, TrainState, evaluation_variables, init_state, refresh_step
from advjax.types import PyTree, Variables

__all__ = ["Method", "Plan", "TrainState", "evaluation_variables", "fit"]

# More steps in flight gain nothing, and on several CPU devices they can starve a collective of threads until it aborts.
_STEPS_IN_FLIGHT = 2


class Plan(NamedTuple):
    """How long, on what and how often."""

    num_steps: int
    batch_size: int
    log_every: int
    validate_every: int
    """Steps between two validations; every validation is followed by a checkpoint."""
    seed: int
    select: str
    """"last", or "best" by ``select_metric``."""
    select_metric: str
    """The metric of a validation that is better the larger it is."""
    patience: int = 0
    """Validations in a row without a new best ``select_metric`` after which training ends early; 0 for never."""
    num_workers: int = 8
    """Threads that read the images of a ``Source``."""


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
) -> None:
    """Trains a run to its last step, or until patience ends, from where its checkpoints in ``folder`` left off.

    Repeating the call after an interruption anywhere gives the same final state as an undisturbed run: data order and
    randomness are functions of the step. Metrics go to ``folder``, checkpoints below it.

    Args:
      name: of the run, for the progress bar.
      method: how to train.
      plan: how long.
      variables: of the untrained model.
      dataset: training examples: held on the devices, or streamed if they are a ``Source``.
      sources: variables of the models that the transforms use.
      validate: variables to evaluate -> metrics, ``plan.select_metric`` among them if the plan needs
        it; {} where there is nothing to validate on.
      folder: of this run.
      devices: what to run on.
      config: stored in every checkpoint.
      notify: receives a line when a damaged checkpoint is passed over.
      stop_requested: asked after every step, on all processes together.

    Raises:
      PreemptedError: ``stop_requested`` said so; the state has been saved.
    """
    num_classes = dataset.num_classes

    def replicated(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        return devices.parallelize(
            lambda *args, axis_name: function(*args, axis_name=axis_name, method=method, num_classes=num_classes),
            in_sharded=(False, False, isinstance(dataset, Source), True, True),
            out_sharded=False,
            donate=(0,),
        )

    step_fn, refresh_fn = replicated(method.step), replicated(refresh_step)
    state = devices.replicate(init_state(method, variables, jax.random.key(plan.seed)))
    best = plan.select_metric if plan.select == "best" else None
    with Checkpoints(
        f"{folder}/checkpoints", save_every=plan.validate_every, best_metric=best, notify=notify
    ) as checkpoints:
        restored = checkpoints.restore(state)
        state = restored.state if restored else state
        start = restored.step if restored else 0
        patience = {key: restored.metrics[key] for key in _PATIENCE if key in restored.metrics} if restored else {}
        if start >= plan.num_steps or _is_over(patience, plan):
            return
        feed = _feed(dataset, plan, devices)
        sources = devices.replicate(dict(sources))
        pending, window = collections.deque(), []
        with (
            MetricWriter(folder, resume_step=start) as writer,
            progress(f"train {name}", plan.num_steps, initial=start) as bar,
            feed(start, plan.num_steps) as batches,
        ):

            def take_in(limit: int) -> None:
                while len(pending) > limit:
                    step, values = pending.popleft()
                    window.append(fetch(values))
                    mean = {key: float(np.mean([values[key] for values in window])) for key in window[0]}
                    bar.advance(1, **{key: mean[key] for key in ("loss", "accuracy") if key in mean})
                    if step % plan.log_every == 0 or step == plan.num_steps:
                        writer.write(step, "train", mean)
                        window.clear()

            for step, batch in enumerate(batches, start + 1):
                state, values = step_fn(state, sources, *batch)
                pending.append((step, values))
                take_in(_STEPS_IN_FLIGHT)
                is_last = step == plan.num_steps
                scores = {}
                if is_last or step % plan.validate_every == 0:
                    take_in(0)
                    if method.average and method.average.refresh_steps:
                        with feed(0, method.average.refresh_steps) as refreshing:
                            for batch in refreshing:
                                state = jax.block_until_ready(refresh_fn(state, sources, *batch))
                    if scores := validate(evaluation_variables(state)):
                        writer.write(step, "validation", scores)
                    patience = _after(patience, scores, plan)
                    is_last = is_last or _is_over(patience, plan)
                    checkpoints.save(step, state, metrics=scores | patience, config=config, force=is_last)
                if not is_last and stop_requested():
                    take_in(0)
                    checkpoints.save(step, state, metrics=scores | patience, config=config, force=True)
                    raise PreemptedError(f"{name}: stopped at step {step} of {plan.num_steps}, state saved")
                if is_last:
                    break


Fed = tuple[DeviceData, np.ndarray | None, Any]
"""What a replica step takes beside the state: data, positions in them or None, mask."""


def _feed(
    dataset: Dataset | Source, plan: Plan, devices: Devices
) -> Callable[[int, int], contextlib.AbstractContextManager[Iterator[Fed]]]:
    """``(first step, end) ->`` a context with the batches of these steps."""
    rows = devices.local_rows(plan.batch_size)
    order = {"batch_size": plan.batch_size, "seed": plan.seed}
    if isinstance(dataset, Source):

        def put(batch: StreamedBatch) -> StreamedBatch:
            return StreamedBatch(*shard(tuple(batch), devices.mesh))

        @contextlib.contextmanager
        def streamed(first: int, end: int) -> Iterator[Iterator[Fed]]:
            options = {"rows": rows, "num_workers": plan.num_workers, "put": put, **order}
            with stream(dataset, first_step=first, num_steps=end, **options) as batches:
                yield ((DeviceData(batch.images, batch.labels, batch.index), None, batch.mask) for batch in batches)

        return streamed

    data = DeviceData(*devices.replicate((dataset.images, dataset.labels, dataset.index)))

    @contextlib.contextmanager
    def resident(first: int, end: int) -> Iterator[Iterator[Fed]]:
        numbered = (batch_positions(step, num_examples=len(dataset.labels), **order) for step in range(first, end))
        yield ((data, positions[rows], mask[rows]) for positions, mask in numbered)

    return resident


# Kept in every checkpoint, so that an interrupted run ends where an undisturbed one does.
_PATIENCE = ("best_so_far", "validations_since_best")


def _after(patience: Mapping[str, float], scores: Mapping[str, float], plan: Plan) -> dict[str, float]:
    """The patience after one more validation; a NaN is no new best."""
    if not plan.patience:
        return {}
    if scores[plan.select_metric] > patience.get("best_so_far", -math.inf):
        return {"best_so_far": scores[plan.select_metric], "validations_since_best": 0}
    return {**patience, "validations_since_best": patience.get("validations_since_best", 0) + 1}


def _is_over(patience: Mapping[str, float], plan: Plan) -> bool:
    return 0 < plan.patience <= patience.get("validations_since_best", 0)
