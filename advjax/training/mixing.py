"""The mixup family: training on weighted means of two examples.

Partners are rows of the same replica: over several devices an example is mixed with one that stands on its own device.
The weight is drawn from the key of the step and so is the same on all of them.

Targets stay distributions. Where two targets are mixed, ``batch.labels`` becomes the class of the heavier example: it
is what training accuracy is counted against, and what a later attack leaves. A transform that has ``batch.clean``
before it mixes it in the same way, so that it still belongs to the targets.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.attacks.model_queries import evaluate
from advjax.models import blocks
from advjax.models.blocks import Classifier, Patched
from advjax.training.augment import batched, gaussian_noise
from advjax.training.losses import Loss
from advjax.training.objectives import Objective, clean_images, noise_rngs, summary
from advjax.training.transforms import Network, Transform, example_keys
from advjax.types import Array, Batch, Key, PyTree, Variables

# Folded into the key of manifold mixup for the place; 0 and 1 are the weight and the partners.
_PLACE = 2


class Mixing(NamedTuple):
    """How the rows of a batch are mixed."""

    weight: Array
    """float [] or [n], in [0, 1]: of the row itself; its partner has the rest."""
    partners: Array
    """int [n]: a permutation of the rows."""


def draw(rng: Key, count: int, alpha: float, per_sample: bool = False) -> Mixing:
    """A weight ~ Beta(alpha, alpha), one for all rows or one for each, and a random permutation of ``count`` rows."""
    weight_rng, partner_rng = jax.random.fold_in(rng, 0), jax.random.fold_in(rng, 1)
    weight = jax.random.beta(weight_rng, alpha, alpha, (count,) if per_sample else ())
    return Mixing(weight, jax.random.permutation(partner_rng, count))


def mix(values: Array, mixing: Mixing, others: Array | None = None) -> Array:
    """``w values + (1 - w) others[partners]`` for arrays [n, ...]; ``others`` are the values themselves by default."""
    weight = jnp.asarray(mixing.weight, values.dtype)
    weight = weight.reshape(weight.shape + (1,) * (values.ndim - 1)) if weight.ndim else weight
    others = values if others is None else others
    return weight * values + (1 - weight) * others[mixing.partners]


def mixup(alpha: float = 1.0, per_sample: bool = False) -> Transform:
    """``x = w x_i + (1 - w) x_j`` and ``t = w t_i + (1 - w) t_j``, w ~ Beta(alpha, alpha) (Zhang et al., 2018).

    Args:
      alpha: above 0; 1 is the uniform distribution, a large value mixes halves.
      per_sample: a weight for each example instead of one for the batch.

    Raises:
      ValueError: ``alpha`` is not above 0.
    """
    _check_alpha("mixup", alpha)

    def transform(models: Mapping[str, Network], batch: Batch, rng: Key) -> Batch:
        return _blended(batch, draw(rng, len(batch.labels), alpha, per_sample), batch.images)

    return transform


def partial_mix(alpha: float = 1.0) -> Transform:
    """``x = w x'_i + (1 - w) x_j``: adversarial images x' mixed with *clean* partners, targets as in ``mixup``.

    It follows ``perturb``; where the attack changed nothing it is ``mixup`` (partial PGD of the SJTU mixup report).

    Raises:
      ValueError: ``alpha`` is not above 0, or (when applied) nobody attacked the images.
    """
    _check_alpha("partial_mix", alpha)

    def transform(models: Mapping[str, Network], batch: Batch, rng: Key) -> Batch:
        return _blended(batch, draw(rng, len(batch.labels), alpha), clean_images(batch))

    return transform


def fixed_mix(weight: float = 0.6) -> Transform:
    """``x = weight x_i + (1 - weight) x_j`` with the target and label of x_i, unmixed.

    What the published code of the Dauphine report trains under the name of mixup inference.

    Raises:
      ValueError: ``weight`` is outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"fixed_mix: weight is {weight!r}; give a number from 0 to 1")

    def transform(models: Mapping[str, Network], batch: Batch, rng: Key) -> Batch:
        mixing = draw(rng, len(batch.labels), 1.0)._replace(weight=jnp.float32(weight))
        mixed = _blended(batch, mixing, batch.images)
        return mixed._replace(labels=batch.labels, targets=batch.targets)

    return transform


def noisy_twins(
    level: float, model: str, *, reading: str = "std", alpha: float = 8.0, mixed: str = "both", seed: int = 0
) -> Transform:
    """Intelligent mixup (Agarwal et al.): beside every example, its mixture with a noisy twin of itself.

    With ``x1 = clip(x + noise)`` and t1 the class that ``model`` gives to x1, the batch gets the examples
    ``w x + (1 - w) x1`` with targets ``w t + (1 - w) t1``, w ~ Beta(alpha, alpha) for each image, and is twice as long:
    originals first. Noise and weight are functions of the image's index and ``seed`` alone, so with a model that
    stays as it is, and no augmentation before, the mixtures are a fixed second data set, all of it seen once an epoch.

    Args:
      level: size of the noise, pixels in [0, 1].
      model: a run that is trained already; "self" labels anew in every step.
      reading: what ``level`` is, the "std" of a pixel or its "variance".
      alpha: above 0.
      mixed: "both" images and targets; for ablations only "images" (the twin keeps the true label: noise alone) or only
        "targets".
      seed: of noise and weights.

    Raises:
      ValueError: another value for ``reading`` or ``mixed``, ``alpha`` not above 0, or a negative level.
    """
    if reading not in ("std", "variance"):
        raise ValueError(f"noisy_twins: reading must be 'std' or 'variance', got {reading!r}")
    if mixed not in ("both", "images", "targets"):
        raise ValueError(f"noisy_twins: mixed must be 'both', 'images' or 'targets', got {mixed!r}")
    if not level >= 0:
        raise ValueError(f"noisy_twins: level is {level!r}; give a number, 0 or more")
    _check_alpha("noisy_twins", alpha)
    noise = batched(gaussian_noise(level if reading == "std" else level**0.5))

    def transform(models: Mapping[str, Network], batch: Batch, rng: Key) -> Batch:
        keys = [example_keys(jax.random.fold_in(jax.random.key(seed), i), batch.index) for i in (0, 1)]
        weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys[0])
        mixing = Mixing(weight, jnp.arange(len(batch.labels)))
        noisy = noise(batch.images, keys[1])
        logits = evaluate(models[model], noisy, example_keys(rng, batch.index))
        answer = jax.nn.one_hot(jnp.argmax(logits, axis=-1), batch.targets.shape[-1])
        twins = batch
        if mixed != "targets":
            twins = twins._replace(images=mix(batch.images, mixing, noisy))
        if mixed != "images":
            twins = twins._replace(targets=mix(batch.targets, mixing, answer))
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
    """Mixup of hidden features at a place drawn anew in every step (Verma et al., 2019).

    One place, one weight ~ Beta(alpha, alpha) and one permutation for each step; at "images" it is ``mixup``. The
    place is traced: all of them are one program.

    Args:
      model: a classifier; called in train mode, BatchNorm synchronised over the replicas.
      loss: about one example, ``(logits, target distribution) -> scalar``.
      alpha: above 0.
      points: "images" and names of blocks, whose output is mixed; by default the model's ``mixing_points``.
      noise: as in ``supervised``.

    Raises:
      ValueError: ``alpha`` is not above 0, no points, or a point that the model does not have.
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
            # A weight of 1 leaves the features of every other place as they are.
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
