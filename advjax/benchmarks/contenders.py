"""Who takes part: one adapter per library, each with the same attacks at the same parameters."""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

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
from advjax.benchmarks.networks import Network
from advjax.types import LogitsFn, PyTree

Bind: TypeAlias = Callable[[Any], LogitsFn | Expectation]
NUM_CLASSES = 10
ATTACKS = {
    "pgd-20": "linf, 20 steps of epsilon / 8, random start",
    "autopgd-100": "linf, cross-entropy, 100 steps, one restart",
    "cw-l2-100": "Adam 0.01, 100 steps, one constant c = 1, no early abort",
    "deepfool-l2-50": "at most 50 steps, overshoot 0.02, all classes",
    "autoattack": "standard, linf: APGD-CE 100, APGD-T 9x100, FAB-T 9x100, Square 5000; survivors only",
    "quick-check": "advjax.attacks.quick_check_stages; compare with autoattack",
}
ALONE = {
    "fgsm": "linf, one step",
    "one-step-least-likely": "linf, one step towards the least likely class",
    "bim-10": "linf, 10 steps of epsilon / 10",
    "autopgd-l1-100": "l1 12, cross-entropy, 100 steps",
    "cw-linf": "at most 1,000 steps a box, constants 1e-5 to 20",
    "cw-l2-line-search": "10 constants, 10 steps with line search each",
    "cw-linf-line-search": "linf, 25 steps with line search",
    "fab-t-100": "linf, 100 steps towards the second class",
    "square-1000": "linf, 1,000 queries",
}
"""Attacks that are timed for advjax only, and not unless they are asked for."""
ATTACKS |= ALONE
ENSEMBLES = {"autoattack", "quick-check"}
PASSES = {"pgd-20": 2 * 20, "autopgd-100": 2 * 101, "cw-l2-100": 2 * 100}
"""Forward passes per image, a gradient counted as one more, of the attacks that always take all their steps."""


class Outcome(NamedTuple):
    """What a run found."""

    adversarial: np.ndarray
    """float32 [n, h, w, c]."""
    passes: float | None
    """Forward passes of all images together, a gradient counted as one more; None where the library does not say."""


Run = Callable[[], Outcome]


class Contender(NamedTuple):
    """A library, or a way to use it."""

    name: str
    package: str
    """The distribution that has to be installed."""
    prepare: Callable[[str, Network, int], Run | None]
    """``(attack, network, batch size) -> run``; None for an attack that the library does not have."""
    note: str
    """How its attacks differ from those of the others."""

    def missing(self, network: Network) -> str | None:
        """Why it cannot take part, if it cannot."""
        if not self.name.startswith("advjax") and not network.has_torch_twin:
            return f"{network.name} exists in JAX only"
        for package in (self.package,) if self.package in ("jax", "torch") else ("torch", self.package):
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"{package} is not installed"
        return None


def parts(count: int, batch_size: int) -> list[slice]:
    return [slice(begin, min(begin + batch_size, count)) for begin in range(0, count, batch_size)]


def prepare_advjax(attack: str, network: Network, batch_size: int, *, bfloat16: bool = False) -> Run | None:
    def bind(variables: PyTree) -> LogitsFn:
        return functools.partial(network.forward, variables)

    searched = in_precision(jnp.dtype(jnp.bfloat16), bind) if bfloat16 else bind
    if attack in ENSEMBLES:
        return _advjax_stages(attack, network, bind, searched, batch_size)
    chosen = _advjax_attacks(network.epsilon)[attack]
    images, labels = jnp.asarray(network.images), jnp.asarray(network.labels)
    variables = jax.device_put(network.variables)

    @jax.jit
    def compiled(variables, images, labels, rng):
        # Only what the others return as well: their verdict is not part of the time either.
        result = chosen(searched(variables), images, labels, rng)
        return result.images, result.steps

    def run() -> Outcome:
        done = [
            compiled(variables, images[part], labels[part], jax.random.fold_in(jax.random.key(0), part.start))
            for part in parts(len(images), batch_size)
        ]
        found = jax.device_get(done)
        adversarial = np.concatenate([images for images, _ in found])
        steps = np.concatenate([steps for _, steps in found])
        # DeepFool: a step is one forward pass and the gradients of all classes but one.
        passes = PASSES[attack] * len(images) if attack in PASSES else float(np.sum(NUM_CLASSES * steps + 1))
        return Outcome(adversarial, None if attack in ALONE else passes)

    return run


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


def _advjax_stages(attack: str, network: Network, bind: Bind, searched: Bind, batch_size: int) -> Run:
    threat_model = linf(network.epsilon)
    stages = auto_attack_stages(threat_model) if attack == "autoattack" else quick_check_stages(threat_model)

    def run() -> Outcome:
        found = run_stages(
            stages,
            threat_model,
            bind,
            network.images,
            network.labels,
            variables=network.variables,
            search_fn=searched,
            batch_size=batch_size,
        )
        return Outcome(found.images, stage_passes(stages, found.broken_by, found.steps))

    return run


COST = {"apgd-ce": 2, "apgd-t": 2, "fab-t": 3, "square": 1}
"""Passes of a step: FAB looks at the logits before it asks for a gradient, Square asks for none."""


def stage_passes(stages: Sequence[Stage], broken_by: np.ndarray, steps: np.ndarray) -> float:
    """Passes of an ensemble: an image has gone through all steps of the stages before the one that broke it."""
    total, left = 0.0, steps.astype(np.int64)
    for number, stage in enumerate(stages):
        attack = stage.attack(jnp.int32(0))
        assert isinstance(attack, Attack)
        all_steps = attack.num_steps * stage.num_rounds(NUM_CLASSES)
        here = np.where(broken_by == number, left, np.minimum(left, all_steps))
        left = left - here
        total += COST[stage.name] * float(np.sum(here))
    return total


def _lazily(function: str) -> Callable[[str, Network, int], Run | None]:
    """A function of the module that can only be imported where torch is."""

    def prepare(attack: str, network: Network, batch_size: int) -> Run | None:
        if attack in ALONE:
            return None
        module = importlib.import_module("advjax.benchmarks.torch_contenders")
        return getattr(module, function)(attack, network, batch_size)

    return prepare


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("advjax", "jax", prepare_advjax, ""),
        Contender(
            "advjax-bfloat16",
            "jax",
            functools.partial(prepare_advjax, bfloat16=True),
            "searches on the network computed in bfloat16; what it found is judged in float32",
        ),
        Contender("torch", "torch", _lazily("prepare_torch"), "a plain loop: what the network itself costs in torch"),
        Contender(
            "torchattacks",
            "torchattacks",
            _lazily("prepare_torchattacks"),
            "DeepFool one image at a time; C&W stops when a tenth of its steps brought nothing; AutoAttack is put "
            "together from its parts with the steps of the paper (its own AutoAttack takes 10 in place of 100)",
        ),
        Contender("foolbox", "foolbox", _lazily("prepare_foolbox"), ""),
        Contender(
            "art",
            "adversarial-robustness-toolbox",
            _lazily("prepare_art"),
            "C&W searches its step length by halving and doubling, with several evaluations for each step; its "
            "AutoAttack is another ensemble and left out",
        ),
    )
}
