"""The mixup family: training on convex combinations of two examples.

Partners are rows of the same replica: with several devices, an example is mixed with one on its own device. The weight
is drawn from the key of the step and is therefore the same on all devices.

Targets remain distributions. Where two targets are mixed, ``batch.labels`` becomes the class of the example with the
larger weight; training accuracy is measured against it, and later attacks are untargeted with respect to it.
``batch.clean``, if present, is mixed in the same way, so that it still matches the targets.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.attacks.keys import image_keys
from advjax.attacks.model_queries import evaluate
from advjax.models import blocks
from advjax.models.blocks import Classifier, Patched
from advjax.training.augment import batched, gaussian_noise
from advjax.training.losses import Loss
from advjax.training.objectives import Objective, clean_images, noise_rngs, summary
from advjax.training.transforms import Attackable, Transform
from advjax.types import Array, Batch, Key, PyTree, Variables

# Folded into the key to draw the position in manifold mixup, and the box in CutMix; 0 and 1 draw weight and partners.
_PLACE = 2


class Mixing(NamedTuple):
    """How the rows of a batch are mixed."""

    weight: Array
    """float [] or [n], in [0, 1]: weight of the row itself; its partner has the complement."""
    partners: Array
    """int [n]: a permutation of the rows."""


def draw(rng: Key, count: int, alpha: float, per_sample: bool = False) -> Mixing:
    """Draws a weight ~ Beta(alpha, alpha), for all rows or for each, and a random permutation of ``count`` rows."""
    weight_rng, partner_rng = jax.random.fold_in(rng, 0), jax.random.fold_in(rng, 1)
    weight = jax.random.beta(weight_rng, alpha, alpha, (count,) if per_sample else ())
    return Mixing(weight, jax.random.permutation(partner_rng, count))


def mix(values: Array, mixing: Mixing, others: Array | None = None) -> Array:
    """``w values + (1 - w) others[partners]`` for arrays [n, ...]; ``others`` defaults to ``values``."""
    others = values if others is None else others
    weight = jnp.asarray(mixing.weight, values.dtype)
    chex.assert_equal_shape([values, others])
    chex.assert_shape(mixing.partners, values.shape[:1])
    chex.assert_shape(weight, values.shape[:1] if weight.ndim else ())
    weight = weight.reshape(weight.shape + (1,) * (values.ndim - 1)) if weight.ndim else weight
    return weight * values + (1 - weight) * others[mixing.partners]


def mixup(alpha: float = 1.0, per_sample: bool = False) -> Transform:
    """``x = w x_i + (1 - w) x_j`` and ``t = w t_i + (1 - w) t_j``, w ~ Beta(alpha, alpha) (Zhang et al., 2018).

    Args:
      alpha: positive; 1 gives uniform weights, a large value weights close to 1/2.
      per_sample: draw one weight per example instead of one per batch.

    Raises:
      ValueError: ``alpha`` is not positive.
    """
    _check_alpha("mixup", alpha)

    def transform(models: Mapping[str, Attackable], batch: Batch, rng: Key) -> Batch:
        return _blended(batch, draw(rng, len(batch.labels), alpha, per_sample), batch.images)

    return transform


def cutmix(alpha: float = 1.0, per_sample: bool = False) -> Transform:
    """Pastes a box of the partner into every image, and mixes targets by area (CutMix; Yun et al., 2019).

    Height and width of the box are ``sqrt(1 - w)`` times those of the image, with w ~ Beta(alpha, alpha); its center is
    uniform over the image, and what lies outside is cut off. ``t = k t_i + (1 - k) t_j``, where k is the share of the
    pixels that are kept. Adversarial training uses it before the attack (``before_attack`` of a run; Rebuffi et al.,
    2021).

    Args:
      alpha: positive; 1 gives uniform weights.
      per_sample: draw one weight and one box per example instead of one per batch.

    Raises:
      ValueError: ``alpha`` is not positive.
    """
    _check_alpha("cutmix", alpha)

    def transform(models: Mapping[str, Attackable], batch: Batch, rng: Key) -> Batch:
        mixing = draw(rng, len(batch.labels), alpha, per_sample)
        boxes = _boxes(jax.random.fold_in(rng, _PLACE), 1 - mixing.weight, batch.images.shape[1:3])
        kept = 1 - jnp.mean(boxes, axis=(-2, -1))

        def paste(images: Array) -> Array:
            return jnp.where(boxes[..., None], images[mixing.partners], images)

        return _blended_targets(batch, mixing._replace(weight=kept))._replace(
            images=paste(batch.images), clean=None if batch.clean is None else paste(batch.clean)
        )

    return transform


def partial_mix(alpha: float = 1.0) -> Transform:
    """``x = w x'_i + (1 - w) x_j``: adversarial images x' mixed with *clean* partners, targets as in ``mixup``.

    Follows ``perturb``; where the attack changed nothing it equals ``mixup`` (partial PGD of the SJTU mixup report).

    Raises:
      ValueError: ``alpha`` is not positive.
      UserError: (when applied) the images were not attacked.
    """
    _check_alpha("partial_mix", alpha)

    def transform(models: Mapping[str, Attackable], batch: Batch, rng: Key) -> Batch:
        return _blended(batch, draw(rng, len(batch.labels), alpha), clean_images(batch))

    return transform


def fixed_mix(weight: float = 0.6) -> Transform:
    """``x = weight x_i + (1 - weight) x_j`` with the unmixed target and label of x_i.

    This is what the published code of the Dauphine report calls mixup inference and trains with.

    Raises:
      ValueError: ``weight`` is outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"fixed_mix: weight is {weight!r}; give a number from 0 to 1")

    def transform(models: Mapping[str, Attackable], batch: Batch, rng: Key) -> Batch:
        mixing = draw(rng, len(batch.labels), 1.0)._replace(weight=jnp.float32(weight))
        mixed = _blended(batch, mixing, batch.images)
        return mixed._replace(labels=batch.labels, targets=batch.targets)

    return transform


def noisy_twins(
    level: float, model: str, *, reading: str = "std", alpha: float = 8.0, mixed: str = "both", seed: int = 0
) -> Transform:
    """Intelligent mixup (Agarwal et al.): adds to every example its mixture with a noisy copy of itself.

    With ``x1 = clip(x + noise)`` and t1 the class that ``model`` predicts for x1, the examples ``w x + (1 - w) x1``
    with targets ``w t + (1 - w) t1``, w ~ Beta(alpha, alpha) for each image, are appended to the batch, which doubles
    in size. Noise and weight are functions of the image's index and ``seed`` only, so with a fixed model and no prior
    augmentation, the mixtures form a fixed second dataset that is seen once per epoch.

    Args:
      level: size of the noise, for pixels in [0, 1].
      model: a run that is already trained; "self" predicts anew in every step.
      reading: how to read ``level``, as the "std" or the "variance" of a pixel.
      alpha: positive.
      mixed: "both" images and targets; for ablations only "images" (the copy keeps the true label, so only noise is
        added) or only "targets".
      seed: seed of noise and weights.

    Raises:
      ValueError: ``reading`` or ``mixed`` has another value, ``alpha`` is not positive, or ``level`` is negative.
    """
    if reading not in ("std", "variance"):
        raise ValueError(f"noisy_twins: reading must be 'std' or 'variance', got {reading!r}")
    if mixed not in ("both", "images", "targets"):
        raise ValueError(f"noisy_twins: mixed must be 'both', 'images' or 'targets', got {mixed!r}")
    if not level >= 0:
        raise ValueError(f"noisy_twins: level is {level!r}; give a number, 0 or more")
    _check_alpha("noisy_twins", alpha)
    noise = batched(gaussian_noise(level if reading == "std" else level**0.5))

    def transform(models: Mapping[str, Attackable], batch: Batch, rng: Key) -> Batch:
        keys = [image_keys(jax.random.fold_in(jax.random.key(seed), i), batch.index) for i in (0, 1)]
        weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys[0])
        mixing = Mixing(weight, jnp.arange(len(batch.labels)))
        noisy = noise(batch.images, keys[1])
        logits = evaluate(models[model], noisy, image_keys(rng, batch.index))
        prediction = jax.nn.one_hot(jnp.argmax(logits, axis=-1), batch.targets.shape[-1])
        twins = batch
        if mixed != "targets":
            twins = twins._replace(images=mix(batch.images, mixing, noisy))
        if mixed != "images":
            twins = twins._replace(targets=mix(batch.targets, mixing, prediction))
        return jax.tree.map(lambda own, twin: jnp.concatenate([own, twin]), batch, twins)

    return transform


def manifold_mixup(
    model: Classifier | Patched,
    loss: Loss,
    *,
    alpha: float = 2.0,
    points: Sequence[str] | None = None,
    noise: bool = True,
) -> Objective:
    """Mixup of hidden features at a random position (Verma et al., 2019).

    Each step draws one position, one weight ~ Beta(alpha, alpha), and one permutation; at "images" this is ``mixup``.
    The position is traced, so there is a single program for all positions.

    Args:
      model: a classifier; called in train mode, with BatchNorm synchronized over the replicas.
      loss: loss of one example, ``(logits, target distribution) -> scalar``.
      alpha: positive.
      points: "images" and names of blocks whose output is mixed; default: the model's ``mixing_points``.
      noise: as in ``supervised``.

    Raises:
      ValueError: ``alpha`` is not positive, ``points`` is empty, or the model lacks one of them.
    """
    _check_alpha("manifold_mixup", alpha)
    places = tuple(model.mixing_points if points is None else points)
    known = ("images", *model.block_names)
    if not places or not set(places) <= set(known):
        raise ValueError(f"manifold_mixup: points is {places!r}; give one or more of {', '.join(known)}")

    def objective(params: PyTree, model_state: PyTree, batch: Batch, rng: Key, axis_name: str | None):
        mixing = draw(rng, len(batch.labels), alpha)
        place = jax.random.randint(jax.random.fold_in(rng, _PLACE), (), 0, len(places))

        def between(name: str, features: Array) -> Array:
            if name not in places:
                return features
            # A weight of 1 leaves the features at every other position unchanged.
            weight = jnp.where(place == places.index(name), mixing.weight, 1.0)
            return mix(features, mixing._replace(weight=weight))

        replica: nn.Module = model.clone(axis_name=axis_name)
        images = between("images", batch.images)
        logits, new_state = blocks.apply(
            replica,
            Variables(params, model_state),
            images,
            train=True,
            rngs=noise_rngs(rng, batch, noise),
            between=between,
        )
        return summary({"": logits}, _blended_targets(batch, mixing), loss, axis_name, new_state)

    return objective


def _boxes(rng: Key, areas: Array, shape: Sequence[int]) -> Array:
    """bool [..., h, w]: boxes of these shares of the area (float [...]), cut at the border."""

    def within(rng: Key, size: int) -> Array:
        """bool [..., size]: the interval along one axis."""
        half = jnp.sqrt(areas)[..., None] * size / 2
        center = size * jax.random.uniform(rng, (*areas.shape, 1))
        pixels = jnp.arange(size) + 0.5
        return (center - half <= pixels) & (pixels < center + half)

    rows, columns = (within(jax.random.fold_in(rng, axis), size) for axis, size in enumerate(shape))
    return rows[..., :, None] & columns[..., None, :]


def _blended(batch: Batch, mixing: Mixing, partner_images: Array) -> Batch:
    return _blended_targets(batch, mixing)._replace(
        images=mix(batch.images, mixing, partner_images),
        clean=None if batch.clean is None else mix(batch.clean, mixing),
    )


def _blended_targets(batch: Batch, mixing: Mixing) -> Batch:
    heavier = jnp.where(mixing.weight >= 0.5, batch.labels, batch.labels[mixing.partners])
    return batch._replace(targets=mix(batch.targets, mixing), labels=heavier)


def _check_alpha(name: str, alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(f"{name}: alpha is {alpha!r}; give a number above 0")
