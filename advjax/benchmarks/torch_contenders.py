"""The attack libraries built on torch, which must be installed to import this module."""
# These packages are optional, so a type checker may not find them.
# pyright: reportMissingImports=false

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from advjax.benchmarks.networks import Network
from advjax.benchmarks.tasks import RUNNER, Call, Output
from advjax.benchmarks.torch_loops import TorchAttack, batched
from advjax.benchmarks.torch_twins import device, torch_network


def prepare_torchattacks(task: str, network: Network, batch_size: int) -> Call | None:
    """The attack by torchattacks; None if the library does not have it."""
    import torchattacks

    module, epsilon = torch_network(network), network.epsilon

    def ensemble() -> TorchAttack:
        steps = {"norm": "Linf", "eps": epsilon, "seed": 0}
        # FAB in torchattacks fails in channels-last memory.
        plain = module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        parts = torchattacks.MultiAttack(
            [
                torchattacks.APGD(plain, steps=100, loss="ce", **steps),
                torchattacks.APGDT(plain, steps=100, n_classes=10, **steps),
                torchattacks.FAB(plain, steps=100, multi_targeted=True, n_classes=10, **steps),
                torchattacks.Square(plain, n_queries=5000, resc_schedule=False, **steps),
            ]
        )
        return lambda images, labels: parts(images.contiguous(), labels)

    makers: dict[str, Callable[[], TorchAttack]] = {
        "pgd-20": lambda: torchattacks.PGD(module, eps=epsilon, alpha=epsilon / 8, steps=20),
        "autopgd-20": lambda: torchattacks.APGD(module, norm="Linf", eps=epsilon, steps=20, loss="ce"),
        "autopgd-100": lambda: torchattacks.APGD(module, norm="Linf", eps=epsilon, steps=100, loss="ce"),
        "cw-l2-100": lambda: torchattacks.CW(module, c=1, steps=100, lr=0.01),
        "deepfool-l2-50": lambda: torchattacks.DeepFool(module, steps=50, overshoot=0.02),
        "autoattack": ensemble,
    }
    attack = task.removesuffix(RUNNER)
    return batched(network, batch_size, makers[attack]()) if attack in makers else None


def prepare_foolbox(task: str, network: Network, batch_size: int) -> Call | None:
    """The attack by Foolbox; None if the library does not have it."""
    from foolbox.attacks import LinfPGD
    from foolbox.attacks.carlini_wagner import L2CarliniWagnerAttack
    from foolbox.attacks.deepfool import L2DeepFoolAttack
    from foolbox.models.pytorch import PyTorchModel

    model = PyTorchModel(torch_network(network), bounds=(0, 1), device=device())
    makers = {
        "pgd-20": lambda: LinfPGD(abs_stepsize=network.epsilon / 8, steps=20),
        "cw-l2-100": lambda: L2CarliniWagnerAttack(
            binary_search_steps=1, steps=100, stepsize=0.01, initial_const=1.0, abort_early=False
        ),
        "deepfool-l2-50": lambda: L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02),
    }
    if (attack := task.removesuffix(RUNNER)) not in makers:
        return None
    made, epsilon = makers[attack](), network.epsilon if attack == "pgd-20" else None

    def run(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return made(model, images, labels, epsilons=epsilon)[1]

    return batched(network, batch_size, run)


def prepare_art(task: str, network: Network, batch_size: int) -> Call | None:
    """The attack by the Adversarial Robustness Toolbox; None if the library does not have it."""
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        torch_network(network),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(network.images.transpose(0, 3, 1, 2).shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device() == "cuda" else "cpu",
    )
    epsilon, options = network.epsilon, {"batch_size": batch_size, "verbose": False}
    makers = {
        "pgd-20": lambda: evasion.ProjectedGradientDescent(
            classifier, eps=epsilon, eps_step=epsilon / 8, max_iter=20, num_random_init=1, **options
        ),
        "autopgd-20": lambda: evasion.AutoProjectedGradientDescent(
            classifier, eps=epsilon, eps_step=2 * epsilon, max_iter=20, nb_random_init=1, **options
        ),
        "autopgd-100": lambda: evasion.AutoProjectedGradientDescent(
            classifier, eps=epsilon, eps_step=2 * epsilon, max_iter=100, nb_random_init=1, **options
        ),
        "cw-l2-100": lambda: evasion.CarliniL2Method(
            classifier, learning_rate=0.01, binary_search_steps=1, max_iter=100, initial_const=1.0, **options
        ),
        "deepfool-l2-50": lambda: evasion.DeepFool(classifier, max_iter=50, epsilon=0.02, nb_grads=10, **options),
    }
    if (attack := task.removesuffix(RUNNER)) not in makers:
        return None
    made = makers[attack]()
    images, labels = np.ascontiguousarray(network.images.transpose(0, 3, 1, 2)), np.eye(10)[network.labels]

    def run() -> Output:
        return Output(np.ascontiguousarray(made.generate(images, labels).transpose(0, 2, 3, 1)))

    return run
