"""The training loop: one pure replica step, and around it data order, logs, validation, checkpoints and resumption."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from advjax import sharding
from advjax.checkpoint import Checkpoints
from advjax.data import Dataset, batch_positions
from advjax.metrics import MetricWriter, progress
from advjax.models.blocks import logits_fn
from advjax.preemption import PreemptedError
from advjax.sharding import Devices
from advjax.training.objectives import Metrics, Objective
from advjax.training.optimizers import ema_update
from advjax.training.transforms import Transform
from advjax.types import Array, Batch, Key, PyTree, Variables

# More steps in flight gain nothing, and on several CPU devices they can starve a collective of threads until it aborts.
_STEPS_IN_FLIGHT = 2


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training: arrays only."""

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    rng: Key
    average: PyTree
    """Moving average of the parameters that learn, {} without averaging."""


class Method(NamedTuple):
    """How a model is trained."""

    model: nn.Module
    objective: Objective
    transforms: Sequence[Transform]
    optimizer: optax.GradientTransformation
    trainable: PyTree
    """Tree of bools like the parameters."""
    models: Mapping[str, nn.Module]
    """Other models that the transforms may attack, by run name."""
    average_decay: float
    """Decay of the moving average of the parameters; 0 for none."""


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


class DeviceData(NamedTuple):
    """A data set on the devices, images as they are stored."""

    images: Array
    labels: Array
    index: Array


def init_state(method: Method, variables: Variables, rng: Key) -> TrainState:
    """The state before the first step."""
    average = _trainable_part(variables.params, method.trainable) if method.average_decay else {}
    opt_state = method.optimizer.init(variables.params)
    return TrainState(jnp.int32(0), variables.params, variables.model_state, opt_state, rng, average)


def deployed(state: TrainState | Mapping[str, PyTree]) -> Variables:
    """The variables to evaluate: averaged parameters where there is an average."""
    fields = state if isinstance(state, Mapping) else vars(state)
    params = {**flatten_dict(fields["params"]), **flatten_dict(fields["average"])}
    return Variables(unflatten_dict(params), fields["model_state"])


def train_step(
    state: TrainState,
    sources: Mapping[str, Variables],
    data: DeviceData,
    positions: Array,
    mask: Array,
    *,
    axis_name: str | None,
    method: Method,
    num_classes: int,
) -> tuple[TrainState, Metrics]:
    """One replica's part of one update.

    Args:
      state: replicated.
      sources: variables of the models in ``method.models``, replicated.
      data: the whole training set, replicated.
      positions: int32 [rows]: this replica's examples.
      mask: bool [rows]: False for filler.
      axis_name: of the replicas, None for one.
      method: how to train.
      num_classes: of the targets.

    Returns:
      The next state and the metrics of the whole batch, both replicated.
    """
    rng = jax.random.fold_in(state.rng, state.step)
    models = {"self": logits_fn(method.model, Variables(state.params, state.model_state))}
    models |= {name: logits_fn(model, sources[name]) for name, model in method.models.items()}
    batch = _gather(data, positions, mask, num_classes)
    for number, transform in enumerate(method.transforms):
        batch = transform(models, batch, jax.random.fold_in(rng, number))
    batch = jax.lax.stop_gradient(batch)

    params = sharding.varying(state.params, axis_name)
    gradient_fn = jax.value_and_grad(method.objective, has_aux=True)
    (_, (model_state, metrics)), gradients = gradient_fn(params, state.model_state, batch, rng, axis_name)
    gradients, metrics = sharding.mean_over((gradients, metrics), axis_name)
    updates, opt_state = method.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if method.average_decay:
        learned = _trainable_part(params, method.trainable)
        average = ema_update(average, learned, method.average_decay, state.step)
    return TrainState(state.step + 1, params, model_state, opt_state, state.rng, average), metrics


def fit(
    name: str,
    method: Method,
    plan: Plan,
    variables: Variables,
    dataset: Dataset,
    sources: Mapping[str, Variables],
    validate: Callable[[Variables], dict[str, float]],
    *,
    folder: str,
    devices: Devices,
    config: dict[str, Any],
    notify: Callable[[str], None],
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Trains a run to its last step, from where its checkpoints in ``folder`` left off.

    Repeating the call after an interruption anywhere gives the same final state as an undisturbed run: data order and
    randomness are functions of the step.  Metrics go to ``folder``, checkpoints below it.

    Args:
      name: of the run, for the progress bar.
      method: how to train.
      plan: how long.
      variables: of the untrained model.
      dataset: training examples.
      sources: variables of the models that the transforms attack.
      validate: variables to evaluate -> metrics, ``plan.select_metric`` among them.
      folder: of this run.
      devices: what to run on.
      config: stored in every checkpoint.
      notify: receives a line when a damaged checkpoint is passed over.
      stop_requested: asked after every step, on all processes together.

    Raises:
      PreemptedError: ``stop_requested`` said so; the state has been saved.
    """
    rows = devices.local_rows(plan.batch_size)
    step_fn = devices.parallelize(
        lambda *args, axis_name: train_step(*args, axis_name=axis_name, method=method, num_classes=dataset.num_classes),
        in_sharded=(False, False, False, True, True),
        out_sharded=False,
        donate=(0,),
    )
    state = devices.replicate(init_state(method, variables, jax.random.key(plan.seed)))
    best = plan.select_metric if plan.select == "best" else None
    with Checkpoints(
        f"{folder}/checkpoints", save_every=plan.validate_every, best_metric=best, notify=notify
    ) as checkpoints:
        restored = checkpoints.restore(state)
        state = restored.state if restored else state
        start = restored.step if restored else 0
        if start >= plan.num_steps:
            return
        data = DeviceData(*devices.replicate((dataset.images, dataset.labels, dataset.index)))
        sources = devices.replicate(dict(sources))
        pending, window = collections.deque(), []
        with (
            MetricWriter(folder, resume_step=start) as writer,
            progress(f"train {name}", plan.num_steps, initial=start) as bar,
        ):

            def take_in(limit: int) -> None:
                while len(pending) > limit:
                    step, values = pending.popleft()
                    window.append(sharding.fetch(values))
                    mean = {key: float(np.mean([values[key] for values in window])) for key in window[0]}
                    bar.advance(1, **{key: mean[key] for key in ("loss", "accuracy") if key in mean})
                    if step % plan.log_every == 0 or step == plan.num_steps:
                        writer.write(step, "train", mean)
                        window.clear()

            for step in range(start + 1, plan.num_steps + 1):
                positions, mask = batch_positions(
                    step - 1, num_examples=len(dataset.labels), batch_size=plan.batch_size, seed=plan.seed
                )
                state, values = step_fn(state, sources, data, positions[rows], mask[rows])
                pending.append((step, values))
                take_in(_STEPS_IN_FLIGHT)
                is_last = step == plan.num_steps
                scores = {}
                if is_last or step % plan.validate_every == 0:
                    take_in(0)
                    scores = validate(deployed(state))
                    writer.write(step, "validation", scores)
                    checkpoints.save(step, state, metrics=scores, config=config, force=is_last)
                if not is_last and stop_requested():
                    take_in(0)
                    checkpoints.save(step, state, metrics=scores, config=config, force=True)
                    raise PreemptedError(f"{name}: stopped at step {step} of {plan.num_steps}, state saved")


def _gather(data: DeviceData, positions: Array, mask: Array, num_classes: int) -> Batch:
    images = data.images[positions]
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    labels = data.labels[positions]
    return Batch(images, labels, jax.nn.one_hot(labels, num_classes), data.index[positions], mask)


def _trainable_part(params: PyTree, trainable: PyTree) -> PyTree:
    flags = flatten_dict(trainable)
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if flags[path]})
