"""The libraries that are compared, each doing the same tasks with the same parameters."""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import NamedTuple

from advjax.benchmarks.advjax_contender import prepare_advjax, prepare_advjax_exact
from advjax.benchmarks.networks import Network
from advjax.benchmarks.tasks import ADVJAX_ONLY, Call

FOREIGN_NETWORK = "resnet9"
"""The network that ``foreign`` has, too."""


class Contender(NamedTuple):
    """A library, or one way of using it."""

    name: str
    package: str
    """The distribution that must be installed."""
    prepare: Callable[[str, Network, int], Call | None]
    """``(task, network, batch size) -> call``; None if the library cannot do the task."""
    note: str
    """How what it does differs from the other libraries."""

    @property
    def is_ours(self) -> bool:
        """Whether advjax does the task."""
        return self.package == "jax"

    def missing(self, network: Network) -> str | None:
        """Why the contender cannot run on ``network``; None if it can."""
        if self.name.startswith("flax") and network.name != FOREIGN_NETWORK:
            return f"only {FOREIGN_NETWORK} has a foreign twin in flax"
        for package in (self.package,) if self.package in ("jax", "torch") else ("torch", self.package):
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"{package} is not installed"
        return None


def _lazily(module: str, function: str, **options: bool) -> Callable[[str, Network, int], Call | None]:
    """A function of a module that needs torch, and is imported only when it is called."""

    def prepare(task: str, network: Network, batch_size: int) -> Call | None:
        if task in ADVJAX_ONLY:
            return None
        imported = importlib.import_module(f"advjax.benchmarks.{module}")
        return getattr(imported, function)(task, network, batch_size, **options)

    return prepare


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("advjax", "jax", prepare_advjax, "the runner verifies every success by a separate forward pass"),
        Contender(
            "advjax-bfloat16",
            "jax",
            functools.partial(prepare_advjax, bfloat16=True),
            "searches, and trains, with the network in bfloat16; results are scored in float32",
        ),
        Contender(
            "advjax-exact", "jax", prepare_advjax_exact, "convolutions and pooling as XLA computes them, also on a CPU"
        ),
        Contender(
            "flax",
            "jax",
            functools.partial(prepare_advjax, foreign=True),
            "advjax on the same network as a plain flax module of flax's own layers",
        ),
        Contender(
            "flax-exact",
            "jax",
            functools.partial(prepare_advjax_exact, foreign=True),
            "the same without fast_on_cpu: convolutions and pooling as XLA computes them",
        ),
        Contender("torch", "torch", _lazily("torch_loops", "prepare_torch"), "plain loops in eager PyTorch"),
        Contender(
            "torch-compiled",
            "torch",
            _lazily("torch_loops", "prepare_torch", compiled=True),
            "the same loops around torch.compile(network), whose compilation is part of the first call only",
        ),
        Contender(
            "torchattacks",
            "torchattacks",
            _lazily("torch_contenders", "prepare_torchattacks"),
            "APGD leaves out images that are misclassified to begin with, but goes on with an image after a success; "
            "DeepFool runs one image at a time; C&W stops early if a tenth of its steps bring no improvement; "
            "AutoAttack is assembled from its parts with the paper's step counts (its own takes 10 steps, not 100); "
            "nothing is verified",
        ),
        Contender(
            "foolbox",
            "foolbox",
            _lazily("torch_contenders", "prepare_foolbox"),
            "nothing is verified; its C&W breaks more images, so that it is not quite the same work",
        ),
        Contender(
            "art",
            "adversarial-robustness-toolbox",
            _lazily("torch_contenders", "prepare_art"),
            "C&W adapts its step size by halving and doubling, with several evaluations per step; AutoAttack is a "
            "different ensemble and therefore omitted; nothing is verified",
        ),
    )
}
