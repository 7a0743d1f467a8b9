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
from advjax.benchmarks.attack_calls import (
    ADVJAX_ONLY,
    ENSEMBLES,
    NUM_CLASSES,
    PASSES,
    AttackCall,
    AttackOutput,
    batch_slices,
)
from advjax.benchmarks.networks import Network
from advjax.cpu.convolution import exact
from advjax.types import LogitsFn, PyTree

Bind: TypeAlias = Callable[[Any], LogitsFn | Expectation]


def prepare_advjax(attack: str, network: Network, batch_size: int, *, bfloat16: bool = False) -> AttackCall | None:
    """The attack by advjax.  With ``bfloat16``, only the search is in bfloat16; results are scored in float32."""

    def bind(variables: PyTree) -> LogitsFn:
        return functools.partial(network.forward, variables)

    search_fn = in_precision(jnp.dtype(jnp.bfloat16), bind) if bfloat16 else bind
    if attack in ENSEMBLES:
        return _advjax_stages(attack, network, bind, search_fn, batch_size)
    chosen = _advjax_attacks(network.epsilon)[attack]
    images, labels = jnp.asarray(network.images), jnp.asarray(network.labels)
    variables = jax.device_put(network.variables)

    @jax.jit
    def compiled(variables, images, labels, rng):
        # Only what other libraries return as well: their timings do not include verdicts either.
        result = chosen(search_fn(variables), images, labels, rng)
        return result.images, result.steps

    def run() -> AttackOutput:
        done = [
            compiled(variables, images[part], labels[part], jax.random.fold_in(jax.random.key(0), part.start))
            for part in batch_slices(len(images), batch_size)
        ]
        found = jax.device_get(done)
        adversarial = np.concatenate([images for images, _ in found])
        steps = np.concatenate([steps for _, steps in found])
        # DeepFool: each step is one forward pass plus the gradients of all classes but one.
        passes = PASSES[attack] * len(images) if attack in PASSES else float(np.sum(NUM_CLASSES * steps + 1))
        return AttackOutput(adversarial, None if attack in ADVJAX_ONLY else passes)

    return run


def prepare_advjax_exact(attack: str, network: Network, batch_size: int) -> AttackCall | None:
    """The attack by advjax without its convolutions and pooling for CPUs."""
    run = prepare_advjax(attack, network, batch_size)
    return run and exact()(run)  # Programs are traced in the first call.


def _advjax_attacks(epsilon: float) -> dict[str, Attack]:
    bounded, unbounded = linf(epsilon), l2(np.inf)
    return {
        "pgd-20": pgd(bounded, num_steps=20, step_size=epsilon / 8, returns="last"),
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


def _advjax_stages(attack: str, network: Network, bind: Bind, search_fn: Bind, batch_size: int) -> AttackCall:
    threat_model = linf(network.epsilon)
    stages = auto_attack_stages(threat_model) if attack == "autoattack" else quick_check_stages(threat_model)

    def run() -> AttackOutput:
        found = run_stages(
            stages,
            threat_model,
            bind,
            network.images,
            network.labels,
            variables=network.variables,
            search_fn=search_fn,
            batch_size=batch_size,
        )
        return AttackOutput(found.images, stage_passes(stages, found.broken_by, found.steps))

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
