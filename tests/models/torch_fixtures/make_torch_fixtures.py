"""Writes the torch_*.npz files beside it: weights of tiny PyTorch networks, four images and their logits.

    python tests/models/torch_fixtures/make_torch_fixtures.py

needs PyTorch (2.13 made the files); with names of cases, only these are written.  The networks have the topology and
the names that torchvision, the usual CIFAR-10 code, TRADES, RobustBench and the PyTorch tutorial give them; the slow
tests build them at full size.  ``mixed`` is not loaded into a model, but converted as a graph.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

FOLDER = pathlib.Path(__file__).parent
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def conv(inputs, outputs, size, stride=1, padding=None, bias=False):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2 if padding is None else padding, bias=bias)


class Block(nn.Module):
    """Block of a ResNet: basic, or bottleneck; ``shortcut`` is its projection's name."""

    def __init__(self, inputs, features, stride, bottleneck, shortcut):
        super().__init__()
        outputs = 4 * features if bottleneck else features
        sizes = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        ends = [inputs, *[features] * (len(sizes) - 1), outputs]
        self.num = len(sizes)
        for i, (size, step) in enumerate(sizes):
            self.add_module(f"conv{i + 1}", conv(ends[i], ends[i + 1], size, step))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(ends[i + 1]))
        self.project = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.add_module(shortcut, nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)))
        self.shortcut_name, self.outputs = shortcut, outputs

    def forward(self, x):
        y = x
        for i in range(1, self.num + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.num else y
        return F.relu(y + getattr(self, self.shortcut_name, self.project)(x))


class ResNet(nn.Module):
    def __init__(self, channels, sizes, bottleneck=False, stem="imagenet", shortcut="downsample", classifier="fc"):
        super().__init__()
        self.is_large, self.classifier = stem == "imagenet", classifier
        self.conv1 = conv(3, channels[0], *((7, 2) if self.is_large else (3, 1)))
        self.bn1 = nn.BatchNorm2d(channels[0])
        inputs = channels[0]
        for i, (features, size) in enumerate(zip(channels[1:], sizes, strict=True)):
            blocks = []
            for j in range(size):
                blocks.append(Block(inputs, features, 2 if i and not j else 1, bottleneck, shortcut))
                inputs = blocks[-1].outputs
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.add_module(classifier, nn.Linear(inputs, 10))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.is_large else x
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return getattr(self, self.classifier)(x.mean((2, 3)))


class PreActBlock(nn.Module):
    """``raw``: the shortcut takes the input of the block, as in fast_adversarial, instead of its activation."""

    def __init__(self, inputs, features, stride, shortcut, raw=False):
        super().__init__()
        self.raw = raw
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, features, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(features), conv(features, features, 3)
        if stride != 1 or inputs != features:
            projection = conv(inputs, features, 1, stride)
            self.add_module(shortcut, nn.Sequential(projection) if shortcut == "shortcut" else projection)
        self.shortcut_name = shortcut

    def forward(self, x):
        active = F.relu(self.bn1(x))
        if hasattr(self, self.shortcut_name):
            x = getattr(self, self.shortcut_name)(x if self.raw else active)
        return x + self.conv2(F.relu(self.bn2(self.conv1(active))))


def preact_blocks(inputs, features, num, stride, shortcut, raw=False):
    rest = [PreActBlock(features, features, 1, shortcut, raw) for _ in range(num - 1)]
    return nn.Sequential(PreActBlock(inputs, features, stride, shortcut, raw), *rest)


class PreActResNet(nn.Module):
    def __init__(self, channels, final_norm=False, raw=False, normalize=False, bias=True):
        super().__init__()
        if normalize:
            self.register_buffer("mu", torch.tensor(CIFAR_MEAN).view(1, 3, 1, 1))
            self.register_buffer("sigma", torch.tensor(CIFAR_STD).view(1, 3, 1, 1))
        self.conv1 = conv(3, channels[0], 3)
        for i in range(4):
            stage = preact_blocks(channels[i], channels[i + 1], 2, 2 if i else 1, "shortcut", raw)
            self.add_module(f"layer{i + 1}", stage)
        if final_norm:
            self.bn = nn.BatchNorm2d(channels[-1])
        self.linear = nn.Linear(channels[-1], 10, bias=bias)

    def forward(self, x):
        x = (x - self.mu) / self.sigma if hasattr(self, "mu") else x
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = F.relu(self.bn(x)) if hasattr(self, "bn") else x
        return self.linear(x.mean((2, 3)))


class NetworkBlock(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.layer = preact_blocks(*args, "convShortcut")

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """With the unused ``sub_block1`` of TRADES."""

    def __init__(self, channels, num):
        super().__init__()
        self.conv1 = conv(3, channels[0], 3)
        for i in range(3):
            self.add_module(f"block{i + 1}", NetworkBlock(channels[i], channels[i + 1], num, 2 if i else 1))
        self.sub_block1 = NetworkBlock(channels[0], channels[1], 1, 1)
        self.bn1, self.fc = nn.BatchNorm2d(channels[-1]), nn.Linear(channels[-1], 10)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def padded(x, stride):
    """For a convolution of size 3 and without padding of its own."""
    return F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))


class DMBlock(nn.Module):
    """Of DeepMind's wide ResNets: the shortcut, which is there if the channels change, takes the activation."""

    def __init__(self, inputs, features, stride, activation):
        super().__init__()
        self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(features)
        self.conv_0, self.conv_1 = conv(inputs, features, 3, stride, padding=0), conv(features, features, 3)
        self.shortcut = conv(inputs, features, 1, stride) if inputs != features else None
        self.stride, self.activation = stride, activation

    def forward(self, x):
        active = self.activation(self.batchnorm_0(x))
        y = self.activation(self.batchnorm_1(self.conv_0(padded(active, self.stride))))
        return self.conv_1(y) + (x if self.shortcut is None else self.shortcut(active))


class DMGroup(nn.Module):
    def __init__(self, inputs, features, num, stride, activation):
        super().__init__()
        rest = [DMBlock(features, features, 1, activation) for _ in range(num - 1)]
        self.block = nn.Sequential(DMBlock(inputs, features, stride, activation), *rest)

    def forward(self, x):
        return self.block(x)


class DMWideResNet(nn.Module):
    """As in RobustBench, the normalization is no buffer."""

    def __init__(self, channels, num, activation=F.silu):
        super().__init__()
        self.mean, self.std = (torch.tensor(each).view(3, 1, 1) for each in (CIFAR_MEAN, CIFAR_STD))
        self.init_conv = conv(3, channels[0], 3)
        groups = [DMGroup(*channels[i : i + 2], num, 2 if i else 1, activation) for i in range(3)]
        self.layer, self.activation = nn.Sequential(*groups), activation
        self.batchnorm, self.logits = nn.BatchNorm2d(channels[-1]), nn.Linear(channels[-1], 10)

    def forward(self, x):
        x = self.layer(self.init_conv((x - self.mean) / self.std))
        return self.logits(self.activation(self.batchnorm(x)).mean((2, 3)))


class DMPreActBlock(nn.Module):
    """Of DeepMind's ResNets: a 3x3 shortcut of the raw input."""

    def __init__(self, inputs, features, stride, activation):
        super().__init__()
        self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(features)
        self.conv_2d_1, self.conv_2d_2 = conv(inputs, features, 3, stride, padding=0), conv(features, features, 3)
        if stride != 1 or inputs != features:
            self.shortcut = conv(inputs, features, 3, stride, padding=0)
        self.stride, self.activation = stride, activation

    def forward(self, x):
        y = self.conv_2d_1(padded(self.activation(self.batchnorm_0(x)), self.stride))
        x = self.shortcut(padded(x, self.stride)) if hasattr(self, "shortcut") else x
        return x + self.conv_2d_2(self.activation(self.batchnorm_1(y)))


class DMPreActResNet(nn.Module):
    def __init__(self, channels, activation=F.silu):
        super().__init__()
        self.conv_2d, self.activation = conv(3, channels[0], 3), activation
        for i in range(4):
            inputs, features = channels[i : i + 2]
            first = DMPreActBlock(inputs, features, 2 if i else 1, activation)
            self.add_module(f"layer_{i}", nn.Sequential(first, DMPreActBlock(features, features, 1, activation)))
        self.batchnorm, self.logits = nn.BatchNorm2d(channels[-1]), nn.Linear(channels[-1], 10)

    def forward(self, x):
        x = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(x)))))
        return self.logits(self.activation(self.batchnorm(x)).mean((2, 3)))


class Normalize(nn.Module):
    def __init__(self):
        super().__init__()
        for name, values in (("mean", CIFAR_MEAN), ("std", CIFAR_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


class VGG(nn.Module):
    def __init__(self, channels, norm, hidden=None, positions=1):
        super().__init__()
        layers, inputs = [], 3
        for features, size in zip(channels, (2, 2, 3, 3, 3), strict=True):
            for _ in range(size):
                layers += [
                    conv(inputs, features, 3, bias=True),
                    *([nn.BatchNorm2d(features)] if norm else []),
                    nn.ReLU(),
                ]
                inputs = features
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, 10)
        if hidden:
            first, second, last = (
                nn.Linear(positions * inputs, hidden),
                nn.Linear(hidden, hidden),
                nn.Linear(hidden, 10),
            )
            self.classifier = nn.Sequential(first, nn.ReLU(), nn.Dropout(), second, nn.ReLU(), nn.Dropout(), last)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class LeNet(nn.Module):
    def __init__(self, inputs, channels):
        super().__init__()
        conv1, conv2, fc1, fc2 = channels
        self.conv1, self.conv2 = (
            conv(inputs, conv1, 5, padding=0, bias=True),
            conv(conv1, conv2, 5, padding=0, bias=True),
        )
        self.fc1, self.fc2, self.fc3 = nn.Linear(conv2 * 25, fc1), nn.Linear(fc1, fc2), nn.Linear(fc2, 10)

    def forward(self, x):
        x = F.interpolate(x, (32, 32), mode="bilinear") if x.shape[-1] == 28 else x
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class Mixed(nn.Module):
    """Of no family: convolutions with all kinds of norms and pooling, then attention."""

    def __init__(self, features=8):
        super().__init__()
        self.conv, self.norm = conv(3, features, 3, 2, bias=True), nn.BatchNorm2d(features)
        self.depthwise = nn.Conv2d(features, features, 3, padding=2, dilation=2, groups=features)
        self.group_norm, self.layer_norm = nn.GroupNorm(2, features), nn.LayerNorm(features)
        self.token = nn.Parameter(torch.randn(1, 1, features))
        self.attention = nn.MultiheadAttention(features, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(features, 2, 16, batch_first=True, activation="gelu")
        self.slope, self.linear = nn.PReLU(features), nn.Linear(features, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 3, 2, padding=1, ceil_mode=True)
        x = self.slope(x + F.silu(self.group_norm(self.depthwise(x))))
        left, right = x.chunk(2, 1)
        x = torch.cat([F.hardswish(left), F.elu(right)], 1)
        x = F.avg_pool2d(F.mish(F.pad(x, (0, 1, 0, 1))), 2, 1, padding=1, count_include_pad=False)
        x = F.interpolate(F.adaptive_avg_pool2d(F.leaky_relu(x), 3), scale_factor=2, mode="bilinear")
        tokens = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        tokens = self.layer_norm(tokens) * torch.sigmoid(tokens[:, :1])
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return self.linear(F.normalize(self.encoder(tokens)[:, 0]))


def trained_looking(network, seed=0):
    """The network in eval mode, every weight and running statistic away from its initial value, signals of order 1."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                nn.init.uniform_(value, low, high)
    return network.eval()


def random_images(shape, seed=1):
    """Four images [4, h, w, c] of bytes."""
    return np.random.default_rng(seed).integers(0, 256, (4, *shape), dtype=np.uint8)


def logits_of(network, images):
    """Logits of images [n, h, w, c] of bytes, float32."""
    pixels = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network(pixels).numpy()


def with_logits_of_order_one(network, images):
    """The network, its last layer scaled so that the largest of these images' logits is 2 in size."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    largest = np.abs(logits_of(network, images)).max()
    with torch.no_grad():
        for weights in last.parameters():
            weights *= 2 / largest
    return network


SHAPE = (32, 32, 3)
CASES = {
    "resnet18_torchvision": (lambda: ResNet((2, 2, 4, 8, 16), (2, 2, 2, 2)), SHAPE, ""),
    "resnet50_torchvision": (lambda: ResNet((2, 2, 4, 8, 16), (1, 2, 1, 1), bottleneck=True), SHAPE, ""),
    "resnet18_cifar": (
        lambda: ResNet((2, 2, 4, 8, 16), (2, 2, 2, 2), stem="cifar", shortcut="shortcut", classifier="linear"),
        SHAPE,
        "module.",
    ),
    "preact_resnet18": (lambda: PreActResNet((2, 2, 4, 8, 16)), SHAPE, ""),
    "preact_resnet18_norm": (lambda: PreActResNet((2, 2, 4, 8, 16), final_norm=True), SHAPE, "module.model."),
    "wide_resnet16": (lambda: WideResNet((16, 8, 16, 32), 2), SHAPE, "module."),
    "vgg16": (lambda: VGG((2, 4, 8, 16, 16), norm=False), SHAPE, ""),
    "vgg16_bn": (lambda: VGG((2, 4, 8, 16, 16), norm=True), SHAPE, ""),
    "vgg16_classic": (lambda: VGG((1, 2, 4, 8, 8), norm=False, hidden=64, positions=4), (64, 64, 3), ""),
    "lenet5": (lambda: LeNet(1, (3, 8, 60, 42)), (28, 28, 1), ""),
    "net62k": (lambda: LeNet(3, (3, 8, 60, 42)), SHAPE, ""),
    "preact_resnet18_raw": (
        lambda: PreActResNet((2, 2, 4, 8, 16), final_norm=True, raw=True, normalize=True),
        SHAPE,
        "model.",
    ),
    "dm_wide_resnet16": (lambda: DMWideResNet((16, 4, 8, 16), 2), SHAPE, "module."),
    "dm_preact_resnet18": (lambda: nn.Sequential(Normalize(), DMPreActResNet((2, 2, 4, 8, 16))), SHAPE, ""),
}


def encoded(value, ref):
    """Arguments of a program's step as JSON; references are ``{"ref": name}``."""
    if isinstance(value, ref):
        return {"ref": value.name}
    if isinstance(value, dict):
        return {name: encoded(each, ref) for name, each in value.items()}
    return [encoded(each, ref) for each in value] if isinstance(value, list | tuple) else value


def write_graph(name, network, shape):
    """Program, variables, images and logits of a converted network."""
    from advjax.models.torch import graph

    images = random_images(shape)
    exported, logits = graph.exported_program(network, images.astype(np.float32) / 255)
    program, variables = graph.converted(exported)
    steps = encoded([list(step) for step in program.steps], graph.Ref)
    stored = {**program._asdict(), "steps": steps, "output": program.output.name}
    arrays = {f"params/{key}": value for key, value in variables.params.items()}
    arrays |= {f"buffers/{key}": value for key, value in variables.model_state["buffers"].items()}
    np.savez_compressed(
        FOLDER / f"graph_{name}.npz", images=images, logits=logits, program=json.dumps(stored), **arrays
    )


def main(names=()):
    if not names or "mixed" in names:
        write_graph("mixed", trained_looking(Mixed()), SHAPE)
    for name, (build, shape, prefix) in CASES.items():
        if names and name not in names:
            continue
        network, images = trained_looking(build()), random_images(shape)
        state = {f"state/{prefix}{key}": value.numpy() for key, value in network.state_dict().items()}
        np.savez_compressed(FOLDER / f"torch_{name}.npz", images=images, logits=logits_of(network, images), **state)


if __name__ == "__main__":
    main(sys.argv[1:])
