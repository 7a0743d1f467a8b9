"""Plain loops in torch: PGD and training steps; torch must be installed to import this module."""
# It is optional, so a type checker may not find it.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from advjax.benchmarks.networks import Network
from advjax.benchmarks.tasks import TRAINING, Call, Output, batch_slices
from advjax.benchmarks.torch_twins import nchw, torch_network
from advjax.benchmarks.training_contenders import ATTACK_STEPS, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY

TorchAttack: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def batched(network: Network, batch_size: int, attack: TorchAttack) -> Call:
    """Runs the attack batch by batch."""
    images = nchw(network.images)
    labels = torch.from_numpy(network.labels).long().to(images.device)

    def run() -> Output:
        torch.manual_seed(0)
        done = [attack(images[part], labels[part]).detach() for part in batch_slices(len(images), batch_size)]
        return Output(np.ascontiguousarray(torch.cat(done).permute(0, 2, 3, 1).cpu().numpy()))

    return run


def prepare_torch(task: str, network: Network, batch_size: int, *, compiled: bool = False) -> Call | None:
    """PGD, or training; None for other tasks."""
    if task not in ("pgd-20", *TRAINING):
        return None
    module = torch_network(network)
    called = torch.compile(module) if compiled else module
    if task in TRAINING:
        return _training(task, network, batch_size, module, called)

    def attack(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return pgd(called, network.epsilon, images, labels, num_steps=20, step_size=network.epsilon / 8)

    return batched(network, batch_size, attack)


def pgd(
    module: nn.Module, epsilon: float, images: torch.Tensor, labels: torch.Tensor, *, num_steps: int, step_size: float
) -> torch.Tensor:
    """The last point of PGD in linf from a random start."""
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    point = torch.clamp(images + torch.empty_like(images).uniform_(-epsilon, epsilon), 0, 1)
    for _ in range(num_steps):
        point.requires_grad_()
        loss = nn.functional.cross_entropy(module(point), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        point = torch.clamp(point.detach() + step_size * gradient.sign(), low, high)
    return point


def _training(task: str, network: Network, batch_size: int, module: nn.Module, called: Callable) -> Call:
    """Training steps from the network's weights on; ``called`` is the module, or its compiled form."""
    images = nchw(network.images)
    labels = torch.from_numpy(network.labels).long().to(images.device)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def run() -> Output:
        losses = []
        for part in batch_slices(len(images), batch_size):
            batch = images[part]
            if task == "train-pgd-7":
                module.eval().requires_grad_(False)
                step_size = network.epsilon / 4
                batch = pgd(called, network.epsilon, batch, labels[part], num_steps=ATTACK_STEPS, step_size=step_size)
            module.train().requires_grad_(True)
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(called(batch), labels[part])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return Output(loss=torch.stack(losses).cpu()[0].item())

    return run
