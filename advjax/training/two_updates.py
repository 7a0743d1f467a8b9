"""A training step with two updates: one on the clean batch, then one on adversarial images of the same batch.

This is adversarial training as in the published code of the Dauphine report, where the two losses are never added.
"""

from collections.abc import Mapping

import jax

from advjax.attacks import Attack
from advjax.training.objectives import Metrics
from advjax.training.step import (
    DeviceData,
    Method,
    ReplicaStep,
    TrainState,
    advance,
    gather,
    in_compute_dtype,
    prepare,
    update,
)
from advjax.training.transforms import adversarial, attackable
from advjax.types import Array, AttackFn, Batch, Key, UserError, Variables


def two_updates(attack: AttackFn, reuse_gradient: bool = False) -> ReplicaStep:
    """A step for ``Method.step``: update on the batch after ``method.transforms``, attack it, update on the result.

    The optimizer, and with it its schedule, takes two steps per training step. Metrics of the first update are prefixed
    with "clean_".

    Args:
      attack: applied to the model after the first update, in inference mode.
      reuse_gradient: FGSM at no extra cost: one step of length epsilon along the image gradient of the first update,
        hence at the *old* weights in train mode; only the threat model of ``attack`` is used.

    Raises:
      UserError: ``reuse_gradient`` is set and the attack has no finite threat model.
    """
    threat_model = attack.threat_model if isinstance(attack, Attack) else None
    if reuse_gradient and (threat_model is None or not threat_model.is_bounded):
        raise UserError("two_updates: reuse_gradient needs an attack with a finite epsilon, such as fgsm")

    def leap(image: Array, gradient: Array) -> Array:
        assert threat_model is not None
        return threat_model.project(image, image + threat_model.epsilon * threat_model.norm.ascent(gradient))

    def attacked_images(state: TrainState, method: Method, batch: Batch, gradients: Array | None, rng: Key) -> Array:
        if gradients is not None:
            return jax.lax.stop_gradient(jax.vmap(leap)(batch.images, gradients))
        updated = attackable(method.model, Variables(state.params, state.model_state), batch.images.shape[1:])
        return adversarial(attack, updated, batch, rng, method.microbatches)

    @in_compute_dtype
    def step(
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
        batch, rng = prepare(state, sources, gather(data, positions, mask, num_classes), method)
        first = update(state, batch, jax.random.fold_in(rng, 0), axis_name, method, of_images=reuse_gradient)
        state, clean_metrics, gradients = first
        images = attacked_images(state, method, batch, gradients, jax.random.fold_in(rng, 1))
        attacked = batch._replace(images=images, clean=batch.images)
        state, metrics, _ = update(state, attacked, jax.random.fold_in(rng, 2), axis_name, method)
        return advance(state, method), {f"clean_{name}": clean_metrics[name] for name in clean_metrics} | metrics

    return step
