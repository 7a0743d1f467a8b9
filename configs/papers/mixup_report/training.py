"""Adversarial training as in the code of the mixup report (001), which attacks the network in train mode."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.attacks import cross_entropy
from advjax.attacks.keys import image_keys
from advjax.cpu.fast_on_cpu import fast_on_cpu
from advjax.models import blocks
from advjax.models.blocks import Classifier, Patched
from advjax.training import mixing, objectives
from advjax.training.losses import Loss
from advjax.training.objectives import Objective
from advjax.training.transforms import Transform
from advjax.types import Array, Batch, Key, PyTree, Variables
from configs.papers.mixup_report.attack import Ball, ball

BATCH_NORMS = ("train_update", "train_keep", "eval")
METHODS: dict[str, tuple[Callable[[Classifier | Patched, Loss], Objective], tuple[Transform, ...]]] = {
    "vanilla": (objectives.supervised, ()),
    "mixup": (objectives.supervised, (mixing.mixup(alpha=1.0),)),
    "manifold": (lambda model, loss: mixing.manifold_mixup(model, loss, alpha=2.0), ()),
    "partial": (objectives.supervised, (mixing.partial_mix(alpha=1.0),)),
}
"""Method -> its objective, and the transforms applied to attacked images before it."""

# Folded into the key of the objective; distinct from the constants of ``mixing`` and of noise layers.
_ATTACK, _MIXING = 0x61747461, 0x6D697869


def adversarial(
    model: Classifier | Patched,
    loss: Loss,
    *,
    method: str,
    radius: float,
    num_steps: int,
    step_size: float,
    version: str = "v2",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    batch_norm: str = "train_update",
) -> Objective:
    """``loss`` on the batch attacked by ``attack.noisy_center_pgd``, with optional mixing after the attack.

    As in the code of the report, the attack evaluates the network in train mode: BatchNorm normalizes by the statistics
    of the attacked batch, and each of the ``num_steps`` attack steps updates its running averages before the training
    step does.  The attack maximizes the cross-entropy of the true labels, whatever ``loss`` is.

    Args:
      model: the network to train.
      loss: loss of one example, ``(logits, target distribution) -> scalar``.
      method: "vanilla"; "mixup" (alpha 1) or "manifold" (alpha 2) of attacked images; "partial": attacked images mixed
        with clean ones (alpha 1).
      radius: radius of the attack's ball, in normalized units.
      num_steps: number of gradient steps.
      step_size: length of one step, in normalized units.
      version: how noisy images are clipped, see ``attack.VERSIONS``.
      mean: mean of the normalization, per channel or for all.
      std: standard deviation of the normalization.
      batch_norm: "train_update", as in the report; "train_keep": the attack does not change the running averages;
        "eval": the attack runs on the network in inference mode.

    Raises:
      ValueError: an unknown method or ``batch_norm``, or an invalid attack parameter.
    """
    _check(method, batch_norm, num_steps)
    rules = ball(radius, step_size, version, mean, std)
    build, transforms = METHODS[method]
    learned = build(model, loss)

    def objective(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        variables = jax.lax.stop_gradient(Variables(params, model_state))
        keys = image_keys(jax.random.fold_in(rng, _ATTACK), batch.index)
        replica = model.clone(axis_name=axis_name)
        found, moved = attacked(replica, variables, batch, keys, rules, num_steps, batch_norm != "eval")
        made = batch._replace(images=found, clean=batch.images)
        made = jax.lax.stop_gradient(_transformed(made, transforms, jax.random.fold_in(rng, _MIXING)))
        return learned(params, moved if batch_norm == "train_update" else model_state, made, rng, axis_name)

    return objective


def _check(method: str, batch_norm: str, num_steps: int) -> None:
    if method not in METHODS or batch_norm not in BATCH_NORMS or num_steps < 1:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}, batch_norm one of {', '.join(BATCH_NORMS)} and num_steps "
            f"at least 1; got {method!r}, {batch_norm!r} and {num_steps!r}"
        )


def _transformed(batch: Batch, transforms: Sequence[Transform], rng: Key) -> Batch:
    for number, transform in enumerate(transforms):
        batch = transform({}, batch, jax.random.fold_in(rng, number))
    return batch


def attacked(
    model: nn.Module, variables: Variables, batch: Batch, keys: Key, rules: Ball, num_steps: int, train: bool
) -> tuple[Array, PyTree]:
    """The final points of the attack, and the model state after all its steps.

    Args:
      model: the model of the replica.
      variables: its variables.
      batch: images and labels.
      keys: one key per image.
      rules: ball and step of the attack.
      num_steps: number of gradient steps.
      train: whether the model is evaluated in train mode.
    """
    images = jax.lax.stop_gradient(batch.images)
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], images.dtype, -1, 1))(keys)
    centers = rules.center(images, noise)

    def total(points: Array, model_state: PyTree) -> tuple[Array, PyTree]:
        current = Variables(variables.params, model_state)
        if train:
            logits, model_state = blocks.apply(model, current, points, train=True)
        else:
            logits = blocks.apply(model, current, points)
        return jnp.sum(jax.vmap(cross_entropy)(logits, batch.labels) * batch.mask), model_state

    def step(carry: tuple[Array, PyTree], _: None):
        points, model_state = carry
        gradients, model_state = jax.grad(fast_on_cpu(total), has_aux=True)(points, model_state)
        return (rules.moved(points, centers, gradients), model_state), None

    return jax.lax.scan(step, (images, variables.model_state), None, length=num_steps)[0]
