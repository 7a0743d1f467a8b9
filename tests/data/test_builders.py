"""The TensorFlow-free builders, run on archives rebuilt from the real prepared data."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import pathlib
import struct
import tarfile
import threading

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from tensorflow_datasets.core.download.checksums import UrlInfo  # noqa: E402
from tensorflow_datasets.core.download.util import DownloadError  # noqa: E402

import advjax.data  # noqa: E402
from advjax.data import builders  # noqa: E402
from advjax.types import UserError  # noqa: E402

CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


is_reachable = builders.is_reachable


@pytest.fixture(autouse=True)
def no_network_no_cache(monkeypatch):
    """Every test runs without a network and writes only to its own folder."""
    monkeypatch.setattr(builders, "is_reachable", lambda url: False)
    monkeypatch.setenv("ADVJAX_CACHE", "")


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Puts files into downloads/manual and registers them as the builder's official archives."""

    def put(builder: type, contents: dict[str, bytes]) -> pathlib.Path:
        manual = tmp_path / "downloads" / "manual"
        manual.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (manual / name).write_bytes(content)
        infos = {
            url: UrlInfo(len(contents[name]), checksum=hashlib.sha256(contents[name]).hexdigest(), filename=name)
            for url in builder(data_dir=tmp_path).urls
            if (name := url.rsplit("/", 1)[1]) in contents
        }
        monkeypatch.setattr(builder, "url_infos", infos)
        return tmp_path

    return put


def cifar_archive(train: advjax.data.Dataset, test: advjax.data.Dataset) -> bytes:
    def rows(dataset: advjax.data.Dataset) -> bytes:
        pixels = dataset.images.transpose(0, 3, 1, 2).reshape(len(dataset.labels), -1)
        return np.concatenate([dataset.labels[:, None].astype(np.uint8), pixels], axis=1).tobytes()

    fifth = len(train.labels) // 5
    files = {f"data_batch_{i + 1}.bin": rows(train.take(np.arange(fifth * i, fifth * (i + 1)))) for i in range(5)}
    files |= {"test_batch.bin": rows(test), "batches.meta.txt": "\n".join([*CIFAR_NAMES, "", ""]).encode()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo("cifar-10-batches-bin/" + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def idx_archives(train: advjax.data.Dataset, test: advjax.data.Dataset) -> dict[str, bytes]:
    def idx(array: np.ndarray) -> bytes:
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        return gzip.compress(header + array.astype(np.uint8).tobytes(), compresslevel=1)

    return {
        f"{prefix}-{kind}.gz": idx(array)
        for prefix, dataset in (("train", train), ("t10k", test))
        for kind, array in (("images-idx3-ubyte", dataset.images[..., 0]), ("labels-idx1-ubyte", dataset.labels))
    }


def stored(folder: pathlib.Path, split: str) -> list[dict]:
    source = tfds.builder_from_directory(folder).as_data_source(split=split)
    return list(source.__getitems__(list(range(len(source)))))


def assert_same_records(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)


def assert_equal(first: advjax.data.Dataset, second: advjax.data.Dataset) -> None:
    assert first.class_names == second.class_names
    for field in ("images", "labels", "index"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


@pytest.fixture(scope="module")
def prepared(shared) -> pathlib.Path:
    return shared / "data" / "tensorflow_datasets"


@pytest.fixture(scope="module")
def real_test(prepared):
    """``real_test(name)``: the 10,000 real test images, decoded once."""

    @functools.cache
    def load(name: str) -> advjax.data.Dataset:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ADVJAX_CACHE", "")
            return advjax.data.load(name, "test", directory=prepared)

    return load


def test_cifar10_archive_gives_the_examples_and_the_files_metadata_of_tfds(archives, prepared, real_test):
    test = real_test("cifar10").take(np.arange(503))
    train = test.take(np.arange(100))  # Five files of 20: the numbering must run on across files.
    root = archives(builders.Cifar10, {"cifar-10-binary.tar.gz": cifar_archive(train, test)})

    assert_equal(advjax.data.load("cifar10", "test", directory=root), test)
    assert_equal(advjax.data.load("cifar10", "train", directory=root), train)

    folder = root / "cifar10" / "3.0.2"
    for file in ("features.json", "label.labels.txt"):
        assert (folder / file).read_text().split() == (prepared / "cifar10" / "3.0.2" / file).read_text().split()
    ours, theirs = (json.loads((d / "cifar10/3.0.2/dataset_info.json").read_text()) for d in (root, prepared))
    for key in ("name", "version", "moduleName", "fileFormat", "supervisedKeys", "description", "citation"):
        assert ours[key] == theirs[key]
    assert {record["id"] for record in stored(folder, "train")} == {f"train_{i:05d}".encode() for i in range(100)}


def test_mnist_records_are_those_of_tfds_in_their_order(archives, prepared, real_test):
    """All 10,000 test images have the order, pixels, and labels of the real prepared copy."""
    test = real_test("mnist")
    root = archives(builders.MNIST, idx_archives(test.take(np.arange(50)), test))
    folder = builders.prepare("mnist", root)
    assert folder == root / "mnist" / "3.0.1"
    assert_same_records(stored(folder, "test"), stored(prepared / "mnist" / "3.0.1", "test"))
    assert_equal(advjax.data.load("mnist", "test", directory=root), test)


@pytest.mark.slow
def test_cifar10_records_are_those_of_tfds_in_their_order(archives, prepared, real_test):
    test = real_test("cifar10")
    archive = cifar_archive(test.take(np.arange(50)), test)
    root = archives(builders.Cifar10, {"cifar-10-binary.tar.gz": archive})
    folder = builders.prepare("cifar10", root)
    assert_same_records(stored(folder, "test"), stored(prepared / "cifar10" / "3.0.2", "test"))


def test_fashion_mnist_is_prepared_under_its_own_name_and_classes(archives):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(30, dtype=np.int32) % 10
    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
    names += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    expected = advjax.data.Dataset("fashion_mnist", images, labels, np.arange(30, dtype=np.int32), names)
    root = archives(builders.FashionMNIST, idx_archives(expected, expected.take(np.arange(7))))
    assert_equal(advjax.data.load("fashion_mnist", "train", directory=root), expected)
    test = advjax.data.load("fashion_mnist", "test", directory=root)
    np.testing.assert_array_equal(test.images, images[:7])
    info = json.loads((root / "fashion_mnist" / "3.0.1" / "dataset_info.json").read_text())
    assert info["moduleName"] == "tensorflow_datasets.image_classification.mnist"


def test_another_process_may_prepare_the_same_set_meanwhile(archives, monkeypatch):
    images = np.zeros((20, 28, 28, 1), np.uint8)
    index = np.arange(20, dtype=np.int32)
    expected = advjax.data.Dataset("mnist", images, index % 10, index, tuple("0123456789"))
    root = archives(builders.MNIST, idx_archives(expected, expected))
    generators = builders.MNIST._split_generators
    calls = []

    def overtaken(self, dl_manager):
        calls.append(self)
        if len(calls) == 1:  # While the first prepares, a second starts and finishes.
            builders.prepare("mnist", root)
        return generators(self, dl_manager)

    monkeypatch.setattr(builders.MNIST, "_split_generators", overtaken)
    assert builders.prepare("mnist", root).name == "3.0.1"
    assert len(calls) == 2
    assert_equal(advjax.data.load("mnist", "test", directory=root), expected)
    assert [path.name for path in (root / "mnist").iterdir()] == ["3.0.1"]


@pytest.mark.parametrize("name", list(builders.BUILDERS))
def test_builders_keep_identity_features_and_checksums_of_the_stock_builders(name, tmp_path):
    stock = tfds.builder_cls(name)
    ours = builders.BUILDERS[name](data_dir=tmp_path)
    reference = stock(data_dir=tmp_path)
    assert ours.info.full_name == reference.info.full_name
    assert ours.info.features.to_json() == reference.info.features.to_json()
    assert ours.data_path == reference.data_path
    assert set(ours.urls) == set(reference.url_infos) == set(ours.url_infos)


def test_an_archive_that_is_not_the_official_one_is_refused(tmp_path, archives):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "cifar-10-binary.tar.gz").write_bytes(b"not the real archive")
    with pytest.raises(UserError, match=r"not the official one .*delete it.*www.cs.toronto.edu"):
        advjax.data.load("cifar10", "train", directory=tmp_path)
    assert not (tmp_path / "cifar10" / "3.0.2").exists()


def test_no_network_is_said_at_once_with_what_to_do(tmp_path, monkeypatch):
    patience = []

    def refuse(request, timeout):
        patience.append(timeout)
        raise OSError("no network")

    monkeypatch.setattr(builders, "is_reachable", is_reachable)
    monkeypatch.setattr(builders.urllib.request, "urlopen", refuse)
    with pytest.raises(UserError) as error:
        advjax.data.load("mnist", "train", directory=tmp_path / "empty")
    assert len(patience) == 1 and patience[0] < 10
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "mnist is not prepared",
        "cannot be downloaded",
        "--config.data.dir",
        "TFDS_DATA_DIR",
        "downloads/manual",
    ):
        assert part in message
    for archive in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        assert archive in message


def test_only_missing_archives_are_asked_for(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(UserError, match="put train-labels") as error:
        builders.prepare("mnist", tmp_path)
    assert "train-images" not in str(error.value)


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "is_reachable", lambda url: True)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"could not be prepared in .*file/mnist"):
        builders.prepare("mnist", tmp_path / "file")


def test_a_server_that_refuses_is_reported_in_one_line(tmp_path, monkeypatch):
    def refuse(self, resources):
        raise DownloadError("Failed to get url https://example.org. HTTP code: 503.\nTrace")

    monkeypatch.setattr(builders, "is_reachable", lambda url: True)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", refuse)
    with pytest.raises(UserError, match=r"could not be prepared in .*HTTP code: 503.*cifar-10-binary.tar.gz") as error:
        builders.prepare("cifar10", tmp_path)
    assert "\n" not in str(error.value)


def test_any_answer_of_a_server_is_a_network():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/archive.gz"
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert is_reachable(address)
        thread.join()
    assert not is_reachable(address)
