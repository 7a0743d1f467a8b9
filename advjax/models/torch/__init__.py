"""Loads PyTorch weights into the models of this package."""

from advjax.models.torch.weights import load_torch

__all__ = ["load_torch"]
