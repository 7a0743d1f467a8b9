"""Optimizers and schedules: optax, with the conventions of the papers reproduced here.

A schedule is ``step -> value``, with the first update at step 0. A learning rate or momentum may be a number or a
schedule. Optimizer states are trees of arrays (float32 moments and hyperparameters, int32 counts), so checkpoints are
complete. To freeze parameters, use these optimizers inside ``partition.partitioned``.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.typing import ArrayLike

from advjax.types import Array, PyTree, UserError

ScalarOrSchedule = float | optax.Schedule


def one_cycle(
    peak_learning_rate: float,
    num_steps: int,
    *,
    initial_divisor: float = 25.0,
    final_divisor: float = 1e4,
    warmup_fraction: float = 0.3,
    momentum_high: float = 0.95,
    momentum_low: float = 0.85,
) -> tuple[optax.Schedule, optax.Schedule]:
    """One cycle of learning rate and, mirrored, momentum (Smith and Topin, 2018).

    Half a cosine takes the rate from peak / ``initial_divisor`` at step 0 to the peak at step
    ``warmup_fraction num_steps - 1``, another takes it to peak / ``final_divisor`` at the last step,
    ``num_steps - 1``; momentum goes high, low, high at the same steps. After the last step both are constant. The
    steps are those of PyTorch's ``OneCycleLR``; the final rate is relative to the PEAK, whereas PyTorch and
    ``optax.cosine_onecycle_schedule`` divide the initial rate.

    Returns:
      ``(learning_rate, momentum)`` schedules, for ``sgd``.

    Raises:
      UserError: ``num_steps`` is below 2, a divisor is not positive, or the fraction is outside [0, 1].
    """
    if num_steps < 2:
        raise UserError(f"one_cycle: num_steps is {num_steps!r}; a cycle needs 2 or more")
    if not 0 <= warmup_fraction <= 1:
        raise UserError(f"one_cycle: warmup_fraction is {warmup_fraction!r}; give a number from 0 to 1")
    if not (initial_divisor > 0 and final_divisor > 0):
        raise UserError(f"one_cycle: divisors are {initial_divisor!r} and {final_divisor!r}; both must be positive")
    last = num_steps - 1
    top = min(max(warmup_fraction * num_steps - 1, 0), last)

    def through(start: float, middle: float, end: float) -> optax.Schedule:
        def schedule(step: ArrayLike) -> Array:
            # 0 at the start of the cycle, 1 at its top, 2 at its end.
            phase = jnp.interp(step, jnp.array([0.0, top, last]), jnp.array([0.0, 1.0, 2.0]))
            weight = (1 + jnp.cos(jnp.pi * phase)) / 2
            return (1 - weight) * middle + weight * jnp.where(phase < 1, start, end)

        return schedule

    learning_rate = through(
        peak_learning_rate / initial_divisor, peak_learning_rate, peak_learning_rate / final_divisor
    )
    return learning_rate, through(momentum_high, momentum_low, momentum_high)


def step_decay(learning_rate: float, boundaries: Sequence[int], factor: float) -> optax.Schedule:
    """``learning_rate factor^k``, where k is the number of ``boundaries`` at or before the step.

    Raises:
      UserError: the boundaries are not positive and strictly increasing.
    """
    if any(second <= first for first, second in zip((0, *boundaries), boundaries, strict=False)):
        raise UserError(f"step_decay: boundaries are {tuple(boundaries)!r}; give steps above 0, strictly increasing")
    return optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(boundaries, factor))


def cosine(learning_rate: float, num_steps: int, warmup: int = 0) -> optax.Schedule:
    """Cosine decay from ``learning_rate`` to 0 at ``num_steps`` (Loshchilov and Hutter, 2017, without restarts).

    With ``warmup``, the rate first rises linearly from 0 at step 0 to ``learning_rate`` at step ``warmup``.

    Raises:
      UserError: unless 0 <= ``warmup`` < ``num_steps``.
    """
    if not 0 <= warmup < num_steps:
        raise UserError(f"cosine: warmup is {warmup!r} and num_steps {num_steps!r}; 0 <= warmup < num_steps is needed")
    if warmup == 0:
        return optax.cosine_decay_schedule(learning_rate, num_steps)
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, num_steps)


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule = 0.0,
    *,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent in PyTorch's convention.

    ``g = gradient + weight_decay p``, ``v <- m v + g``, ``p <- p - lr v`` (with ``nesterov``: ``p <- p - lr (m v +
    g)``), initially v = 0. Weight decay is applied before the momentum, the learning rate after it, so lr and m may
    change from step to step. With momentum 0, no velocity is stored.

    Raises:
      UserError: momentum is outside [0, 1), weight decay is negative, or ``nesterov`` is set without momentum.
    """
    _check_weight_decay("sgd", weight_decay)
    if not callable(momentum) and not 0 <= momentum < 1:
        raise UserError(f"sgd: momentum is {momentum!r}; give a number from 0 to below 1, or a schedule")
    if nesterov and momentum == 0:
        raise UserError("sgd: nesterov needs a momentum above 0")
    return optax.chain(
        *_decay(weight_decay), *_velocity(momentum, nesterov), optax.scale_by_learning_rate(learning_rate)
    )


def adam(
    learning_rate: ScalarOrSchedule, *, beta1: float = 0.9, beta2: float = 0.999, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015); ``weight_decay p`` is added to the gradient, as in PyTorch, and rescaled with it.

    Raises:
      UserError: weight decay is negative.
    """
    _check_weight_decay("adam", weight_decay)
    return optax.chain(*_decay(weight_decay), optax.adam(learning_rate, b1=beta1, b2=beta2))


def adamw(
    learning_rate: ScalarOrSchedule, *, beta1: float = 0.9, beta2: float = 0.999, weight_decay: float = 0.01
) -> optax.GradientTransformation:
    """Adam with decoupled decay: ``p <- p - lr (adam direction + weight_decay p)`` (Loshchilov and Hutter, 2019).

    Raises:
      UserError: weight decay is negative.
    """
    _check_weight_decay("adamw", weight_decay)
    return optax.adamw(learning_rate, b1=beta1, b2=beta2, weight_decay=weight_decay)


def with_plateaus(
    transform: optax.GradientTransformation, steps_per_epoch: int, *, factor: float = 0.1, patience: int = 10
) -> optax.GradientTransformation:
    """``transform`` with its updates scaled down by ``factor`` whenever the training loss has plateaued.

    An epoch is an improvement if its mean loss is below ``1 - 1e-4`` times the best so far; after ``patience`` epochs
    without one, the factor is applied again. The defaults are those of Keras's ``ReduceLROnPlateau``, whose threshold
    is absolute. Updates need the loss of the batch as ``value``.

    Raises:
      UserError: the factor is outside (0, 1), or patience is below 1.
    """
    if not 0 < factor < 1 or patience < 1:
        raise UserError(
            f"reduce_on_plateau: factor is {factor!r}, patience {patience!r}; 0 < factor < 1 <= patience is needed"
        )
    plateaus = optax.contrib.reduce_on_plateau(factor, patience, accumulation_size=steps_per_epoch)
    return optax.chain(transform, plateaus)


def with_clipping(transform: optax.GradientTransformation, max_norm: float) -> optax.GradientTransformation:
    """``transform`` on gradients clipped to a global L2 norm of at most ``max_norm``.

    Clipping precedes anything ``transform`` adds, such as weight decay. Inside ``partition.partitioned``, the norm is
    that of the gradients of one label.

    Raises:
      UserError: ``max_norm`` is not positive.
    """
    if not max_norm > 0:
        raise UserError(f"with_clipping: max_norm is {max_norm!r}; give a number above 0")
    return optax.chain(optax.clip_by_global_norm(max_norm), transform)


def ema_update(average: PyTree, params: PyTree, decay: float, step: Array | int) -> PyTree:
    """Exponential moving average of the weights: ``d average + (1 - d) params``, leaf by leaf.

    ``d = min(decay, (1 + step) / (10 + step))``, with step 0 for the first update, so that early averages are not
    biased toward the initialization.
    """
    weight = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, average, params)


def _velocity(momentum: ScalarOrSchedule, nesterov: bool) -> tuple[optax.GradientTransformation, ...]:
    if callable(momentum):
        # Explicit, because the dtype cannot be inferred if a label of a partition has no parameters.
        scheduled = optax.inject_hyperparams(optax.trace, hyperparam_dtype=jnp.float32)
        return (scheduled(decay=momentum, nesterov=nesterov),)
    return (optax.trace(momentum, nesterov),) if momentum > 0 else ()


def _decay(weight_decay: float) -> tuple[optax.GradientTransformation, ...]:
    return (optax.add_decayed_weights(weight_decay),) if weight_decay > 0 else ()


def _check_weight_decay(name: str, weight_decay: float) -> None:
    if not weight_decay >= 0:
        raise UserError(f"{name}: weight_decay is {weight_decay!r}; give a number, 0 or more")
