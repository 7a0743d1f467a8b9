"""tfds builders that prepare CIFAR-10, MNIST, and Fashion-MNIST without TensorFlow.

Names, versions, features, examples, and keys, hence the record order, are inherited from the stock builders. Only what
would need TensorFlow is replaced: archives are read with the standard library, and images are passed as PIL images,
because tfds encodes NumPy arrays with TensorFlow. The resulting PNG streams contain the same pixels in different bytes,
so file sizes differ.

This module imports tensorflow_datasets; import it only where a dataset has to be prepared.
"""

import gzip
import http.client
import os
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError
from tensorflow_datasets.image_classification import cifar, mnist

from advjax.types import UserError

_CONNECTION_TIMEOUT = 5.0
"""Seconds. Without this check, tfds would retry for more than three minutes."""

Examples = Iterator[tuple[int, dict[str, Any]]]

_IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class Cifar10(cifar.Cifar10, skip_registration=True):
    """CIFAR-10 from its binary archive: rows of one label byte and 3 x 32 x 32 pixel bytes, channels first."""

    name = cifar.Cifar10.name
    # tfds records the module in dataset_info.json and looks for the registered checksums beside it.
    __module__ = cifar.__name__

    @property
    def urls(self) -> list[str]:
        """URLs of the official archives."""
        return [self._cifar_info.url]

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        layout = self._cifar_info
        archive = os.fspath(dl_manager.download(layout.url))
        with tarfile.open(archive) as tar:
            names = _read_member(tar, layout.prefix + layout.label_files[0]).decode().split("\n")
        features: Any = self.info.features
        features["label"].names = [name for name in names if name]
        return {
            "train": self._generate_examples("train_", archive, layout.train_files),
            "test": self._generate_examples("test_", archive, layout.test_files),
        }

    def _generate_examples(self, prefix: str, archive: str, files: Sequence[str]) -> Examples:
        with tarfile.open(archive) as tar:
            content = b"".join(_read_member(tar, self._cifar_info.prefix + file) for file in files)
        rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for key, (image, label) in enumerate(zip(images, rows[:, 0], strict=True)):
            # The key determines the position among the records, so it must be the number that stock tfds uses.
            yield key, {"id": f"{prefix}{key:05d}", "image": PIL.Image.fromarray(image), "label": int(label)}


class MNIST(mnist.MNIST, skip_registration=True):
    """MNIST from its four gzipped IDX files."""

    name = mnist.MNIST.name
    __module__ = mnist.__name__

    @property
    def urls(self) -> list[str]:
        """URLs of the official archives."""
        return [urllib.parse.urljoin(self.URL, file) for pair in _IDX_FILES.values() for file in pair]

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        # tfds downloads archives that are passed together in parallel.
        path_of = dl_manager.download({url.rsplit("/", 1)[1]: url for url in self.urls})
        return {
            split: self._generate_examples(path_of[images], path_of[labels])
            for split, (images, labels) in _IDX_FILES.items()
        }

    def _generate_examples(self, images_path: os.PathLike, labels_path: os.PathLike) -> Examples:
        for key, (image, label) in enumerate(zip(_read_idx(images_path), _read_idx(labels_path), strict=True)):
            yield key, {"image": PIL.Image.fromarray(image), "label": int(label)}


class FashionMNIST(MNIST, skip_registration=True):
    """Fashion-MNIST, which has the file format of MNIST."""

    name = mnist.FashionMNIST.name
    __module__ = mnist.__name__
    URL = mnist.FashionMNIST.URL
    _info = mnist.FashionMNIST._info


BUILDERS = {builder.name: builder for builder in (Cifar10, MNIST, FashionMNIST)}
"""Builders by dataset name."""


def prepare(name: str, directory: str | os.PathLike) -> epath.Path:
    """Prepares a dataset as array_record files under ``<directory>/<name>/<version>``.

    Archives are taken from ``<directory>/downloads/manual`` if present, and downloaded otherwise; their sizes and
    SHA-256 sums are verified against those registered in tfds. Several processes may prepare the same dataset
    concurrently: each works in its own folder, and the first to finish wins.

    Args:
      name: a key of ``BUILDERS``.
      directory: the tfds data directory, created if necessary.

    Returns:
      The folder of the prepared files.

    Raises:
      UserError: an archive is neither present nor downloadable, or is not the official one, or the folder cannot be
        written.
    """
    builder = BUILDERS[name](data_dir=os.fspath(directory), file_format="array_record")
    manual = epath.Path(directory) / "downloads" / "manual"
    missing = [url for url in builder.urls if not (manual / url.rsplit("/", 1)[1]).exists()]
    if missing and not is_reachable(missing[0]):
        archives = ", ".join(url.rsplit("/", 1)[1] for url in missing)
        raise UserError(
            f"{name} is not prepared in {builder.data_path}, and cannot be downloaded "
            f"({urllib.parse.urlsplit(missing[0]).netloc} cannot be reached): set --config.data.dir or TFDS_DATA_DIR "
            f"to a directory that contains it, or put {archives} into {manual}"
        )
    config = tfds.download.DownloadConfig(try_download_gcs=False, force_checksums_validation=True)
    try:
        builder.download_and_prepare(download_config=config)
    except NonMatchingChecksumError as error:
        raise UserError(
            f"an archive of {name} is not the official one (size or SHA-256 differs; looked in {manual} and "
            f"{manual.parent}): delete it and download it again from {', '.join(builder.urls)}"
        ) from error
    except (OSError, DownloadError) as error:
        if not builder.is_prepared():  # Otherwise another process was faster, and its folder cannot be replaced.
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{name} could not be prepared in {builder.data_path} ({reason}): fix that, set --config.data.dir or "
                f"TFDS_DATA_DIR to another directory, or put the archives, {', '.join(builder.urls)}, into {manual}"
            ) from error
    return builder.data_path


def is_reachable(url: str) -> bool:
    """Whether the server of ``url`` answers within seconds, no matter what; honors proxy environment variables."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_CONNECTION_TIMEOUT):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException):
        return False


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    if member is None:
        raise OSError(f"{name} in the archive is not a file")
    return member.read()


def _read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes: two zeros, type 8, rank, big-endian sizes, then the bytes."""
    with gzip.open(path) as file:
        content = file.read()
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
