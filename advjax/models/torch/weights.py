"""Loads the weights of PyTorch networks into the models of this package.

    model = WideResNet(depth=34)
    variables = load_torch("trades.pt", model)

The rules of ``names`` map the path of each of our parameters to a torch name; kernels and flattened features are
reordered from channels first to channels last. PyTorch itself is needed only to read its own file formats.
"""

import os
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath, keystr

from advjax.models.blocks import Classifier
from advjax.models.torch.flattening import torch_positions
from advjax.models.torch.names import TorchNames, names_of, without_folded_biases
from advjax.types import UserError, Variables

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_PREFIX = re.compile(r"^(?:(?:module|model)\.)+")
# TRADES's networks contain a second copy of the first stage that is never called.
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

    All architectures of this package are supported, with the layouts listed in ``torch.names``: torchvision (ResNet,
    VGG with and without BatchNorm), the common CIFAR-10 variants (ResNet, ResNet9, PreActResNet, VGG), WideResNet as in
    TRADES, the tutorial's LeNet, and plain layouts for the others. Normalization is an attribute of our model: set the
    ``mean`` and ``std`` that the PyTorch network was trained with.

    Args:
      source: a state dict (name -> array or tensor) or the path of a file with one: .safetensors, or .pt, .pth, .bin,
        .ckpt, .tar, which are read weights-only. Leading "module." and "model." are removed from the names.
      model: a supported architecture, or any other with ``names``. For a ``Patched`` one, load and ``graft`` the base.
      image_shape: [h, w, c] of the images, on which the first linear layer may depend.
      names: path of a layer ("stage1/block0/conv1") -> candidate torch names ("layer1.0.conv1",).

    Raises:
      UserError: the file cannot be read, or a weight is missing, unused, NaN or infinite, or has another shape.
    """
    weights = _stripped(source if isinstance(source, Mapping) else _read(os.fspath(source)))
    weights = weights if names else without_folded_biases(model, weights)
    names = names or names_of(model)
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
            raise UserError(f"the weights have no {' or '.join(candidates)}: they do not belong to this {_name(model)}")
        used.add(found[0])
        value, shape = weights[found[0]], _torch_shape(wanted.shape)
        if value.shape != shape:
            raise UserError(
                f"{found[0]} has shape {value.shape}, but this {_name(model)} has {shape} "
                f"for images of shape {tuple(image_shape)}"
            )
        if not np.all(np.isfinite(value)):
            raise UserError(f"{found[0]} has entries that are NaN or infinite: the network diverged in training")
        return jnp.asarray(_converted(value, positions.get(number)), wanted.dtype)

    variables = dict(jax.tree.map_with_path(leaf, expected, numbers))
    if unused := [name for name in weights if name not in used]:
        raise UserError(f"{unused[0]} is in the weights but not in this {_name(model)}; remove it if it is unused")
    return Variables(variables.pop("params"), variables)


def _torch_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Torch's shape (OIHW or [outputs, inputs]) of one of our arrays (HWIO or [inputs, outputs])."""
    return (*reversed(shape[-2:]), *shape[:-2]) if len(shape) > 1 else tuple(shape)


def _converted(value: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
    """A torch array in our order; ``positions`` are PyTorch's positions of inputs that are flattened features."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if positions is None else value[:, positions].T


def _name(model: Classifier) -> str:
    return type(model).__name__


# --- reading ---------------------------------------------------------------------------------------------------------


def _stripped(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by name, without prefixes and without irrelevant entries."""
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
        raise UserError(f"{path} does not exist")
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
        raise UserError(f"{path} is not a safetensors file: {error}") from error


def _read_torch(path: str) -> Mapping[str, Any]:
    import torch  # pyright: ignore[reportMissingImports]

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)  # pyright: ignore[reportAttributeAccessIssue]
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} does not contain plain weights; save only the network's state_dict()") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} contains a {type(loaded).__name__}, not a state dict")
    return next((loaded[name] for name in _NESTED if isinstance(loaded.get(name), Mapping)), loaded)
