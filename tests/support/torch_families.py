"""Networks at full size in PyTorch and here: what the slow tests compare and what the table of docs/pytorch.md lists.

    PYTHONPATH=tests python -m support.torch_families [name ...]

prints the rows of the table.
"""

import sys

import jax
import numpy as np

from advjax.models import blocks
from advjax.models.deepmind_resnet import DMPreActResNet18, DMWideResNet
from advjax.models.lenet import Net62k
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.resnet import ResNet18, ResNet50, ResNet101
from advjax.models.torch import from_torch, load_torch
from advjax.models.vgg import VGG16
from advjax.models.wide_resnet import WideResNet
from support.files import module_from
from support.paths import REPOSITORY

FIXTURES = REPOSITORY / "tests" / "models" / "torch_fixtures"
CHANNELS = (64, 64, 128, 256, 512)
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}
ACTIVATION, RAW = {"shortcut_input": "activation"}, {"final_norm": True, "shortcut_input": "raw", **CIFAR}
FAMILIES = {
    "resnet18": (lambda t: t.ResNet(CHANNELS, (2, 2, 2, 2)), ResNet18()),
    "resnet50": (lambda t: t.ResNet(CHANNELS, (3, 4, 6, 3), bottleneck=True, stem="cifar"), ResNet50(stem="cifar")),
    "resnet101": (lambda t: t.ResNet(CHANNELS, (3, 4, 23, 3), bottleneck=True), ResNet101()),
    "preact_resnet18": (lambda t: t.PreActResNet(CHANNELS), PreActResNet18(**ACTIVATION)),
    "preact_resnet18_raw": (
        lambda t: t.PreActResNet(CHANNELS, final_norm=True, raw=True, normalize=True),
        PreActResNet18(**RAW),
    ),
    "wide_resnet28": (lambda t: t.WideResNet((16, 160, 320, 640), 4), WideResNet()),
    "wide_resnet34": (lambda t: t.WideResNet((16, 160, 320, 640), 5), WideResNet(depth=34)),
    "dm_wide_resnet28": (lambda t: t.DMWideResNet((16, 160, 320, 640), 4), DMWideResNet(**CIFAR)),
    "dm_preact_resnet18": (lambda t: t.DMPreActResNet(CHANNELS), DMPreActResNet18()),
    "vgg16_bn": (lambda t: t.VGG(CHANNELS[1:] + CHANNELS[-1:], norm=True), VGG16(batch_norm=True)),
    "net62k": (lambda t: t.LeNet(3, (6, 16, 120, 84)), Net62k()),
}
"""Name -> (builder of the PyTorch network, given the module of the fixtures; our model)."""


def fixture(name):
    """State dict, images in [0, 1] and the logits that PyTorch gave them."""
    with np.load(FIXTURES / f"torch_{name}.npz") as file:
        state = {key.removeprefix("state/"): file[key] for key in file.files if key.startswith("state/")}
        return state, file["images"].astype(np.float32) / 255, file["logits"]


def torch_networks():
    """The module that defines the PyTorch networks; needs PyTorch."""
    return module_from(FIXTURES / "make_torch_fixtures.py")


def network_and_images(name):
    """A PyTorch network with random weights and logits of order one, and images, float32 in [0, 1]."""
    networks = torch_networks()
    images = networks.random_images((32, 32, 3))
    network = networks.trained_looking(FAMILIES[name][0](networks))
    return networks.with_logits_of_order_one(network, images), images.astype(np.float32) / 255


def largest_difference(name):
    """Of logits of the loaded and of the converted network from PyTorch's, whose largest is 2."""
    network, images = network_and_images(name)
    model = FAMILIES[name][1]
    expected = torch_networks().logits_of(network, (images * 255).round().astype(np.uint8))
    variables = load_torch(network, model, images=images)
    loaded = jax.jit(lambda variables, images: blocks.apply(model, variables, images))(variables, images)
    logits_fn, variables = from_torch(network, images)
    converted = jax.jit(logits_fn)(variables, images)
    return tuple(float(np.abs(np.asarray(found) - expected).max()) for found in (loaded, converted))


def main(names):
    for name in names or FAMILIES:
        loaded, converted = largest_difference(name)
        print(f"| {name} | {loaded:.1e} | {converted:.1e} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
