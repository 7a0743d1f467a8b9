"""The networks of the benchmark, their weights, and the images; `torch_twins` has the same in torch."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from advjax.attacks.flop_count import flop_count
from advjax.models.blocks import apply, init
from advjax.models.layers import ImageClassifier, global_average_pool
from advjax.models.lenet import LeNet5
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.resnet import ResNet18
from advjax.models.resnet9 import ResNet9
from advjax.models.wide_resnet import WideResNet
from advjax.runtime.files import read_npz
from advjax.types import Array, LogitsFn, PyTree, UserError, Variables

LAYOUT = ("NHWC", "HWIO", "NHWC")
CIFAR_STRIDES = (2, 1, 2, 1)


class Network(NamedTuple):
    """A network with its weights, and the images to attack."""

    name: str
    forward: Callable[[PyTree, Array], Array]
    """``(variables, images) -> logits``."""
    variables: PyTree
    images: np.ndarray
    """float32 [n, h, w, c] in [0, 1]."""
    labels: np.ndarray
    """int32 [n]."""
    epsilon: float
    width: float = 1.0
    """Channel multiplier; relative to the published network."""


def mnist_cnn(weights: Mapping[str, Array], images: Array) -> Array:
    """[conv 5x5, ReLU, max-pool 2] twice, dense, ReLU, dense: 16 and 32 channels, 100 hidden units."""
    x = images
    for i in (1, 2):
        x = nn.max_pool(jax.nn.relu(_conv(weights, i, x, stride=1, padding=2)), (2, 2), (2, 2))
    x = x.reshape(len(x), -1)
    x = jax.nn.relu(x @ weights["fc1_kernel"] + weights["fc1_bias"])
    return x @ weights["fc2_kernel"] + weights["fc2_bias"]


def cifar_cnn(weights: Mapping[str, Array], images: Array) -> Array:
    """Normalization, [conv 3x3, ReLU] with strides 2, 1, 2, 1, global average pooling, dense: 32 to 80 channels."""
    x = (images - weights["input_mean"]) / weights["input_std"]
    for i, stride in enumerate(CIFAR_STRIDES, 1):
        x = jax.nn.relu(_conv(weights, i, x, stride=stride, padding=1))
    return global_average_pool(x) @ weights["fc_kernel"] + weights["fc_bias"]


def _conv(weights, number, x, *, stride, padding):
    pads = [(padding, padding)] * 2
    y = lax.conv_general_dilated(x, weights[f"conv{number}_kernel"], (stride, stride), pads, dimension_numbers=LAYOUT)
    return y + weights[f"conv{number}_bias"]


SMALL = {"mnist_cnn": mnist_cnn, "cifar_cnn": cifar_cnn}
SHAPES = {
    "mnist_cnn": {
        "conv1_kernel": (5, 5, 1, 16),
        "conv2_kernel": (5, 5, 16, 32),
        "fc1_kernel": (1568, 100),
        "fc2_kernel": (100, 10),
    },
    "cifar_cnn": {
        "conv1_kernel": (3, 3, 3, 32),
        "conv2_kernel": (3, 3, 32, 56),
        "conv3_kernel": (3, 3, 56, 80),
        "conv4_kernel": (3, 3, 80, 80),
        "fc_kernel": (80, 10),
    },
}
LARGE: dict[str, Callable[..., ImageClassifier]] = {
    "lenet5": LeNet5,
    "resnet9": ResNet9,
    "preact_resnet18": PreActResNet18,
    "resnet18": functools.partial(ResNet18, stem="cifar"),
    "wide_resnet_28_10": WideResNet,
}
IMAGE_SHAPES = dict.fromkeys((*SMALL, *LARGE), (32, 32, 3)) | dict.fromkeys(("mnist_cnn", "lenet5"), (28, 28, 1))
EPSILONS = {"mnist_cnn": 0.25, "cifar_cnn": 8 / 255}
UNBREAKABLE = 1e-6
"""Epsilon for random weights: no attack succeeds, so every stage of an ensemble runs in full on every image."""


def random_weights(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """He-initialized kernels, zero biases and identity normalization."""
    rng = np.random.default_rng(seed)
    weights = {}
    for kernel, shape in SHAPES[name].items():
        scale = math.sqrt(2 / math.prod(shape[:-1]))
        weights[kernel] = rng.normal(scale=scale, size=shape).astype(np.float32)
        weights[kernel.replace("kernel", "bias")] = np.zeros(shape[-1], np.float32)
    if name == "cifar_cnn":
        weights |= {"input_mean": np.zeros(3, np.float32), "input_std": np.ones(3, np.float32)}
    return weights


def load_weights(name: str, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads weights from an npz file: biases and kernels named as in ``SHAPES``, in HWIO or (in, out) layout.

    Raises:
      UserError: the file cannot be read, or a weight of the network is missing.
    """
    weights = {key: value.astype(np.float32) for key, value in _arrays(path, "--weights").items()}
    missing = sorted(set(random_weights(name)) - set(weights))
    if missing:
        raise UserError(f"--weights {os.fspath(path)} has no {', '.join(missing)}: it does not fit {name}")
    return weights


def _arrays(path: str | os.PathLike, flag: str) -> dict[str, np.ndarray]:
    try:
        return read_npz(path, f"give another file with {flag}")
    except FileNotFoundError:
        raise UserError(f"{flag}: there is no file {os.fspath(path)}") from None


def load_images(path: str | os.PathLike, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the first ``count`` of ``images`` (uint8, or float in [0, 1]) and ``labels`` from an npz file.

    Raises:
      UserError: the file cannot be read, or an array is missing.
    """
    stored = _arrays(path, "--images")
    if missing := {"images", "labels"} - set(stored):
        raise UserError(
            f"--images {os.fspath(path)} has no {', '.join(sorted(missing))}: it must contain images and labels"
        )
    images, labels = stored["images"][:count], stored["labels"][:count].astype(np.int32)
    scale = 255 if images.dtype == np.uint8 else 1
    return images.astype(np.float32) / scale, labels


def make_network(
    name: str,
    count: int,
    *,
    weights: str | None = None,
    images: str | None = None,
    epsilon: float | None = None,
    width: float = 1.0,
) -> Network:
    """The named network with ``count`` images; weights and images are random unless files are given.

    Random images are labeled with the network's own predictions.

    Raises:
      UserError: an unknown network, or a file that does not fit it.
    """
    if name not in IMAGE_SHAPES:
        raise UserError(f"--network must be one of {', '.join(IMAGE_SHAPES)}, got {name}")
    forward, variables = _forward_and_variables(name, weights, width)
    if images is not None:
        pixels, labels = load_images(images, count)
        if pixels.shape[1:] != IMAGE_SHAPES[name]:
            raise UserError(f"--images must have shape {IMAGE_SHAPES[name]} for {name}, got {pixels.shape[1:]}")
    else:
        pixels = np.random.default_rng(1).random((count, *IMAGE_SHAPES[name]), np.float32)
        labels = predict(forward, variables, pixels)
    if epsilon is None:
        epsilon = UNBREAKABLE if weights is None else EPSILONS[name]
    return Network(name, forward, variables, pixels, labels, epsilon, width)


def _forward_and_variables(
    name: str, weights: str | None, width: float
) -> tuple[Callable[[Any, Array], Array], PyTree]:
    if name in SMALL:
        return SMALL[name], random_weights(name) if weights is None else load_weights(name, weights)
    if weights is not None:
        raise UserError(f"--weights is supported for {' and '.join(SMALL)} only, got --network {name}")
    model = large_model(name, width)
    variables = _with_statistics(init(model, jax.random.key(0), IMAGE_SHAPES[name]))
    return lambda variables, images: apply(model, variables, images), variables


def large_model(name: str, width: float) -> ImageClassifier:
    """One of ``LARGE``; ``width`` multiplies its usual number of channels."""
    usual = 10.0 if name == "wide_resnet_28_10" else 1.0
    return LARGE[name](width=usual * width)


def _with_statistics(variables: Variables) -> Variables:
    """The variables with BatchNorm statistics as after training: with zeros and ones, a twin without any would do."""
    rng = np.random.default_rng(2)

    def drawn(path: Any, leaf: Array) -> Array:
        values = rng.uniform(0.5, 1.5, leaf.shape) if path[-1].key == "var" else rng.normal(0, 0.1, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return variables._replace(model_state=jax.tree.map_with_path(drawn, variables.model_state))


def predict(forward: Callable[[PyTree, Array], Array], variables: PyTree, images: np.ndarray) -> np.ndarray:
    """Predicted classes, int32 [n], computed in small batches."""
    run = jax.jit(lambda variables, images: jnp.argmax(forward(variables, images), axis=-1))
    parts = [np.asarray(run(variables, images[i : i + 128])) for i in range(0, len(images), 128)]
    return np.concatenate(parts).astype(np.int32)


def forward_flops(logits_fn: LogitsFn, image_shape: tuple[int, int, int]) -> float:
    """Floating-point operations of one image's forward pass, two per multiply-add of convolutions and matrix products.

    Convolutions are counted as direct ones.  The gradient with respect to the image costs about as much again.
    """
    return flop_count(jax.make_jaxpr(logits_fn)(jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)).jaxpr)
