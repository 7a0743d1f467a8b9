"""PyTorch layer names for each architecture.

One layout is supported for each, the most common one if there is one:

* ``Net62k``, ``LeNet5``: the tutorial's, conv1, conv2, fc1, fc2, fc3.
* ``ResNet18`` to ``ResNet101``: torchvision's, or its variant for CIFAR-10 with "shortcut" and "linear".
* ``PreActResNet18``: the usual one for CIFAR-10. ``WideResNet``: that of TRADES. ``VGG16``: torchvision's.
* ``DMWideResNet``, ``DMPreActResNet18``: DeepMind's, with "batchnorm" and "logits", as in RobustBench.
* ``ResNet9``: conv1 to conv4, each ``Sequential(Conv2d, BatchNorm2d, ReLU)`` and perhaps a pooling, res1 and res2, each
  a ``Sequential`` of two of these, and ``classifier``, a ``Sequential`` whose third or fourth entry is linear. The
  best-known one pools in conv3 and therefore is ``ResNet9(pool3=True)``. Its convolutions may have biases.
* ``ResNet20v1``: conv1, bn1, layer1 to layer3 of blocks with conv1, bn1, conv2, bn2, where the shape changes "shortcut"
  or "downsample", and linear or fc; as in Keras, all convolutions with bias, those of stride 2 padded with one row and
  column at the end alone where the kernel is 3x3, and ``BatchNorm2d(eps=1e-3)``.
* ``Custom1``, ``CustomCifar``: conv1 to conv3, ``padding="same"``, fc1, fc2.
* ``Custom2``: conv1 (stride 2, padding 3), conv2 (stride 2), conv3, and fc or fc1.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from advjax.models.blocks import Classifier
from advjax.models.custom_cnn import Custom1, Custom2
from advjax.models.deepmind_resnet import DMPreActResNet18, DMWideResNet
from advjax.models.keras_resnet import ResNet20v1
from advjax.models.lenet import Net62k
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.resnet import ResNet18
from advjax.models.resnet9 import ResNet9
from advjax.models.vgg import STAGE_SIZES, VGG16
from advjax.models.wide_resnet import WideResNet
from advjax.types import UserError

TorchNames: TypeAlias = Callable[[str], Sequence[str]]
"""Path of one of our layers, such as "stage1/block0/conv1" -> candidate torch names; the first found is used."""


def _by_rules(*rules: tuple[str, Sequence[str]]) -> TorchNames:
    """Rules: (regular expression for the full path, templates of names)."""

    def names(path: str) -> Sequence[str]:
        for expression, templates in rules:
            if match := re.fullmatch(expression, path):
                return [match.expand(template) for template in templates]
        raise ValueError(f"no rule gives a torch name for {path}")

    return names


_LENET = _by_rules(
    (r"(conv\d)/conv", [r"\1"]),
    (r"(fc\d)/dense", [r"\1"]),
    (r"head/dense", ["fc3"]),
)
_RESNET = _by_rules(
    (r"stem/conv1/conv", ["conv1"]),
    (r"stem/conv1/norm", ["bn1"]),
    (r"stage(\d)/block(\d+)/conv(\d)/conv", [r"layer\1.\2.conv\3"]),
    (r"stage(\d)/block(\d+)/conv(\d)/norm", [r"layer\1.\2.bn\3"]),
    (r"stage(\d)/block(\d+)/shortcut/conv", [r"layer\1.\2.downsample.0", r"layer\1.\2.shortcut.0"]),
    (r"stage(\d)/block(\d+)/shortcut/norm", [r"layer\1.\2.downsample.1", r"layer\1.\2.shortcut.1"]),
    (r"head/dense", ["fc", "linear"]),
)
_PREACT_RESNET = _by_rules(
    (r"stem/conv", ["conv1"]),
    (r"stage(\d)/block(\d+)/conv(\d)", [r"layer\1.\2.conv\3"]),
    (r"stage(\d)/block(\d+)/norm(\d)", [r"layer\1.\2.bn\3"]),
    (r"stage(\d)/block(\d+)/shortcut", [r"layer\1.\2.shortcut.0"]),
    (r"head/norm", ["bn"]),
    (r"head/dense", ["linear", "fc"]),
)
_WIDE_RESNET = _by_rules(
    (r"stem/conv", ["conv1"]),
    (r"stage(\d)/block(\d+)/conv(\d)", [r"block\1.layer.\2.conv\3"]),
    (r"stage(\d)/block(\d+)/norm(\d)", [r"block\1.layer.\2.bn\3"]),
    (r"stage(\d)/block(\d+)/shortcut", [r"block\1.layer.\2.convShortcut"]),
    (r"head/norm", ["bn1"]),
    (r"head/dense", ["fc"]),
)


def _deepmind(convs: str, stem: str, block: str, first_conv: int) -> TorchNames:
    """DeepMind's layers, which are numbered from 0: stages and BatchNorms always, convolutions from ``first_conv``."""

    def names(path: str) -> Sequence[str]:
        if fixed := {"stem/conv": stem, "head/norm": "batchnorm", "head/dense": "logits"}.get(path):
            return [fixed]
        stage, index, layer = path.split("/")
        prefix = block.format(int(stage.removeprefix("stage")) - 1, index.removeprefix("block"))
        if layer == "shortcut":
            return [f"{prefix}.shortcut"]
        number = int(layer[-1]) - 1
        return [
            f"{prefix}.batchnorm_{number}" if layer.startswith("norm") else f"{prefix}.{convs}{number + first_conv}"
        ]

    return names


_DM_WIDE_RESNET = _deepmind("conv_", "init_conv", "layer.{}.block.{}", 0)
_DM_PREACT_RESNET = _deepmind("conv_2d_", "conv_2d", "layer_{}.{}", 1)
_RESNET9 = _by_rules(
    (r"(conv\d)(?:/conv_block)?/conv", [r"\1.0"]),
    (r"(conv\d)(?:/conv_block)?/norm", [r"\1.1"]),
    (r"(res\d)/first/conv", [r"\1.0.0"]),
    (r"(res\d)/first/norm", [r"\1.0.1"]),
    (r"(res\d)/second/conv", [r"\1.1.0"]),
    (r"(res\d)/second/norm", [r"\1.1.1"]),
    (r"head/dense", ["classifier.2", "classifier.3"]),
)
_RESNET20V1 = _by_rules(
    (r"stem/conv1/conv", ["conv1"]),
    (r"stem/conv1/norm", ["bn1"]),
    (r"stage(\d)/block(\d)_conv(\d)/conv", [r"layer\1.\2.conv\3"]),
    (r"stage(\d)/block(\d)_conv(\d)/norm", [r"layer\1.\2.bn\3"]),
    (
        r"stage(\d)/block(\d)_shortcut",
        [rf"layer\1.\2.{name}{entry}" for name in ("shortcut", "downsample") for entry in ("", ".0")],
    ),
    (r"head/dense", ["linear", "fc"]),
)
_CUSTOM1 = _by_rules((r"(conv\d)/conv", [r"\1"]), (r"hidden/dense", ["fc1"]), (r"head/dense", ["fc2"]))
_CUSTOM2 = _by_rules((r"(conv\d)/conv", [r"\1"]), (r"head/dense", ["fc", "fc1"]))
_FAMILIES = {
    Net62k: _LENET,
    ResNet18: _RESNET,
    PreActResNet18: _PREACT_RESNET,
    # Before WideResNet, of which it is a subclass.
    DMWideResNet: _DM_WIDE_RESNET,
    DMPreActResNet18: _DM_PREACT_RESNET,
    WideResNet: _WIDE_RESNET,
    ResNet9: _RESNET9,
    ResNet20v1: _RESNET20V1,
    Custom1: _CUSTOM1,
    Custom2: _CUSTOM2,
}


def _vgg(model: VGG16) -> TorchNames:
    """Layers are numbered: convolution, BatchNorm if any, and ReLU for every convolution; one pooling per stage."""
    per_conv = 3 if model.batch_norm else 2
    classifier = {"fc1": ["classifier.0"], "fc2": ["classifier.3"]}
    classifier["head"] = ["classifier.6"] if model.head == "classic" else ["classifier", "linear", "fc"]

    def names(path: str) -> Sequence[str]:
        block, layer = path.split("/")
        if block in classifier:
            return classifier[block]
        stage, position = int(block.removeprefix("stage")) - 1, int(layer[4:])
        start = sum(per_conv * size + 1 for size in STAGE_SIZES[:stage])
        return [f"features.{start + per_conv * position + layer.startswith('norm')}"]

    return names


def names_of(model: Classifier) -> TorchNames:
    """The torch names for the architecture of a model.

    Raises:
      UserError: the architecture is not supported.
    """
    if isinstance(model, VGG16):
        return _vgg(model)
    for family, names in _FAMILIES.items():
        if isinstance(model, family):
            return names
    known = ", ".join(family.__name__ for family in (*_FAMILIES, VGG16))
    raise UserError(
        f"no torch names are known for {type(model).__name__}, only for {known}, and subclasses: pass names"
    )


def without_folded_biases(model: Classifier, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Folds the biases of ``ResNet9``'s convolutions, which ours lacks, into the BatchNorm means that follow.

    ``conv + bias - mean`` equals ``conv - (mean - bias)``.
    """
    folded = dict(weights)
    if isinstance(model, ResNet9):
        for name in weights:
            mean = name.removesuffix(".0.bias") + ".1.running_mean"
            if name.endswith(".0.bias") and mean in weights:
                folded[mean] = weights[mean] - folded.pop(name)
    return folded
