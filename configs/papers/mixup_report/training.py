"""Adversarial training as the mixup report (001) has it in its code: the network is attacked in train mode."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.attacks import cross_entropy
from advjax.attacks.base import image_keys
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
"""What is learnt from attacked images: the objective, and what happens to them before it."""

# Folded into the key of the objective; ``mixing`` and noise layers have other numbers.
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
    """``loss`` on images that ``attack.noisy_center_pgd`` has made of the batch, mixed after the attack or not at all.

    As in the code of the report, the attack asks the network in train mode: BatchNorm normalises by the attacked batch,
    and its running averages move with each of the ``num_steps`` questions, before they move with the learning pass.
    True labels and cross-entropy guide the attack, whatever ``loss`` is.

    Args:
      model: the network to train.
      loss: about one example, ``(logits, target distribution) -> scalar``.
      method: "vanilla"; "mixup" (alpha 1) or "manifold" (alpha 2) of attacked images; "partial": attacked images mixed
        with clean ones (alpha 1).
      radius: and the next five are those of the attack.
      num_steps: gradient steps.
      step_size: length of one.
      version: of the clip of noisy images.
      mean: of the space that is attacked in.
      std: of this space.
      batch_norm: "train_update" as in the report; "train_keep": the attack leaves the running averages as they were;
        "eval": the attack is made on the network in inference mode.

    Raises:
      ValueError: an unknown method or ``batch_norm``, or a mistake in the rules of the attack.
    """
    if method not in METHODS or batch_norm not in BATCH_NORMS or num_steps < 1:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}, batch_norm one of {', '.join(BATCH_NORMS)} and num_steps "
            f"at least 1; got {method!r}, {batch_norm!r} and {num_steps!r}"
        )
    rules = ball(radius, step_size, version, mean, std)
    build, transforms = METHODS[method]
    learned = build(model, loss)

    def objective(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        variables = jax.lax.stop_gradient(Variables(params, model_state))
        keys = image_keys(jax.random.fold_in(rng, _ATTACK), batch.index)
        replica = model.clone(axis_name=axis_name)
        found, moved = attacked(replica, variables, batch, keys, rules, num_steps, batch_norm != "eval")
        made = batch._replace(images=found, clean=batch.images)
        for number, transform in enumerate(transforms):
            made = transform({}, made, jax.random.fold_in(jax.random.fold_in(rng, _MIXING), number))
        made = jax.lax.stop_gradient(made)
        return learned(params, moved if batch_norm == "train_update" else model_state, made, rng, axis_name)

    return objective


def attacked(
    model: nn.Module, variables: Variables, batch: Batch, keys: Key, rules: Ball, num_steps: int, train: bool
) -> tuple[Array, PyTree]:
    """The last points of the searches, and the model state after all their questions.

    Args:
      model: of the replica.
      variables: of the model.
      batch: images and labels.
      keys: one for each image.
      rules: of the search.
      num_steps: gradient steps.
      train: whether the model is asked in train mode.
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
        gradients, model_state = jax.grad(total, has_aux=True)(points, model_state)
        return (rules.moved(points, centers, gradients), model_state), None

    return jax.lax.scan(step, (images, variables.model_state), None, length=num_steps)[0]
