"""Data sets in memory, their splits, and the order in which they are visited."""

from advjax.data.dataset import KNOWN_NAMES, Dataset, check, fingerprint, load
from advjax.data.order import batch_positions, eval_batches, steps_per_epoch
from advjax.data.splits import index_hash, nested_subset, train_validation

__all__ = [
    "KNOWN_NAMES",
    "Dataset",
    "batch_positions",
    "check",
    "eval_batches",
    "fingerprint",
    "index_hash",
    "load",
    "nested_subset",
    "steps_per_epoch",
    "train_validation",
]
