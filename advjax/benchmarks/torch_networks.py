"""The networks of the benchmark as torch modules; torch must be installed to import this module."""
# It is optional, so a type checker may not find it.
# pyright: reportMissingImports=false

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from advjax.benchmarks.networks import CIFAR_STRIDES


class MnistCNN(nn.Module):
    """``networks.mnist_cnn``, with the number of channels after each convolution and of hidden units."""

    def __init__(self, first: int, second: int, hidden: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, first, 5, padding=2), nn.Conv2d(first, second, 5, padding=2)
        self.fc1, self.fc2 = nn.Linear(49 * second, hidden), nn.Linear(hidden, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(images)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class CifarCNN(nn.Module):
    """``networks.cifar_cnn``, with the number of channels after each convolution."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *channels: int) -> None:
        super().__init__()
        sizes = zip((3, *channels), channels, CIFAR_STRIDES, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride, padding=1) for a, b, stride in sizes)
        self.fc = nn.Linear(channels[-1], 10)
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (images - self.mean) / self.std
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.fc(x.mean((2, 3)))


class LeNet5(nn.Module):
    """``models.lenet.LeNet5`` for 28x28x1 images."""

    def __init__(self, channels: Callable[..., Sequence[int]]) -> None:
        super().__init__()
        a, b, c, d = channels(6, 16, 120, 84)
        self.conv1, self.conv2 = nn.Conv2d(1, a, 5), nn.Conv2d(a, b, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(25 * b, c), nn.Linear(c, d), nn.Linear(d, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1))))))


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _conv_norm_relu(inputs: int, outputs: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(), *after)


class ResNet9(nn.Module):
    """``models.resnet9.ResNet9``."""

    def __init__(self, channels: Callable[..., Sequence[int]]) -> None:
        super().__init__()
        a, b, c, d = channels(64, 128, 256, 512)
        self.conv1, self.conv2 = _conv_norm_relu(3, a), _conv_norm_relu(a, b, nn.MaxPool2d(2))
        self.res1 = nn.Sequential(_conv_norm_relu(b, b), _conv_norm_relu(b, b))
        self.conv3, self.conv4 = _conv_norm_relu(b, c), _conv_norm_relu(c, d, nn.MaxPool2d(2))
        self.res2 = nn.Sequential(_conv_norm_relu(d, d), _conv_norm_relu(d, d))
        self.classifier = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(4 * d, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(images))
        x = x + self.res1(x)
        x = self.conv4(self.conv3(x))
        return self.classifier(x + self.res2(x))


class PreActBlock(nn.Module):
    """``models.preact_resnet.PreActBlock``, whose projection takes the activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1, self.conv2 = _conv(inputs, outputs, 3, stride), _conv(outputs, outputs)
        self.projection = shortcut if stride != 1 or inputs != outputs else ""
        if self.projection:
            layer = _conv(inputs, outputs, 1, stride)
            self.add_module(shortcut, nn.Sequential(layer) if shortcut == "shortcut" else layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = torch.relu(self.bn1(x))
        if self.projection:
            x = getattr(self, self.projection)(active)
        return x + self.conv2(torch.relu(self.bn2(self.conv1(active))))


def _preact_stage(inputs: int, outputs: int, count: int, stride: int, shortcut: str) -> nn.Sequential:
    blocks = (
        PreActBlock(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, shortcut) for i in range(count)
    )
    return nn.Sequential(*blocks)


class PreActResNet18(nn.Module):
    """``models.preact_resnet.PreActResNet18``."""

    def __init__(self, channels: Callable[..., Sequence[int]]) -> None:
        super().__init__()
        a, b, c, d = channels(64, 128, 256, 512)
        self.conv1 = _conv(3, a)
        self.layer1, self.layer2 = _preact_stage(a, a, 2, 1, "shortcut"), _preact_stage(a, b, 2, 2, "shortcut")
        self.layer3, self.layer4 = _preact_stage(b, c, 2, 2, "shortcut"), _preact_stage(c, d, 2, 2, "shortcut")
        self.linear = nn.Linear(d, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        return self.linear(x.mean((2, 3)))


class WideStage(nn.Module):
    """A stage of ``WideResNet``, with the names that published weights have."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layer = _preact_stage(inputs, outputs, 4, stride, "convShortcut")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """``models.wide_resnet.WideResNet`` with depth 28."""

    def __init__(self, channels: Callable[..., Sequence[int]]) -> None:
        super().__init__()
        a, b, c = channels(16, 32, 64)
        self.conv1 = _conv(3, 16)
        self.block1, self.block2, self.block3 = WideStage(16, a, 1), WideStage(a, b, 2), WideStage(b, c, 2)
        self.bn1, self.fc = nn.BatchNorm2d(c), nn.Linear(c, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(torch.relu(self.bn1(x)).mean((2, 3)))


class BasicBlock(nn.Module):
    """``models.resnet.ResNetBlock`` without bottleneck."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        layers = (_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else ()
        self.shortcut = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(self.shortcut(x) + y)


class ResNet18(nn.Module):
    """``models.resnet.ResNet18`` with the stem for CIFAR-10."""

    def __init__(self, channels: Callable[..., Sequence[int]]) -> None:
        super().__init__()
        a, b, c, d = channels(64, 128, 256, 512)
        self.conv1, self.bn1 = _conv(3, a), nn.BatchNorm2d(a)
        sizes = zip((a, a, b, c), (a, b, c, d), (1, 2, 2, 2), strict=True)
        stages = [nn.Sequential(BasicBlock(i, o, stride), BasicBlock(o, o, 1)) for i, o, stride in sizes]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(d, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        return self.linear(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


MODULES: dict[str, Callable[..., nn.Module]] = {
    **{"mnist_cnn": MnistCNN, "cifar_cnn": CifarCNN, "lenet5": LeNet5, "resnet9": ResNet9},
    **{"preact_resnet18": PreActResNet18, "resnet18": ResNet18, "wide_resnet_28_10": WideResNet},
}
