"""The attacks of advjax as they are timed."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import (
    Attack,
    Expectation,
    Stage,
    auto_attack_stages,
    auto_pgd,
    auto_pgd_l1,
    bim,
    carlini_wagner_l2,
    carlini_wagner_l2_line_search,
    carlini_wagner_linf,
    carlini_wagner_linf_line_search,
    deepfool,
    fab,
    fgsm,
    in_precision,
    l1,
    l2,
    linf,
    next_likely_class,
    one_step_target_class,
    pgd,
    quick_check_stages,
    run_stages,
    square,
)
from advjax.attacks.combine import restarts
from advjax.benchmarks.foreign import foreign_logits_fn, foreign_variables
from advjax.benchmarks.networks import Network
from advjax.benchmarks.tasks import (
    ADVJAX_ONLY,
    ENSEMBLES,
    NUM_CLASSES,
    PASSES,
    RUNNER,
    TRAINING,
    Call,
    Output,
    batch_slices,
    is_of_runner,
)
from advjax.benchmarks.training_contenders import prepare_training
from advjax.cpu.convolution import exact
from advjax.types import LogitsFn, PyTree

Bind: TypeAlias = Callable[[Any], LogitsFn | Expectation]


def prepare_advjax(
    task: str, network: Network, batch_size: int, *, bfloat16: bool = False, foreign: bool = False
) -> Call | None:
    """The task by advjax.

    Args:
      task: one of ``tasks.TASKS``.
      network: the attacked network.
      batch_size: images at a time.
      bfloat16: attacks search, and models train, in bfloat16; results are scored in float32.
      foreign: on the network of ``foreign`` with the same weights, instead of ours.
    """
    if task in TRAINING:
        dtype = "bfloat16" if bfloat16 else "float32"
        return prepare_training(task, network, batch_size, dtype=dtype, foreign=foreign)
    bind, variables = _bound(network, foreign)
    search_fn = in_precision(jnp.dtype(jnp.bfloat16), bind) if bfloat16 else bind
    if is_of_runner(task):
        return _by_runner(task, network, bind, search_fn, variables, batch_size)
    return _on_batches(task, network, search_fn, variables, batch_size)


def prepare_advjax_exact(task: str, network: Network, batch_size: int, *, foreign: bool = False) -> Call | None:
    """The task by advjax without its convolutions and pooling for CPUs."""
    run = prepare_advjax(task, network, batch_size, foreign=foreign)
    return run and exact()(run)  # Programs are traced in the first call.


def _bound(network: Network, foreign: bool) -> tuple[Bind, PyTree]:
    """``variables -> logits_fn``, and the variables, on the device."""
    if not foreign:
        return lambda variables: functools.partial(network.forward, variables), jax.device_put(network.variables)
    return foreign_logits_fn(network.width), foreign_variables(network.variables)


def _on_batches(task: str, network: Network, search_fn: Bind, variables: PyTree, batch_size: int) -> Call:
    """An attack on one batch after the other, each of them a single compiled program."""
    chosen = _advjax_attacks(network.epsilon)[task]
    images, labels = jnp.asarray(network.images), jnp.asarray(network.labels)

    @jax.jit
    def compiled(variables, images, labels, rng):
        # Only what other libraries return as well: their timings do not include verdicts either.
        result = chosen(search_fn(variables), images, labels, rng)
        return result.images, result.steps

    def run() -> Output:
        done = [
            compiled(variables, images[part], labels[part], jax.random.fold_in(jax.random.key(0), part.start))
            for part in batch_slices(len(images), batch_size)
        ]
        found = jax.device_get(done)
        adversarial = np.concatenate([images for images, _ in found])
        steps = np.concatenate([steps for _, steps in found])
        return Output(adversarial, None if task in ADVJAX_ONLY else attack_passes(task, steps))

    return run


def attack_passes(task: str, steps: np.ndarray) -> float:
    """Passes of an attack on one batch."""
    if task in PASSES:
        return float(PASSES[task] * len(steps))
    # DeepFool: each step is one forward pass plus the gradients of all classes but one.
    return float(np.sum(NUM_CLASSES * steps + 1))


def _advjax_attacks(epsilon: float) -> dict[str, Attack]:
    bounded, unbounded = linf(epsilon), l2(np.inf)
    return {
        "pgd-20": pgd(bounded, num_steps=20, step_size=epsilon / 8, returns="last"),
        "autopgd-20": auto_pgd(bounded, num_steps=20),
        "autopgd-100": auto_pgd(bounded, num_steps=100),
        "cw-l2-100": carlini_wagner_l2(
            unbounded, num_steps=100, binary_search_steps=1, initial_const=1.0, abort_early=False
        ),
        "deepfool-l2-50": deepfool(unbounded, num_steps=50),
        "fgsm": fgsm(bounded),
        "one-step-least-likely": one_step_target_class(bounded),
        "bim-10": bim(bounded, num_steps=10, step_size=epsilon / 10),
        "autopgd-l1-100": auto_pgd_l1(l1(12.0)),
        "cw-linf": carlini_wagner_linf(linf(np.inf)),
        "cw-l2-line-search": carlini_wagner_l2_line_search(unbounded),
        "cw-linf-line-search": carlini_wagner_linf_line_search(bounded, num_steps=25),
        "fab-t-100": fab(bounded, aim=next_likely_class(1)),
        "square-1000": square(bounded, num_queries=1000),
    }


def _by_runner(task: str, network: Network, bind: Bind, search_fn: Bind, variables: PyTree, batch_size: int) -> Call:
    """Verified results by ``run_stages``, as users are told to get verdicts.

    It chooses its batches by itself, unless smaller ones are asked for.
    """
    bounded = linf(network.epsilon)
    if task in ENSEMBLES:
        threat_model = bounded
        stages = auto_attack_stages(bounded) if task == "autoattack" else quick_check_stages(bounded)
    else:
        name = task.removesuffix(RUNNER)
        threat_model = bounded if name.startswith("autopgd") else l2(np.inf)
        stages = (restarts(name, _advjax_attacks(network.epsilon)[name], 1),)

    def run() -> Output:
        found = run_stages(
            stages,
            threat_model,
            bind,
            network.images,
            network.labels,
            variables=variables,
            search_fn=search_fn,
            batch_size=batch_size if batch_size < len(network.images) else None,
            survivors_only=not task.startswith("cw-"),
        )
        passes = stage_passes(stages, found.broken_by, found.steps) if task in ENSEMBLES else None
        return Output(found.images, passes)

    return run


COST = {"apgd-ce": 2, "apgd-t": 2, "fab-t": 3, "square": 1}
"""Passes per step: FAB evaluates the logits before it takes a gradient, Square takes none."""


def stage_passes(stages: Sequence[Stage], broken_by: np.ndarray, steps: np.ndarray) -> float:
    """Total passes of an ensemble, in which an image completes every stage before the one that breaks it."""
    total, left = 0.0, steps.astype(np.int64)
    for number, stage in enumerate(stages):
        attack = stage.attack(jnp.int32(0))
        assert isinstance(attack, Attack)
        all_steps = attack.num_steps * stage.num_rounds(NUM_CLASSES)
        here = np.where(broken_by == number, left, np.minimum(left, all_steps))
        left = left - here
        total += COST[stage.name] * float(np.sum(here))
    return total
