"""Recognizes architectures by the names and shapes of PyTorch weights, and knows which of them look alike."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from advjax.models.blocks import Classifier
from advjax.models.deepmind_resnet import DMPreActResNet18, DMWideResNet
from advjax.models.preact_resnet import SHORTCUT_INPUTS, PreActResNet18
from advjax.models.resnet import EXPANSION, ResNet18, ResNet50, ResNet101
from advjax.models.vgg import STAGE_SIZES, VGG16
from advjax.models.wide_resnet import WideResNet

Weights = Mapping[str, np.ndarray]
_NOT_IN_WEIGHTS = ("mean", "std", "activation", "shortcut_input", "padding", "axis_name")


def recognize(weights: Weights) -> Classifier | None:
    """The model that PyTorch weights belong to, by their names and shapes, or None.

    Args:
      weights: by name, with any prefix.
    """
    for ending, build in _FAMILIES.items():
        for name in weights:
            if name == ending or name.endswith(f".{ending}"):
                prefix = name.removesuffix(ending)
                own = {each.removeprefix(prefix): value for each, value in weights.items() if each.startswith(prefix)}
                try:
                    if model := build(own):
                        return model
                except (KeyError, ValueError, IndexError):  # Names are missing: not this family.
                    continue
    return None


def describe(model: Classifier, without: Sequence[str] = ()) -> str:
    """The call that builds a model, with the attributes that differ from the defaults.

    Args:
      model: to describe.
      without: attributes to leave out.
    """
    changed = [
        f"{field.name}={_plain(getattr(model, field.name))!r}"
        for field in dataclasses.fields(model)
        if field.name not in ("parent", "name", *without) and getattr(model, field.name) != field.default
    ]
    return f"{type(model).__name__}({', '.join(changed)})"


def hint(model: Classifier, weights: Weights) -> str:
    """What the weights look like, for an error message; empty if it is this model, as far as names and shapes tell."""
    found = recognize(weights)
    if found is None or describe(found, _NOT_IN_WEIGHTS) == describe(model, _NOT_IN_WEIGHTS):
        return ""
    return f"; they look like {describe(found)}"


def lookalikes(model: Classifier) -> list[Classifier]:
    """Other models whose weights have the same names and shapes."""
    if isinstance(model, PreActResNet18):
        used = model.shortcut_input or "activation"
        return [model.clone(shortcut_input=other) for other in SHORTCUT_INPUTS if other != used]
    if isinstance(model, DMWideResNet):
        return [model.clone(activation={"silu": "relu", "relu": "silu"}[model.activation])]
    if isinstance(model, DMPreActResNet18):
        options = [(a, b) for a in ("silu", "relu") for b in SHORTCUT_INPUTS]
        clones = [model.clone(activation=activation, shortcut_input=shortcut) for activation, shortcut in options]
        return [clone for clone in clones if clone != model]
    return []


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _outputs(weights: Weights, *names: str) -> int:
    return len(next(weights[name] for name in names if name in weights))


def _size(weights: Weights, stage: str) -> int:
    """Number of blocks of a stage, whose names are ``stage.0``, ``stage.1``, ..."""
    return len({match[1] for name in weights if (match := re.match(rf"{re.escape(stage)}\.(\d+)\.", name))})


def _stages(weights: Weights, template: str) -> tuple[int, ...]:
    return tuple(_size(weights, template.format(i)) for i in range(4))


def _wide_resnet(weights: Weights) -> Classifier:
    depth = 6 * _size(weights, "block1.layer") + 4
    width = _outputs(weights, "block1.layer.0.conv1.weight") / 16
    return WideResNet(depth=depth, width=width, num_classes=_outputs(weights, "fc.weight"))


def _dm_wide_resnet(weights: Weights) -> Classifier:
    depth = 6 * _size(weights, "layer.0.block") + 4
    width = _outputs(weights, "layer.0.block.0.conv_0.weight") / 16
    return DMWideResNet(depth=depth, width=width, num_classes=_outputs(weights, "logits.weight"))


def _dm_preact_resnet(weights: Weights) -> Classifier:
    return DMPreActResNet18(
        stage_sizes=_stages(weights, "layer_{}"),
        width=_outputs(weights, "conv_2d.weight") / 64,
        num_classes=_outputs(weights, "logits.weight"),
    )


def _resnet(weights: Weights) -> Classifier | None:
    """ResNet, or, without a BatchNorm in the stem, PreActResNet18."""
    sizes = tuple(_size(weights, f"layer{i}") for i in range(1, 5))
    classes, stem = _outputs(weights, "fc.weight", "linear.weight"), weights["conv1.weight"]
    if "bn1.weight" not in weights:
        final_norm = "bn.weight" in weights
        model = PreActResNet18(width=len(stem) / 64, num_classes=classes, final_norm=final_norm)
        return model if sizes == (2, 2, 2, 2) else None
    bottleneck = "layer1.0.conv3.weight" in weights
    kind = {3: "cifar", 7: "imagenet"}[stem.shape[-1]]
    last = _outputs(weights, f"layer4.0.conv{3 if bottleneck else 2}.weight")
    width = last / (512 * (EXPANSION if bottleneck else 1))
    for family in (ResNet18, ResNet50, ResNet101):
        if (tuple(family.stage_sizes), family.bottleneck) == (sizes, bottleneck):
            return family(stem=kind, width=width, num_classes=classes)
    return ResNet18(stem=kind, stage_sizes=sizes, bottleneck=bottleneck, width=width, num_classes=classes)


def _vgg(weights: Weights) -> Classifier | None:
    convs = [name for name, value in weights.items() if name.startswith("features.") and value.ndim == 4]
    names = ("classifier.6.weight", "classifier.weight", "linear.weight", "fc.weight")
    classes = _outputs(weights, *names)
    model = VGG16(
        batch_norm="features.1.running_mean" in weights,
        head="classic" if names[0] in weights else "linear",
        width=_outputs(weights, "features.0.weight") / 64,
        num_classes=classes,
    )
    return model if len(convs) == sum(STAGE_SIZES) else None


_FAMILIES = {
    "block1.layer.0.conv1.weight": _wide_resnet,
    "layer.0.block.0.conv_0.weight": _dm_wide_resnet,
    "layer_0.0.conv_2d_1.weight": _dm_preact_resnet,
    "layer1.0.conv1.weight": _resnet,
    "features.0.weight": _vgg,
}
"""Name of a weight -> builder of the architecture that has it."""
