"""Weights of PyTorch networks in the networks of this package."""

from advjax.models.torch.weights import load_torch

__all__ = ["load_torch"]
