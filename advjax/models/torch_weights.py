"""Weights of PyTorch networks in the models of this package.

    model = WideResNet(depth=34)
    variables = load_torch("trades.pt", model)

Every parameter of ours has one torch name, which the family's rules derive from its path; kernels and flattened
features are reordered from channels first to channels last.  PyTorch is needed only to read its own files.
"""

import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath, keystr

from advjax.models.blocks import Classifier
from advjax.models.flattening import torch_positions
from advjax.models.lenet import Net62k
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.resnet import ResNet18
from advjax.models.vgg import STAGE_SIZES, VGG16
from advjax.models.wide_resnet import WideResNet
from advjax.types import UserError, Variables

TorchNames: TypeAlias = Callable[[str], Sequence[str]]
"""Path of a layer of ours, as "stage1/block0/conv1" -> the names torch code has for it, the first found counts."""

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_PREFIX = re.compile(r"^(?:(?:module|model)\.)+")
# TRADES' networks carry a second first stage that they never call.
_IGNORED = re.compile(r"(?:^|\.)num_batches_tracked$|^sub_block1\.")
_NESTED = ("state_dict", "model_state_dict", "model", "net")
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")


def load_torch(
    source: str | os.PathLike[str] | Mapping[str, Any],
    model: Classifier,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    names: TorchNames | None = None,
) -> Variables:
    """Variables with which ``model`` computes what the PyTorch network does in eval mode, logits equal to about 1e-5.

    Known are the names of torchvision (ResNet, VGG, with and without BatchNorm), of the usual CIFAR-10 versions
    (ResNet, PreActResNet, VGG), of WideResNet as in TRADES, and of the tutorial's LeNet.  Normalisation is an attribute
    of our model: give it the ``mean`` and ``std`` that the PyTorch network was trained with.

    Args:
      source: a state dict (name -> array or tensor) or the path of a file with one: .safetensors, or .pt, .pth, .bin,
        .ckpt, .tar, which are read weights-only.  Leading "module." and "model." are dropped from its names.
      model: a ``Net62k``, ``LeNet5``, ResNet, ``PreActResNet18``, ``WideResNet`` or ``VGG16``; or any other, with
        ``names``.  For a ``Patched`` one load its base and ``graft``.
      image_shape: [h, w, c] of the images, on which the first linear layer may depend.
      names: path of a layer ("stage1/block0/conv1") -> candidates for its torch name ("layer1.0.conv1",).

    Raises:
      UserError: the file cannot be read, or a name is missing, is there without use, or has another shape.
    """
    weights = _stripped(source if isinstance(source, Mapping) else _read(os.fspath(source)))
    names = names or _names_of(model)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    expected = jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images)
    positions = torch_positions(model.apply, expected, images)
    numbers = jax.tree.unflatten(jax.tree.structure(expected), range(len(jax.tree.leaves(expected))))
    used = set()

    def leaf(path: KeyPath, wanted: jax.ShapeDtypeStruct, number: int) -> jax.Array:
        _, *layers, kind = keystr(path, simple=True, separator="/").split("/")
        layers[0] = layers[0].removeprefix("block_")
        candidates = [f"{name}.{_LEAVES[kind]}" for name in names("/".join(layers))]
        found = [name for name in candidates if name in weights]
        if not found:
            raise UserError(f"the weights have no {' or '.join(candidates)}: they are not those of this {_name(model)}")
        used.add(found[0])
        value, shape = weights[found[0]], _torch_shape(wanted.shape)
        if value.shape != shape:
            raise UserError(
                f"{found[0]} has shape {value.shape}, but this {_name(model)} has {shape} "
                f"for images of shape {tuple(image_shape)}"
            )
        return jnp.asarray(_converted(value, positions.get(number)), wanted.dtype)

    variables = dict(jax.tree.map_with_path(leaf, expected, numbers))
    if unused := [name for name in weights if name not in used]:
        raise UserError(f"{unused[0]} is in the weights but not in this {_name(model)}; remove it if it is of no use")
    return Variables(variables.pop("params"), variables)


def _torch_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a layer's array, which is HWIO or [inputs, outputs] with us and OIHW or [outputs, inputs] there."""
    return (*reversed(shape[-2:]), *shape[:-2]) if len(shape) > 1 else tuple(shape)


def _converted(value: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
    """Our order of a layer's array; ``positions`` of its inputs in PyTorch, if they are flattened features."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if positions is None else value[:, positions].T


# --- the names of each family ----------------------------------------------------------------------------------------


def _by_rules(*rules: tuple[str, Sequence[str]]) -> TorchNames:
    """Rules (regular expression of the whole path, templates of names)."""

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


def _vgg(model: VGG16) -> TorchNames:
    """Layers are numbered there: convolution, BatchNorm if any and ReLU for every convolution, a pooling per stage."""
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


def _names_of(model: Classifier) -> TorchNames:
    families = {Net62k: _LENET, ResNet18: _RESNET, PreActResNet18: _PREACT_RESNET, WideResNet: _WIDE_RESNET}
    if isinstance(model, VGG16):
        return _vgg(model)
    for family, names in families.items():
        if isinstance(model, family):
            return names
    known = ", ".join(family.__name__ for family in (*families, VGG16))
    raise UserError(f"no torch names are known for {_name(model)}, only for {known} and subclasses: give names")


def _name(model: Classifier) -> str:
    return type(model).__name__


# --- reading ---------------------------------------------------------------------------------------------------------


def _stripped(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by names without prefixes, and without entries that mean nothing."""
    stripped = {}
    for full, value in weights.items():
        name = _PREFIX.sub("", full)
        if name in stripped:
            raise UserError(f"the weights have {name} twice, with different prefixes; remove one")
        if not _IGNORED.search(name):
            stripped[name] = np.asarray(value.detach().cpu().float().numpy() if hasattr(value, "detach") else value)
    return stripped


def _read(path: str) -> Mapping[str, Any]:
    if not os.path.isfile(path):
        raise UserError(f"no file {path}")
    suffix = os.path.splitext(path)[1]
    if suffix != ".safetensors" and suffix not in _TORCH_SUFFIXES:
        raise UserError(f"{path}: weights are read from .safetensors, {', '.join(_TORCH_SUFFIXES)}, not {suffix!r}")
    try:
        return _read_safetensors(path) if suffix == ".safetensors" else _read_torch(path)
    except ImportError as error:
        raise UserError(
            f"{path}: reading {suffix} files needs {error.name}: pip install 'advjax[torch-weights]'"
        ) from error


def _read_safetensors(path: str) -> Mapping[str, Any]:
    from safetensors import SafetensorError  # pyright: ignore[reportMissingImports]
    from safetensors.numpy import load_file  # pyright: ignore[reportMissingImports]

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: {error}") from error


def _read_torch(path: str) -> Mapping[str, Any]:
    import torch  # pyright: ignore[reportMissingImports]

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} holds no plain weights; save the network's state_dict() alone") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    return next((loaded[name] for name in _NESTED if isinstance(loaded.get(name), Mapping)), loaded)
