"""Training steps of advjax as they are timed: ``training.step.train_step`` on all devices, as ``fit`` runs it."""

from typing import Any

import jax
import numpy as np
import optax

from advjax.attacks import linf, pgd
from advjax.benchmarks.foreign import FlaxResNet9, foreign_variables
from advjax.benchmarks.networks import SMALL, Network, large_model
from advjax.benchmarks.tasks import NUM_CLASSES, PASSES, Call, Output, batch_slices
from advjax.models.adapter import from_functions, from_module
from advjax.runtime.devices import Devices, mesh
from advjax.training.losses import cross_entropy
from advjax.training.objectives import supervised
from advjax.training.optimizers import sgd
from advjax.training.partition import FROZEN, label_params, partitioned, trainable_mask
from advjax.training.step import Method, flattened, init_state, train_step
from advjax.training.transforms import perturb
from advjax.types import PyTree, Variables

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4
ATTACK_STEPS = 7


def prepare_training(
    task: str, network: Network, batch_size: int, *, dtype: str = "float32", foreign: bool = False
) -> Call:
    """Training steps from the network's weights on; each call continues where the last one ended.

    Args:
      task: one of ``tasks.TRAINING``.
      network: what to train.
      batch_size: images per step.
      dtype: what the model computes in.
      foreign: train the network of ``foreign`` with the same weights.
    """
    model, variables = foreign_classifier(network) if foreign else classifier(network)
    attack = pgd(linf(network.epsilon), num_steps=ATTACK_STEPS, step_size=network.epsilon / 4, returns="last")
    transforms = [perturb(attack)] if task == "train-pgd-7" else []
    optimizer, trainable = optimizer_of(variables.params)
    method = Method(model, supervised(model, cross_entropy), transforms, optimizer, trainable, {}, compute_dtype=dtype)
    devices = Devices(mesh(), "shard_map")
    step = devices.parallelize(
        lambda *args, axis_name: train_step(*args, axis_name=axis_name, method=method, num_classes=NUM_CLASSES),
        in_sharded=(False, False, False, True, True),
        out_sharded=False,
        donate=(0,),
    )
    state = devices.replicate(init_state(method, variables, jax.random.key(0)))
    data = devices.replicate(flattened(network.images, network.labels, np.arange(len(network.images))))

    def run() -> Output:
        nonlocal state
        losses = []
        for part in batch_slices(len(network.images), batch_size):
            positions = np.arange(part.start, part.stop, dtype=np.int32)
            state, metrics = step(state, {}, data, positions, np.ones(len(positions), bool))
            losses.append(metrics["loss"])
        jax.block_until_ready(state)
        return Output(passes=PASSES[task] * len(network.images), loss=float(losses[0]))

    return run


def classifier(network: Network) -> tuple[Any, Variables]:
    """The network as a model that can be trained, and its variables."""
    if network.name in SMALL:
        return from_functions({"network": SMALL[network.name]}, {"network": network.variables})
    return large_model(network.name, network.width), network.variables


def foreign_classifier(network: Network) -> tuple[Any, Variables]:
    """The network of ``foreign``, with the weights of ours."""
    return from_module(FlaxResNet9(network.width), ("head_dense",), foreign_variables(network.variables))


def optimizer_of(params: PyTree) -> tuple[optax.GradientTransformation, PyTree]:
    """The optimizer, and which parameters it trains: all but the normalization of the input."""
    transforms = {"trained": sgd(LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY), "frozen": FROZEN}
    is_normalized = any(path[-1].key.startswith("input_") for path, _ in jax.tree.leaves_with_path(params))
    labels = label_params(params, ((r"/input_\w+$", "frozen"),) if is_normalized else (), "trained")
    return partitioned(transforms, labels), trainable_mask(labels, transforms)
