"""Training objectives.

An objective is ``(params, model_state, batch, rng, axis_name) -> (loss, (model_state, metrics))`` for one replica's
rows of a batch. The mean of the losses and metrics over the replicas is that of the whole batch, excluding rows with
``mask`` False. Objectives are differentiated with respect to the parameters; the batch is constant.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.models import blocks
from advjax.models.blocks import Patched
from advjax.runtime import collectives
from advjax.training.losses import Loss
from advjax.types import Array, Batch, Key, PyTree, UserError, Variables

Metrics: TypeAlias = dict[str, Array]
Objective: TypeAlias = Callable[[PyTree, PyTree, Batch, Key, str | None], tuple[Array, tuple[PyTree, Metrics]]]

# Folded into the key of an objective for the noise layers; small numbers are used by ``mixing``.
_NOISE = 0x6E6F6973


def supervised(model: nn.Module, loss: Loss, *, on: str = "images", noise: bool = True) -> Objective:
    """Mean loss against ``batch.targets``.

    Args:
      model: called in train mode, with BatchNorm synchronized over the replicas.
      loss: loss of one example, ``(logits, target distribution) -> scalar``.
      on: "images", or "both" for ``loss(images) + loss(clean)`` in one concatenated batch (so BatchNorm sees clean and
        adversarial images together); "both" needs a transform that attacks the images.
      noise: enable the model's noise layers in training (random self-ensemble, Liu et al., 2018); irrelevant for a
        model without noise layers.

    Raises:
      ValueError: ``on`` has another value.
    """
    if on not in ("images", "both"):
        raise ValueError(f"on must be 'images' or 'both', got {on!r}")

    def objective(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        variables, rngs = Variables(params, model_state), noise_rngs(rng, batch, noise)
        if on == "both":
            clean_logits, logits, new_state = on_pairs(model, variables, batch, axis_name, rngs)
            return summary({"clean_": clean_logits, "": logits}, batch, loss, axis_name, new_state)
        replica = model.clone(axis_name=axis_name)
        logits, new_state = blocks.apply(replica, variables, batch.images, train=True, rngs=rngs)
        return summary({"": logits}, batch, loss, axis_name, new_state)

    return objective


def fixers(
    model: Patched,
    loss: Loss,
    *,
    distillation: float = 1.0,
    target: str = "natural",
    tensor: str = "sum",
    norm: str = "rms",
) -> Objective:
    """Classification of clean and adversarial images plus feature distillation from the base (003, eq. 2-4).

    ``loss(x) + loss(x') + distillation * sum_i [d(u_i(x), h_i^0(x)) + d(u_i(x'), h_i^0(target))]`` for clean images x
    and adversarial images x', where u_i are the features at fixer i, h_i^0 those of the base at the same position, and
    d is a distance. The last three arguments choose what the paper leaves open about this term. The base runs in
    inference mode; make only the fixers' parameters trainable.

    Args:
      model: the patched classifier.
      loss: loss of one example, ``(logits, target distribution) -> scalar``.
      distillation: weight of the distillation term (lambda in the paper), 0 or 1.
      target: "natural": adversarial features are pulled toward those of the clean image, as the paper's text says;
        "printed": toward those of the adversarial image, as printed in its eq. 4.
      tensor: u_i, where h_i is the input of fixer i and phi_i its correction. "sum": h_i + delta phi_i(h_i), equal to
        the base's features if the correction is 0, which is the stated aim; "output": its ReLU, as in the paper's
        Table 7, which ignores corrections of inactive features; "before": h_i as defined in the paper's eq. 1, where
        h_1 does not depend on the fixers, and no h_i on the last fixer.
      norm: "rms": d is the root mean square over all entries of a feature map; "l2": the Euclidean norm, larger by the
        square root of their number.

    Raises:
      ValueError: ``target``, ``tensor``, or ``norm`` has another value, or the model is not patched.
    """
    if not isinstance(model, Patched):
        raise ValueError("fixers needs a patched model, such as 'fixers' with a 'base'")
    if target not in ("natural", "printed"):
        raise ValueError(f"target must be 'natural' or 'printed', got {target!r}")
    if tensor not in ("sum", "output", "before"):
        raise ValueError(f"tensor must be 'sum', 'output' or 'before', got {tensor!r}")
    if norm not in ("rms", "l2"):
        raise ValueError(f"norm must be 'rms' or 'l2', got {norm!r}")
    measure = {"rms": jnp.mean, "l2": jnp.sum}[norm]

    def distance(features: Array, wanted: Array) -> Array:
        squares = measure((features - wanted) ** 2, axis=(1, 2, 3))
        # The square root has no finite gradient at 0, which is the value for fixers without a correction.
        return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)

    def objective(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        variables, clean = Variables(params, model_state), clean_images(batch)

        def features_of(images: Array, patched: bool) -> Any:
            return blocks.apply(model, variables, images, method="with_features", patched=patched, tensor=tensor)

        clean_logits, clean_features = features_of(clean, True)
        logits, features = features_of(batch.images, True)
        natural = features_of(clean, False)[1]
        attacked_target = natural if target == "natural" else features_of(batch.images, False)[1]
        drift = jnp.float32(0)
        for name in natural:
            clean_drift = distance(clean_features[name], jax.lax.stop_gradient(natural[name]))
            drift += clean_drift + distance(features[name], jax.lax.stop_gradient(attacked_target[name]))
        total, (new_state, metrics) = summary({"clean_": clean_logits, "": logits}, batch, loss, axis_name, model_state)
        drift = masked_mean(drift, batch.mask, axis_name)
        total = total + distillation * drift
        return total, (new_state, {**metrics, "loss": total, "distillation_distance": drift})

    return objective


def clean_images(batch: Batch) -> Array:
    """The images before they were attacked.

    Raises:
      UserError: they were not attacked.
    """
    if batch.clean is None:
        raise UserError("this objective needs clean and adversarial images: add a transform that attacks the batch")
    return batch.clean


def noise_rngs(rng: Key, batch: Batch, noise: bool) -> dict[str, Key] | None:
    """RNG streams that enable a model's noise layers; replicas have different examples and so draw different noise."""
    return {"noise": jax.random.fold_in(jax.random.fold_in(rng, _NOISE), batch.index[0])} if noise else None


def on_pairs(
    model: nn.Module, variables: Variables, batch: Batch, axis_name: str | None, rngs: dict[str, Key] | None
) -> tuple[Array, Array, PyTree]:
    """``(logits of the clean images, of the adversarial ones, model_state)`` in train mode, as one batch."""
    replica = model.clone(axis_name=axis_name)
    together = jnp.concatenate([clean_images(batch), batch.images])
    logits, model_state = blocks.apply(replica, variables, together, train=True, rngs=rngs)
    clean_logits, logits = jnp.split(logits, 2)
    return clean_logits, logits, model_state


def summary(
    logits: Mapping[str, Array], batch: Batch, loss: Loss, axis_name: str | None, model_state: PyTree
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """Sum of the mean losses of several kinds of images, and the accuracy of each under a prefixed name."""
    total, metrics = jnp.float32(0), {}
    for prefix, values in logits.items():
        total += masked_mean(jax.vmap(loss)(values, batch.targets), batch.mask, axis_name)
        metrics[f"{prefix}accuracy"] = accuracy(values, batch, axis_name)
    return total, (model_state, {"loss": total, **metrics})


def regularized(
    values: Array,
    divergence: Array,
    clean_logits: Array,
    logits: Array,
    batch: Batch,
    axis_name: str | None,
    model_state: PyTree,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """Result of an objective with a divergence between clean and adversarial predictions, such as TRADES and MART.

    Args:
      values: [n], the objective of each example.
      divergence: [n], its divergence term, for the metrics.
      clean_logits: [n, classes], of the clean images.
      logits: [n, classes], of the adversarial images.
      batch: the batch.
      axis_name: of the replicas.
      model_state: after the forward pass.
    """
    total = masked_mean(values, batch.mask, axis_name)
    metrics = {
        "loss": total,
        "divergence": masked_mean(divergence, batch.mask, axis_name),
        "clean_accuracy": accuracy(clean_logits, batch, axis_name),
        "accuracy": accuracy(logits, batch, axis_name),
    }
    return total, (model_state, metrics)


def check_beta(name: str, beta: float) -> None:
    """Raises a ValueError for a negative weight."""
    if not beta >= 0:
        raise ValueError(f"{name}: beta is {beta!r}; give a number, 0 or more")


def accuracy(logits: Array, batch: Batch, axis_name: str | None) -> Array:
    """Fraction of the examples whose most likely class is ``batch.labels``."""
    correct = (jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32)
    return masked_mean(correct, batch.mask, axis_name)


def masked_mean(values: Array, mask: Array, axis_name: str | None) -> Array:
    """This replica's contribution: its mean over the replicas is the mean over all unmasked rows; 0 if there are none.

    A microbatch of the last batch of an epoch may consist of padding alone.
    """
    count = collectives.mean_over(jnp.sum(mask.astype(values.dtype)), axis_name)
    return jnp.sum(values * mask) / jnp.where(count > 0, count, 1)
