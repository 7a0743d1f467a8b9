"""The networks of the benchmark in torch with the same weights; torch must be installed to import this module.

Weights are converted there and back, and logits compared, before anything is timed.
"""
# It is optional, so a type checker may not find it.
# pyright: reportMissingImports=false

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from advjax.benchmarks.networks import IMAGE_SHAPES, SMALL, Network, large_model
from advjax.benchmarks.torch_networks import MODULES
from advjax.models.layers import ImageClassifier
from advjax.models.torch.flattening import torch_positions
from advjax.models.torch.names import names_of
from advjax.models.torch.weights import load_torch
from advjax.types import UserError, Variables

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest of them; 1e-5 is usual."""
NUM_CHECKED = 4
"""Images that the logits of both are compared on."""


def torch_network(network: Network) -> nn.Module:
    """The same network in torch, in inference mode and channels-last memory format, on the device that JAX uses.

    Its weights have been converted there and back, and its logits compared with those in JAX.

    Raises:
      UserError: weights or logits differ.
    """
    if network.name in SMALL:
        layers = ("conv1", "conv2", "fc1") if network.name == "mnist_cnn" else ("conv1", "conv2", "conv3", "conv4")
        module = MODULES[network.name](*(len(network.variables[f"{layer}_bias"]) for layer in layers))
        module.load_state_dict(_small_state(network))
    else:
        model = large_model(network.name, network.width)
        module = MODULES[network.name](model.channels)
        module.load_state_dict(torch_state(model, network.variables, IMAGE_SHAPES[network.name]), strict=False)
        _check_weights(network, model, module)
    module = module.eval().requires_grad_(False)
    module = module.to(device=device(), memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    _check_logits(network, module)
    return module


def device() -> str:
    """The kind of device that JAX computes on, for torch."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def nchw(images: np.ndarray) -> torch.Tensor:
    """Images as torch takes them, on the device; channels-last in memory, as they are."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(device())


def torch_state(
    model: ImageClassifier, variables: Variables, image_shape: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    """The state dict of ``variables``: the inverse of ``models.torch.weights.load_torch``.

    The first of the names that the layer may have there is used.
    """
    names, leaves = names_of(model), {"kernel": "weight", "scale": "weight", "bias": "bias"}
    leaves |= {"mean": "running_mean", "var": "running_var"}
    collections = {"params": variables.params, **variables.model_state}
    example = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    positions, state = torch_positions(model.apply, collections, example), {}
    for number, (path, leaf) in enumerate(jax.tree.leaves_with_path(collections)):
        _, *layers, kind = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        value = np.asarray(leaf)
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            order = positions.get(number)
            value = (value if order is None else value[np.argsort(order)]).T
        layer = "/".join([layers[0].removeprefix("block_"), *layers[1:]])
        tensor = torch.from_numpy(np.array(value))
        state |= {f"{name}.{leaves[kind]}": tensor for name in names(layer)}
    return state


def _small_state(network: Network) -> dict[str, torch.Tensor]:
    weights, state = dict(network.variables), {}
    if network.name == "mnist_cnn":
        hidden = weights["fc1_kernel"]
        weights["fc1_kernel"] = hidden.reshape(7, 7, -1, hidden.shape[1]).transpose(2, 0, 1, 3).reshape(hidden.shape)
    for name, value in weights.items():
        layer, kind = name.rsplit("_", 1)
        if network.name == "cifar_cnn" and layer.startswith("conv"):
            layer = f"convs.{int(layer[4:]) - 1}"
        if layer == "input":
            name, value = kind, value.reshape(-1, 1, 1)
        else:
            name = f"{layer}.{'weight' if kind == 'kernel' else 'bias'}"
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim) if layer != "input" else None
        state[name] = torch.from_numpy(np.array(value if order is None else value.transpose(order)))
    return state


def _check_weights(network: Network, model: ImageClassifier, module: nn.Module) -> None:
    """Raises unless all weights come back to JAX as they were."""
    back = load_torch(module.eval(), model, IMAGE_SHAPES[network.name])
    mine, theirs = jax.tree.leaves_with_path(network.variables), jax.tree.leaves(back)
    for (path, leaf), other in zip(mine, theirs, strict=True):
        if not np.array_equal(leaf, other):
            raise UserError(f"{network.name}: {jax.tree_util.keystr(path)} has another value in torch")


def _check_logits(network: Network, module: nn.Module) -> None:
    images = network.images[:NUM_CHECKED]
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = module(nchw(images)).cpu().numpy()
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(jax.jit(network.forward)(network.variables, images))
    difference, largest = float(np.max(np.abs(found - expected))), float(np.max(np.abs(expected)))
    if not difference <= TOLERANCE * largest:
        raise UserError(f"{network.name} in torch has other logits: {difference:.2g} off, the largest is {largest:.2g}")
