"""The libraries that are compared, each running the same attacks with the same parameters."""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import NamedTuple

from advjax.benchmarks.advjax_contender import prepare_advjax, prepare_advjax_exact
from advjax.benchmarks.attack_calls import ADVJAX_ONLY, AttackCall
from advjax.benchmarks.networks import Network


class Contender(NamedTuple):
    """A library, or one way of using it."""

    name: str
    package: str
    """The distribution that must be installed."""
    prepare: Callable[[str, Network, int], AttackCall | None]
    """``(attack, network, batch size) -> call``; None if the library does not have the attack."""
    note: str
    """How its attacks differ from those of the other libraries."""

    def missing(self, network: Network) -> str | None:
        """Why the contender cannot run on ``network``; None if it can."""
        if not self.name.startswith("advjax") and not network.has_torch_twin:
            return f"{network.name} exists in JAX only"
        for package in (self.package,) if self.package in ("jax", "torch") else ("torch", self.package):
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"{package} is not installed"
        return None


def _lazily(function: str) -> Callable[[str, Network, int], AttackCall | None]:
    """A function of ``torch_contenders``, which is imported only when it is called."""

    def prepare(attack: str, network: Network, batch_size: int) -> AttackCall | None:
        if attack in ADVJAX_ONLY:
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
            "searches with the network in bfloat16; results are scored in float32",
        ),
        Contender(
            "advjax-exact", "jax", prepare_advjax_exact, "convolutions and pooling as XLA computes them, also on a CPU"
        ),
        Contender("torch", "torch", _lazily("prepare_torch"), "a plain loop: the cost of the network itself in torch"),
        Contender(
            "torchattacks",
            "torchattacks",
            _lazily("prepare_torchattacks"),
            "DeepFool runs one image at a time; C&W stops early if a tenth of its steps bring no improvement; "
            "AutoAttack is assembled from its parts with the paper's step counts (its own takes 10 steps, not 100)",
        ),
        Contender("foolbox", "foolbox", _lazily("prepare_foolbox"), ""),
        Contender(
            "art",
            "adversarial-robustness-toolbox",
            _lazily("prepare_art"),
            "C&W adapts its step size by halving and doubling, with several evaluations per step; AutoAttack is a "
            "different ensemble and therefore omitted",
        ),
    )
}
