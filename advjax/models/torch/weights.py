"""Loads the weights of PyTorch networks into the models of this package.

    model = WideResNet(depth=34)
    variables = load_torch("trades.pt", model, images=images, logits=torch_logits)

The rules of ``names`` map the path of each of our parameters to a torch name; kernels and flattened features are
reordered from channels first to channels last. PyTorch itself is needed only to read its own file formats.

Names and shapes do not determine what a network computes: activations, shortcuts, and normalizations have no weights.
Therefore logits are compared with PyTorch's, and a load without this comparison warns.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath, keystr

from advjax.models.blocks import Classifier
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.torch.flattening import torch_positions
from advjax.models.torch.names import TorchNames, names_of, without_folded_biases
from advjax.models.torch.normalization import check_normalization, split_normalization
from advjax.models.torch.prefixes import refuse_unused, without_prefix
from advjax.models.torch.reading import read_weights
from advjax.models.torch.recognition import hint, recognize
from advjax.models.torch.verification import reference_from, verify
from advjax.types import Array, UserError, Variables

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# TRADES's networks contain a second copy of the first stage that is never called.
_IGNORED = "sub_block1."


def load_torch(
    source: Any,
    model: Classifier,
    image_shape: tuple[int, int, int] | None = None,
    names: TorchNames | None = None,
    *,
    prefix: str | None = None,
    images: Array | np.ndarray | None = None,
    logits: Array | np.ndarray | None = None,
    tolerance: float = 1e-4,
) -> Variables:
    """Variables with which ``model`` computes what the PyTorch network does in eval mode, logits equal to about 1e-5.

    All architectures of this package are supported, with the layouts listed in ``torch.names``: torchvision (ResNet,
    VGG with and without BatchNorm), the common CIFAR-10 variants (ResNet, ResNet9, PreActResNet, VGG), WideResNet as in
    TRADES, DeepMind's WideResNet and PreActResNet, the tutorial's LeNet, and plain layouts for the others. Others are
    converted by ``from_torch``.

    The logits are compared with PyTorch's if ``source`` is a module or if ``images`` and ``logits`` are given. Without
    this comparison, a warning says so, and what is known to be ambiguous is refused.

    Args:
      source: a ``torch.nn.Module``, a state dict (name -> array or tensor), or the path of a file with one:
        .safetensors, or .pt, .pth, .bin, .ckpt, .tar, which are read weights-only. Names may have a common prefix, such
        as "module.", "model.", or "1.". Buffers like ``mu`` and ``sigma`` or ``normalizer.mean`` and ``normalizer.std``
        must agree with the ``mean`` and ``std`` of the model.
      model: a supported architecture, or any other with ``names``. For a ``Patched`` one, load and ``graft`` the base.
      image_shape: [h, w, c] of the images, on which the first linear layer may depend; by default that of ``images``,
        or (32, 32, 3).
      names: path of a layer ("stage1/block0/conv1") -> candidate torch names ("layer1.0.conv1",).
      prefix: of the names to load, where the weights hold several networks; everything else is ignored.
      images: floating point [n, h, w, c] in [0, 1], at least two. For a module, by default eight random ones.
      logits: [n, classes], those of ``images`` that PyTorch computed in eval mode; a module computes them itself.
      tolerance: largest difference of logits that is accepted, relative to the largest logit in size.

    Raises:
      UserError: the file cannot be read; a weight is missing, unused, NaN, or has another shape; the normalization is
        not the model's; the logits differ from PyTorch's; or the weights are ambiguous and there are no logits.
      ValueError: ``images`` or ``logits`` are missing, or malformed.
    """
    if image_shape is None:
        image_shape = (32, 32, 3) if images is None else tuple(np.shape(images)[1:])  # pyright: ignore[reportAssignmentType]
    assert image_shape is not None
    reference = reference_from(source, images, logits, image_shape)
    weights, normalization = split_normalization(read_weights(source), image_shape[-1])
    variables, without_bias = _variables(weights, model, image_shape, names, prefix)
    if normalization is not None:
        check_normalization(model, normalization)
    if reference is None:
        _refuse_ambiguous(model, without_bias)
        warnings.warn(
            f"the logits of {type(model).__name__} have not been compared with PyTorch's, and names and shapes do not "
            "determine them: pass the torch module, or images and logits",
            stacklevel=2,
        )
    else:
        verify(model, variables, reference, tolerance)
    return variables


def recognize_torch(source: Any, channels: int = 3) -> Classifier:
    """The model that PyTorch weights belong to, with their normalization, as far as names and shapes tell.

    ResNet, PreActResNet18, WideResNet, DeepMind's networks, and VGG16 are recognized. What has no weights is left at
    its default: activations, shortcuts, and a normalization that is not in the weights.

    Args:
      source: as for ``load_torch``.
      channels: of the images.

    Raises:
      UserError: the file cannot be read, or the architecture is not recognized.
    """
    weights, normalization = split_normalization(read_weights(source), channels)
    model = recognize(weights)
    if model is None:
        raise UserError(
            "the architecture is not recognized: build the model and pass it to load_torch, or use from_torch"
        )
    return model if normalization is None else model.clone(mean=normalization.mean, std=normalization.std)


def _variables(
    weights: Mapping[str, np.ndarray],
    model: Classifier,
    image_shape: tuple[int, int, int],
    names: TorchNames | None,
    prefix: str | None,
) -> tuple[Variables, str | None]:
    """The variables, and the name of a linear layer without bias if there is one."""
    layer_names = names or names_of(model)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    expected = jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images)
    wanted = {path: _candidates(path, layer_names) for path, _ in jax.tree.leaves_with_path(expected)}
    own, others = without_prefix(weights, list(wanted.values()), prefix)
    own = own if names else without_folded_biases(model, own)
    positions = torch_positions(model.apply, expected, images)
    numbers = jax.tree.unflatten(jax.tree.structure(expected), range(len(jax.tree.leaves(expected))))
    used: dict[str, np.ndarray] = {}
    without_bias: list[str] = []

    def leaf(path: KeyPath, shape: jax.ShapeDtypeStruct, number: int) -> jax.Array:
        found = [name for name in wanted[path] if name in own]
        if not found:
            layer = _linear_without_bias(wanted[path], own)
            if layer is None:
                raise UserError(
                    f"the weights have no {' or '.join(wanted[path])}: they do not belong to this {_name(model)}"
                )
            without_bias.append(layer)
            return jnp.zeros(shape.shape, shape.dtype)
        used[found[0]] = value = own[found[0]]
        if value.shape != _torch_shape(shape.shape):
            raise UserError(
                f"{found[0]} has shape {value.shape}, but this {_name(model)} has {_torch_shape(shape.shape)} "
                f"for images of shape {tuple(image_shape)}"
            )
        return jnp.asarray(_converted(value, positions.get(number)), shape.dtype)

    try:
        variables = dict(jax.tree.map_with_path(leaf, expected, numbers))
        unused = [name for name in own if name not in used and not name.startswith(_IGNORED)]
        refuse_unused([*unused, *others], {**others, **own}, used, _name(model))
    except UserError as error:
        raise UserError(f"{error}{hint(model, weights)}") from None
    return Variables(variables.pop("params"), variables), without_bias[0] if without_bias else None


def _candidates(path: KeyPath, names: TorchNames) -> Sequence[str]:
    """Torch names of a leaf of our variables."""
    _, *layers, kind = keystr(path, simple=True, separator="/").split("/")
    layers[0] = layers[0].removeprefix("block_")
    return [f"{name}.{_LEAVES[kind]}" for name in names("/".join(layers))]


def _linear_without_bias(candidates: Sequence[str], weights: Mapping[str, np.ndarray]) -> str | None:
    """The linear layer whose bias this is, if it has weights only."""
    layers = [name.removesuffix(".bias") for name in candidates if name.endswith(".bias")]
    return next((layer for layer in layers if np.ndim(weights.get(f"{layer}.weight", 0)) == 2), None)


def _refuse_ambiguous(model: Classifier, without_bias: str | None) -> None:
    advice = "pass the torch module, or images and logits, to check it"
    if isinstance(model, PreActResNet18) and model.shortcut_input is None:
        raise UserError(
            "PreActResNet18 exists with the same names and shapes in two forms, whose projection shortcuts take the "
            "activation (pytorch-cifar) or the raw input (fast_adversarial; Wong2020Fast and Andriushchenko2020 in "
            f"RobustBench): build it with shortcut_input='activation' or 'raw', or {advice}"
        )
    if without_bias is not None:
        raise UserError(
            f"{without_bias} has no bias; such layers are often applied to normalized features with normalized "
            f"weights, which nothing in the file shows: {advice}, or add {without_bias}.bias = 0 if it is linear"
        )


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
