"""Brings PyTorch networks into JAX: their weights into the models of this package, or their computation as a whole."""

from advjax.models.torch.graph import from_torch
from advjax.models.torch.weights import load_torch, recognize_torch

__all__ = ["from_torch", "load_torch", "recognize_torch"]
