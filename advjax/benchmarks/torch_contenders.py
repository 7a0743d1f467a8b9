"""The libraries built on torch; this module can be imported only if torch is installed."""
# These packages are optional, so a type checker may not find them.
# pyright: reportMissingImports=false

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from advjax.benchmarks.attack_calls import AttackCall, AttackOutput, batch_slices
from advjax.benchmarks.networks import CIFAR_STRIDES, Network

TorchAttack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class MnistCNN(nn.Module):
    """``networks.mnist_cnn`` with the same weights."""

    def __init__(self, weights: dict[str, np.ndarray]):
        super().__init__()
        self.conv1, self.conv2 = (conv_layer(weights, number, padding=2) for number in (1, 2))
        hidden = weights["fc1_kernel"].reshape(7, 7, -1, weights["fc1_kernel"].shape[1])
        self.fc1 = dense_layer(hidden.transpose(2, 0, 1, 3).reshape(weights["fc1_kernel"].shape), weights["fc1_bias"])
        self.fc2 = dense_layer(weights["fc2_kernel"], weights["fc2_bias"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv1(images)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class CifarCNN(nn.Module):
    """``networks.cifar_cnn`` with the same weights."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, weights: dict[str, np.ndarray]):
        super().__init__()
        layers = [conv_layer(weights, number, padding=1, stride=s) for number, s in enumerate(CIFAR_STRIDES, 1)]
        self.convs = nn.ModuleList(layers)
        self.fc = dense_layer(weights["fc_kernel"], weights["fc_bias"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.from_numpy(weights[f"input_{name}"].reshape(-1, 1, 1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (images - self.mean) / self.std
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.fc(x.mean((2, 3)))


MODULES = {"mnist_cnn": MnistCNN, "cifar_cnn": CifarCNN}


def conv_layer(weights: dict[str, np.ndarray], number: int, *, padding: int, stride: int = 1) -> nn.Conv2d:
    """A convolution with the given kernel (height, width, in, out)."""
    kernel = weights[f"conv{number}_kernel"]
    layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[0], stride=stride, padding=padding)
    return _filled(layer, kernel.transpose(3, 2, 0, 1), weights[f"conv{number}_bias"])


def dense_layer(kernel: np.ndarray, bias: np.ndarray) -> nn.Linear:
    """A linear layer with the given kernel (in, out)."""
    return _filled(nn.Linear(*kernel.shape), kernel.T, bias)


def _filled(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


def torch_network(network: Network) -> nn.Module:
    """The same network in torch, in inference mode and channels-last memory format, as in JAX."""
    module = MODULES[network.name](network.variables).eval().requires_grad_(False)
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def batched(network: Network, batch_size: int, attack: TorchAttack) -> AttackCall:
    """Runs the attack batch by batch."""
    images = torch.from_numpy(network.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(network.labels).long()

    def run() -> AttackOutput:
        torch.manual_seed(0)
        done = [attack(images[part], labels[part]).detach() for part in batch_slices(len(images), batch_size)]
        return AttackOutput(np.ascontiguousarray(torch.cat(done).permute(0, 2, 3, 1).cpu().numpy()), None)

    return run


def prepare_torch(attack: str, network: Network, batch_size: int) -> AttackCall | None:
    """A minimal PGD in torch; None for other attacks."""
    if attack != "pgd-20":
        return None
    module, epsilon = torch_network(network), network.epsilon

    def pgd(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
        point = torch.clamp(images + torch.empty_like(images).uniform_(-epsilon, epsilon), 0, 1)
        for _ in range(20):
            point.requires_grad_()
            loss = nn.functional.cross_entropy(module(point), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, point)
            point = torch.clamp(point.detach() + epsilon / 8 * gradient.sign(), low, high)
        return point

    return batched(network, batch_size, pgd)


def prepare_torchattacks(attack: str, network: Network, batch_size: int) -> AttackCall | None:
    """The attack by torchattacks; None if the library does not have it."""
    import torchattacks

    module, epsilon = torch_network(network), network.epsilon

    def ensemble() -> TorchAttack:
        steps = {"norm": "Linf", "eps": epsilon, "seed": 0}
        # FAB in torchattacks fails in channels-last memory.
        plain = module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        attack = torchattacks.MultiAttack(
            [
                torchattacks.APGD(plain, steps=100, loss="ce", **steps),
                torchattacks.APGDT(plain, steps=100, n_classes=10, **steps),
                torchattacks.FAB(plain, steps=100, multi_targeted=True, n_classes=10, **steps),
                torchattacks.Square(plain, n_queries=5000, resc_schedule=False, **steps),
            ]
        )
        return lambda images, labels: attack(images.contiguous(), labels)

    makers: dict[str, Callable[[], TorchAttack]] = {
        "pgd-20": lambda: torchattacks.PGD(module, eps=epsilon, alpha=epsilon / 8, steps=20),
        "autopgd-100": lambda: torchattacks.APGD(module, norm="Linf", eps=epsilon, steps=100, loss="ce"),
        "cw-l2-100": lambda: torchattacks.CW(module, c=1, steps=100, lr=0.01),
        "deepfool-l2-50": lambda: torchattacks.DeepFool(module, steps=50, overshoot=0.02),
        "autoattack": ensemble,
    }
    return batched(network, batch_size, makers[attack]()) if attack in makers else None


def prepare_foolbox(attack: str, network: Network, batch_size: int) -> AttackCall | None:
    """The attack by Foolbox; None if the library does not have it."""
    from foolbox.attacks import LinfPGD
    from foolbox.attacks.carlini_wagner import L2CarliniWagnerAttack
    from foolbox.attacks.deepfool import L2DeepFoolAttack
    from foolbox.models.pytorch import PyTorchModel

    model = PyTorchModel(torch_network(network), bounds=(0, 1), device="cpu")
    makers = {
        "pgd-20": lambda: LinfPGD(abs_stepsize=network.epsilon / 8, steps=20),
        "cw-l2-100": lambda: L2CarliniWagnerAttack(
            binary_search_steps=1, steps=100, stepsize=0.01, initial_const=1.0, abort_early=False
        ),
        "deepfool-l2-50": lambda: L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02),
    }
    if attack not in makers:
        return None
    made, epsilon = makers[attack](), network.epsilon if attack == "pgd-20" else None

    def run(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return made(model, images, labels, epsilons=epsilon)[1]

    return batched(network, batch_size, run)


def prepare_art(attack: str, network: Network, batch_size: int) -> AttackCall | None:
    """The attack by the Adversarial Robustness Toolbox; None if the library does not have it."""
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        torch_network(network),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(network.images.transpose(0, 3, 1, 2).shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    epsilon, options = network.epsilon, {"batch_size": batch_size, "verbose": False}
    makers = {
        "pgd-20": lambda: evasion.ProjectedGradientDescent(
            classifier, eps=epsilon, eps_step=epsilon / 8, max_iter=20, num_random_init=1, **options
        ),
        "autopgd-100": lambda: evasion.AutoProjectedGradientDescent(
            classifier, eps=epsilon, eps_step=2 * epsilon, max_iter=100, nb_random_init=1, **options
        ),
        "cw-l2-100": lambda: evasion.CarliniL2Method(
            classifier, learning_rate=0.01, binary_search_steps=1, max_iter=100, initial_const=1.0, **options
        ),
        "deepfool-l2-50": lambda: evasion.DeepFool(classifier, max_iter=50, epsilon=0.02, nb_grads=10, **options),
    }
    if attack not in makers:
        return None
    made = makers[attack]()
    images, labels = np.ascontiguousarray(network.images.transpose(0, 3, 1, 2)), np.eye(10)[network.labels]

    def run() -> AttackOutput:
        return AttackOutput(np.ascontiguousarray(made.generate(images, labels).transpose(0, 2, 3, 1)), None)

    return run
