"""Datasets, splits, and the order in which examples are visited."""

from advjax.data.arrays import from_arrays
from advjax.data.dataset import KNOWN_NAMES, Dataset, check, fingerprint, pixels
from advjax.data.index_file import read_index, write_index
from advjax.data.indexable import from_indexable
from advjax.data.load import load, open_source
from advjax.data.order import batch_positions, eval_batches, steps_per_epoch
from advjax.data.sampling import concatenate, undersample
from advjax.data.source import Source, from_dataset, read_all
from advjax.data.split_name import have_common_examples
from advjax.data.splits import (
    by_group,
    class_balanced,
    fractions,
    index_hash,
    k_fold,
    nested_subset,
    train_validation,
)
from advjax.data.streaming import StreamedBatch, stream

__all__ = [
    "KNOWN_NAMES",
    "Dataset",
    "Source",
    "StreamedBatch",
    "batch_positions",
    "by_group",
    "check",
    "class_balanced",
    "concatenate",
    "eval_batches",
    "fingerprint",
    "fractions",
    "from_arrays",
    "from_dataset",
    "from_indexable",
    "have_common_examples",
    "index_hash",
    "k_fold",
    "load",
    "nested_subset",
    "open_source",
    "pixels",
    "read_all",
    "read_index",
    "steps_per_epoch",
    "stream",
    "train_validation",
    "undersample",
    "write_index",
]
