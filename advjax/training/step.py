"""One training step: the state it updates (``TrainState``), how (``Method``), and the replica functions that do it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from advjax.cpu.fast_on_cpu import fast_on_cpu
from advjax.models.compute_dtype import computing_in
from advjax.models.remat import rematerializing
from advjax.training.averaging import Averaging
from advjax.training.gradients import gradients
from advjax.training.objectives import Metrics, Objective
from advjax.training.transforms import Transform, attackable
from advjax.types import Array, Batch, Key, PyTree, Variables

ReplicaStep: TypeAlias = Callable[..., tuple["TrainState", Metrics]]
"""A function with the arguments of ``train_step``."""
P = ParamSpec("P")
T = TypeVar("T")


def in_compute_dtype(step: Callable[P, T]) -> Callable[P, T]:
    """A replica step whose models, attacks on them included, compute in the ``compute_dtype`` of its ``method``."""

    @functools.wraps(step)
    def computed(*args: P.args, **kwargs: P.kwargs) -> T:
        method = kwargs["method"]
        assert isinstance(method, Method)
        with computing_in(method.compute_dtype):
            return step(*args, **kwargs)

    return computed


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training; arrays only."""

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    rng: Key
    average: PyTree
    """Averages of the trainable ``params`` and of ``model_state``, under these names; {} without averaging."""


class DeviceData(flax.struct.PyTreeNode):
    """Examples on the devices: a whole dataset, or the rows of a batch."""

    images: Array
    """As stored, [n, h, w, c]; or flattened, [n, h * w * c], if there is an ``image_shape``."""
    labels: Array
    index: Array
    image_shape: tuple[int, ...] | None = flax.struct.field(pytree_node=False, default=None)
    """(h, w, c) of images that are flattened."""


def flattened(images: Any, labels: Any, index: Any) -> DeviceData:
    """A dataset whose images are flattened, to be shaped after they have been gathered into a batch.

    A TPU wants the batch in another layout than the dataset, and would change that of the whole dataset at every step.
    """
    return DeviceData(images.reshape(len(images), -1), labels, index, tuple(images.shape[1:]))


@in_compute_dtype
def train_step(
    state: TrainState,
    sources: Mapping[str, Variables],
    data: DeviceData,
    positions: Array | None,
    mask: Array,
    *,
    axis_name: str | None,
    method: "Method",
    num_classes: int,
) -> tuple[TrainState, Metrics]:
    """One replica's part of one training step.

    Args:
      state: replicated.
      sources: variables of the models in ``method.models``, replicated.
      data: the whole training set, replicated; or this replica's rows of the batch if ``positions`` is None.
      positions: int32 [rows], positions of this replica's examples in the training set, or None.
      mask: bool [rows], False for padding.
      axis_name: mesh axis of the replicas; None for a single one.
      method: how to train.
      num_classes: number of classes.

    Returns:
      The next state and the metrics of the whole batch, both replicated.
    """
    batch, rng = prepare(state, sources, gather(data, positions, mask, num_classes), method)
    state, metrics, _ = update(state, batch, rng, axis_name, method)
    return advance(state, method), metrics


class Method(NamedTuple):
    """How a model is trained."""

    model: nn.Module
    objective: Objective
    transforms: Sequence[Transform]
    optimizer: optax.GradientTransformation
    trainable: PyTree
    """Tree of bools with the structure of the parameters."""
    models: Mapping[str, nn.Module]
    """Other models that the transforms may use, by run name."""
    average: Averaging | None = None
    """Averaging of the parameters for evaluation, if any."""
    step: ReplicaStep = train_step
    """Processes one batch; other than ``train_step`` for methods with several updates per step."""
    compute_dtype: str = "float32"
    """What models compute in during training, one of ``COMPUTE_DTYPES``; variables, logits and losses are float32."""
    remat: bool = False
    """Whether the objective's gradient computes the inside of the model's blocks again instead of keeping it."""
    microbatches: int = 1
    """Number of parts of a replica's rows whose gradients are computed one after the other, see ``gradients``."""


def init_state(method: Method, variables: Variables, rng: Key) -> TrainState:
    """The initial state."""
    average = {} if method.average is None else _averaged(variables.params, variables.model_state, method.trainable)
    opt_state = method.optimizer.init(variables.params)
    return TrainState(jnp.int32(0), variables.params, variables.model_state, opt_state, rng, average)


def evaluation_variables(state: TrainState | Mapping[str, PyTree]) -> Variables:
    """The variables to evaluate: the averages where there are any, otherwise the latest values."""
    fields = state if isinstance(state, Mapping) else vars(state)
    average = fields["average"]
    params = {**flatten_dict(fields["params"]), **flatten_dict(average.get("params", {}))}
    # A field without arrays may be missing from a restored checkpoint.
    return Variables(unflatten_dict(params), average.get("model_state") or fields["model_state"])


def gather(data: DeviceData, positions: Array | None, mask: Array, num_classes: int) -> Batch:
    """The batch before any transform: the examples at ``positions``, or all of ``data`` if it is None."""
    if positions is not None:
        data = jax.tree.map(lambda array: array[positions], data)
    images = data.images if data.image_shape is None else data.images.reshape(len(mask), *data.image_shape)
    chex.assert_shape(images, (len(mask), None, None, None))
    chex.assert_shape([data.labels, data.index, mask], (len(mask),))
    chex.assert_type([data.labels, data.index, mask], [int, int, bool])
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    return Batch(images, data.labels, jax.nn.one_hot(data.labels, num_classes), data.index, mask)


def prepare(
    state: TrainState,
    sources: Mapping[str, Variables],
    batch: Batch,
    method: Method,
    variables: Variables | None = None,
) -> tuple[Batch, Key]:
    """Applies all transforms to a batch; returns it, constant under differentiation, and the key for the objective.

    In the transforms, "self" is the model with ``variables``, by default those of ``state``.
    """
    rng = jax.random.fold_in(state.rng, state.step)
    own, image_shape = variables or Variables(state.params, state.model_state), batch.images.shape[1:]
    models = {"self": attackable(method.model, own, image_shape)}
    models |= {name: attackable(model, sources[name], image_shape) for name, model in method.models.items()}
    for number, transform in enumerate(method.transforms):
        batch = transform(models, batch, jax.random.fold_in(rng, number))
    return jax.lax.stop_gradient(batch), jax.random.fold_in(rng, len(method.transforms))


def update(
    state: TrainState, batch: Batch, rng: Key, axis_name: str | None, method: Method, *, of_images: bool = False
) -> tuple[TrainState, Metrics, Array | None]:
    """One optimizer step on parameters, model state, and optimizer state; ``step`` and the average do not change.

    Returns:
      The state, the metrics of the whole batch, and, with ``of_images``, the gradient with respect to ``batch.images``
      at the old parameters.
    """
    chex.assert_equal_shape_prefix([batch.images, batch.labels, batch.targets, batch.index, batch.mask], 1)
    chex.assert_rank([batch.images, batch.targets], [4, 2])
    chex.assert_type([batch.images, batch.targets], float)
    variables = Variables(state.params, state.model_state)
    with rematerializing(method.remat):
        found = gradients(
            method.objective,
            variables,
            batch,
            rng,
            axis_name,
            trainable=method.trainable,
            microbatches=method.microbatches,
            of_images=of_images,
        )
    # Only some optimizers use the loss.
    optimizer = optax.with_extra_args_support(method.optimizer)
    updates, opt_state = optimizer.update(found.params, state.opt_state, state.params, value=found.loss)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(params=params, model_state=found.model_state, opt_state=opt_state)
    return state, found.metrics, found.images


def advance(state: TrainState, method: Method) -> TrainState:
    """Ends a step: updates the average and increments ``step``."""
    average = state.average
    if method.average is not None:
        new = _averaged(state.params, state.model_state, method.trainable)
        average = method.average.update(average, new, state.step)
    return state.replace(average=average, step=state.step + 1)


@in_compute_dtype
def refresh_step(
    state: TrainState,
    sources: Mapping[str, Variables],
    data: DeviceData,
    positions: Array,
    mask: Array,
    *,
    axis_name: str | None,
    method: Method,
    num_classes: int,
) -> TrainState:
    """Updates the batch statistics of the averaged model as a training step would, and nothing else."""
    variables = evaluation_variables(state)
    batch, rng = prepare(state, sources, gather(data, positions, mask, num_classes), method, variables)

    def objective(params: PyTree, model_state: PyTree):
        return method.objective(params, model_state, batch, rng, axis_name)

    _, (model_state, _) = fast_on_cpu(objective)(variables.params, variables.model_state)
    return state.replace(average={**state.average, "model_state": model_state})


def _averaged(params: PyTree, model_state: PyTree, trainable: PyTree) -> PyTree:
    flags = flatten_dict(trainable)
    learned = {path: leaf for path, leaf in flatten_dict(params).items() if flags[path]}
    return {"params": unflatten_dict(learned), "model_state": model_state}
