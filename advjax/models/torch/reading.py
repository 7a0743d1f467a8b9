"""Reads the weights of PyTorch networks: files, state dicts, and modules."""

import contextlib
import importlib
import itertools
import os
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from advjax.types import UserError

_IGNORED = re.compile(r"(?:^|\.)num_batches_tracked$")
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_NESTED_AVERAGES = ("model_ema", "ema", "ema_model", "state_dict_ema", "ema_state_dict", "model_ema_state_dict")
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")


def read_weights(source: Any) -> dict[str, np.ndarray]:
    """The arrays of a state dict, of a file with one, or of a module, by name.

    Raises:
      UserError: the file cannot be read, holds several networks, or has entries that are NaN or infinite.
    """
    if is_torch_module(source):
        state = source.state_dict()
    else:
        state = source if isinstance(source, Mapping) else _read(os.fspath(source))
    weights = {name: _array(value) for name, value in _network_in(state).items() if not _IGNORED.search(name)}
    for name, value in weights.items():
        if not np.all(np.isfinite(value)):
            raise UserError(f"{name} has entries that are NaN or infinite: the network has diverged in training")
    return weights


def import_torch() -> Any:
    """The module ``torch``, which is not a dependency of this package; raises ImportError without it."""
    return importlib.import_module("torch")


def is_torch_module(source: Any) -> bool:
    """Whether this is a ``torch.nn.Module``; PyTorch is not imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def module_logits(module: Any, images: np.ndarray) -> np.ndarray:
    """Logits [n, classes] of a PyTorch module in eval mode; the module's modes are restored.

    Args:
      module: takes [n, c, h, w].
      images: float32 [n, h, w, c].

    Raises:
      UserError: the module cannot be called on the images, or does not return one tensor [n, classes].
    """
    torch = import_torch()

    name = type(module).__name__
    with in_eval_mode(module), torch.no_grad():
        try:
            logits = module(pixels_for(module, images))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{name} cannot be applied to images [n, h, w, c] of shape {images.shape}: {error}"
            ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{name} must return logits [n, classes], but it returns {found}")
    return _array(logits)


def pixels_for(module: Any, images: np.ndarray) -> Any:
    """Images [n, h, w, c] as a tensor [n, c, h, w] with the device and dtype of a module."""
    torch = import_torch()

    tensors = (each for each in itertools.chain(module.parameters(), module.buffers()) if each.is_floating_point())
    like = next(tensors, torch.zeros(()))
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(like.device, like.dtype)


@contextlib.contextmanager
def in_eval_mode(module: Any) -> Iterator[None]:
    """Puts a PyTorch module into eval mode, and afterwards each of its parts back into its own mode."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu().float().numpy() if hasattr(value, "detach") else value)


def _network_in(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a checkpoint that also holds other things."""
    found = [name for name in (*_NESTED, *_NESTED_AVERAGES) if isinstance(state.get(name), Mapping) and state[name]]
    if len(found) > 1:
        raise UserError(
            f"the checkpoint holds several networks, {', '.join(found)}: pass the one you want, "
            f"such as torch.load(path, weights_only=True)[{found[-1]!r}]"
        )
    return state[found[0]] if found else state


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
    torch = import_torch()

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} does not contain plain weights; save only the network's state_dict()") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} contains a {type(loaded).__name__}, not a state dict")
    return loaded
