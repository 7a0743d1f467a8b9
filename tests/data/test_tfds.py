"""Prepared tfds directories: original order, cache, and error messages."""

import io
import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from advjax import data  # noqa: E402
from advjax.data import builders, images, tfds_directory  # noqa: E402
from advjax.data import tfds as tfds_reader  # noqa: E402
from advjax.types import UserError  # noqa: E402

IMAGES = np.random.RandomState(0).randint(0, 256, (40, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.int32) % 4
RECORDS = [{"image": image, "label": int(label)} for image, label in zip(IMAGES, LABELS, strict=True)]
IMAGE = tfds.features.Tensor(shape=(6, 5, 3), dtype=np.uint8)
LABEL = tfds.features.ClassLabel(names=list("abcd"))


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """No network, and neither the user's data nor the user's cache."""
    monkeypatch.setattr(builders, "is_reachable", lambda url: False)
    monkeypatch.setenv("ADVJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    return tmp_path / "data"


def write(root: pathlib.Path, name: str, records=RECORDS, *, version="1.0.0", **features) -> pathlib.Path:
    """Prepares a small dataset with the splits train and test; its keys are the positions."""

    def info(self):
        named = tfds.features.FeaturesDict({"image": IMAGE, "label": LABEL} | features)
        return tfds.core.DatasetInfo(builder=self, features=named)

    methods = {
        "name": name,
        "__module__": __name__,
        "VERSION": tfds.core.Version(version),
        "_info": info,
        "_split_generators": lambda self, _: {split: self._generate_examples() for split in ("train", "test")},
        "_generate_examples": lambda self: enumerate(records),
    }
    builder = type("Toy", (tfds.core.GeneratorBasedBuilder,), methods, skip_registration=True)
    made = builder(data_dir=root, file_format="array_record")
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return pathlib.Path(made.data_path)


def assert_original(dataset: data.Dataset, images=IMAGES, labels=LABELS) -> None:
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    np.testing.assert_array_equal(dataset.index, np.arange(len(labels)))


# Order ---------------------------------------------------------------------------------------------------------------


def test_ids_restore_the_original_order(root):
    records = [record | {"id": f"train_{i:05d}"} for i, record in enumerate(RECORDS)]
    write(root, "toy", records, id=tfds.features.Text())
    dataset = data.load("toy", "test", directory=root)
    assert_original(dataset)
    assert (dataset.name, dataset.class_names) == ("toy", ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    "name, more", [("cifar100", {"coarse_label": tfds.features.ClassLabel(num_classes=2)}), ("svhn_cropped", {})]
)
def test_other_known_data_sets_are_read_once_they_are_prepared(root, name, more):
    with pytest.raises(UserError, match=f"{name} is not prepared in {root}"):
        data.load(name, "test", directory=root)
    ids = [{"id": f"test_{i:05d}"} | dict.fromkeys(more, i % 2) for i in range(len(RECORDS))]
    records = [record | others for record, others in zip(RECORDS, ids, strict=True)]
    write(root, name, records, id=tfds.features.Text(), **more)
    assert_original(data.load(name, "test", directory=root))


def test_hash_restores_the_original_order_where_keys_are_positions(root):
    write(root, "mnist")
    for split in ("train", "test"):
        assert_original(data.load("mnist", split, directory=root))


def test_other_sets_keep_the_stored_order(root):
    folder = write(root, "toy")
    dataset = data.load("toy", "train", directory=root)
    stored = [record["image"] for record in tfds.builder_from_directory(folder).as_data_source(split="train")]
    assert_original(dataset, np.stack(stored), dataset.labels)
    assert not np.array_equal(dataset.images, IMAGES)


@pytest.mark.parametrize("ids", [["a1", "a1", "a0"], ["a", "b", "c"], ["1", "2", "3"], ["9" * 30, "0", "1"]])
def test_ids_that_are_no_positions_are_not_used(ids):
    np.testing.assert_array_equal(tfds_reader.original_positions("toy", "train", 3, ids), [0, 1, 2])


def test_real_cifar10_test_set_is_in_the_order_of_its_archive(shared):
    dataset = data.load("cifar10", "test", directory=shared / "data" / "tensorflow_datasets")
    assert dataset.images.shape == (10_000, 32, 32, 3) and dataset.images.dtype == np.uint8
    # Cat, two ships, a plane, two frogs: how the test batch of the archive begins.
    np.testing.assert_array_equal(dataset.labels[:10], [3, 8, 8, 0, 6, 6, 1, 6, 3, 1])
    np.testing.assert_array_equal(np.bincount(dataset.labels), [1000] * 10)
    assert dataset.class_names[3] == "cat"


def test_real_mnist_test_set_is_in_the_order_of_its_archive(shared):
    dataset = data.load("mnist", "test", directory=shared / "data" / "tensorflow_datasets")
    assert dataset.images.shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(dataset.labels[:10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9])
    assert dataset.num_classes == 10


# Photographs of many sizes -------------------------------------------------------------------------------------------


def photograph(number: int) -> bytes:
    """JPEGs of different sizes, every fourth one gray, as in Imagenette."""
    values = np.random.RandomState(number).randint(0, 256, (3, 4, 3)).astype(np.uint8)
    image = PIL.Image.fromarray(values).resize((30 + number, 40 - number), PIL.Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    (image.convert("L") if number % 4 == 3 else image).save(buffer, "jpeg")
    return buffer.getvalue()


PHOTOGRAPHS = [photograph(number) for number in range(8)]


class Photographs:
    """Records with files to read, new ones for every split."""

    def __iter__(self):
        for number, jpeg in enumerate(PHOTOGRAPHS):
            yield {"image": io.BytesIO(jpeg), "label": number % 4}


@pytest.fixture(params=["imagenette/320px-v2", "cats_vs_dogs"])
def photographs(request, root) -> str:
    """Name of a dataset with the features of the real one, prepared in ``root``."""
    name, _, configuration = request.param.partition("/")
    folder = write(root, name, Photographs(), image=tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"))
    if configuration:
        shutil.move(folder, root / name / configuration / folder.name)
    return request.param


def test_photographs_are_resized_when_loaded(photographs, root, tmp_path, reads):
    expected = np.stack([images.square(images.decode(jpeg), 16) for jpeg in PHOTOGRAPHS])
    for _ in range(2):
        dataset = data.load(photographs, "train", directory=root, image_size=16)
    assert dataset.name == photographs and dataset.images.shape == (8, 16, 16, 3)
    # The stored order is that of a hash; content and label must still belong together.
    order = [next(i for i in range(8) if np.array_equal(image, expected[i])) for image in dataset.images]
    assert sorted(order) == list(range(8))
    np.testing.assert_array_equal(dataset.labels, np.array(order) % 4)
    data.load(photographs, "train", directory=root, image_size=8)
    assert reads == ["train", "train"]
    stem = photographs.replace("/", "-")
    assert [path.name.rsplit("-", 1)[0] for path in kept(tmp_path)] == [f"{stem}-1.0.0-train-{s}" for s in (16, 8)]


def test_photographs_can_be_read_one_by_one(photographs, root):
    loaded = data.load(photographs, "test", directory=root, image_size=16)
    source = data.open_source(photographs, "test", directory=root, image_size=16)
    assert data.fingerprint(data.read_all(source, num_workers=3)) == data.fingerprint(loaded)
    np.testing.assert_array_equal(source.take(np.array([5, 1])).read(0), loaded.images[5])


def test_photographs_of_many_sizes_need_an_image_size(photographs, root):
    message = error_of(photographs, "train", root)
    assert "differ in size" in message and "--config.data.image_size" in message


@pytest.mark.parametrize("name", ["imagenette/320px-v2", "cats_vs_dogs"])
def test_photographs_that_are_not_prepared(name, root):
    message = error_of(name, "train", root)
    for part in (f"{name} is not prepared in {root}", "TFDS_DATA_DIR", f"tfds.builder('{name}'", "array_record"):
        assert part in message


def test_a_broken_photograph_is_reported_when_it_is_read(root):
    records = [{"image": io.BytesIO(PHOTOGRAPHS[0][:-200]), "label": 0}]
    write(root, "toy", records, image=tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"))
    source = data.open_source("toy", "train", directory=root, image_size=16)
    with pytest.raises(UserError, match=r"toy in .* cannot be read \(image file is truncated"):
        source.read(0)


def test_arrays_are_resized_and_streamed_too(root):
    """MNIST-like records: gray, all of one size, in the order of their archive."""
    gray = [record | {"image": record["image"][..., :1]} for record in RECORDS]
    write(root, "mnist", gray, image=tfds.features.Tensor(shape=(6, 5, 1), dtype=np.uint8))
    expected = np.stack([images.square(image[..., :1], 9) for image in IMAGES])
    assert_original(data.load("mnist", "train", directory=root, image_size=9), expected)
    both = data.load("mnist", "test+train", directory=root)
    assert_original(both, np.concatenate([IMAGES, IMAGES])[..., :1], np.concatenate([LABELS, LABELS]))
    source = data.open_source("mnist", "test+train", directory=root)
    assert data.fingerprint(data.read_all(source)) == data.fingerprint(both)


# Where data are looked for --------------------------------------------------------------------------------------------


def test_directory_is_argument_then_environment_then_home(root, tmp_path, monkeypatch):
    assert tfds_directory.data_directory() == tmp_path / "home" / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert tfds_directory.data_directory() == root
    assert tfds_directory.data_directory(tmp_path) == tmp_path
    write(root, "toy")
    assert len(data.load("toy", "train").labels) == 40


def test_newest_version_and_named_configuration(root):
    write(root, "toy", RECORDS[:8], version="9.0.0")
    write(root, "toy", RECORDS[:12], version="10.0.0")
    assert len(data.load("toy", "train", directory=root).labels) == 12
    shutil.move(root / "toy", root / "moved")
    (root / "toy").mkdir()
    shutil.move(root / "moved", root / "toy" / "small-v2")
    assert len(data.load("toy/small-v2", "train", directory=root).labels) == 12
    with pytest.raises(UserError, match=r"has configs: small-v2; name one, as in toy/small-v2"):
        data.load("toy", "train", directory=root)


# Cache ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Grows by one whenever records are actually decoded."""
    seen = []
    read = tfds_reader._read
    monkeypatch.setattr(tfds_reader, "_read", lambda builder, *args: seen.append(args[1]) or read(builder, *args))
    return seen


def kept(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    return sorted((tmp_path / "cache").iterdir())


def test_records_are_decoded_once_per_split(root, tmp_path, reads):
    write(root, "mnist")
    for _ in range(3):
        assert_original(data.load("mnist", "test", directory=root))
        data.load("mnist", "train", directory=root)
    assert reads == ["test", "train"]
    assert [path.name.rsplit("-", 1)[0] for path in kept(tmp_path)] == ["mnist-1.0.0-test", "mnist-1.0.0-train"]


def test_other_prepared_files_are_decoded_anew(root, reads):
    write(root, "mnist")
    data.load("mnist", "test", directory=root)
    shutil.rmtree(root / "mnist")
    write(root, "mnist", RECORDS[::2])
    assert_original(data.load("mnist", "test", directory=root), IMAGES[::2], LABELS[::2])
    assert len(reads) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "text"])
def test_damaged_cache_is_rebuilt(damage, root, tmp_path, reads):
    write(root, "mnist")
    data.load("mnist", "test", directory=root)
    (path,) = kept(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes({"flip": bytes(content), "truncate": content[:500], "empty": b"", "text": b"hello"}[damage])
    for _ in range(2):
        assert_original(data.load("mnist", "test", directory=root))
    assert len(reads) == 2
    assert kept(tmp_path) == [path]


def test_empty_variable_turns_the_cache_off(root, tmp_path, monkeypatch, reads):
    monkeypatch.setenv("ADVJAX_CACHE", "")
    write(root, "mnist")
    for _ in range(2):
        data.load("mnist", "test", directory=root)
    assert len(reads) == 2
    assert not (tmp_path / "cache").exists() and not (tmp_path / "home" / ".cache").exists()


def test_cache_that_cannot_be_written_does_not_stop_anything(root, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    write(root, "mnist")
    assert_original(data.load("mnist", "test", directory=root))


# What is said -------------------------------------------------------------------------------------------------------


def error_of(name: str, split: str, root: pathlib.Path) -> str:
    with pytest.raises(UserError) as error:
        data.load(name, split, directory=root)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["cifar11", "CIFAR10", "../mnist", "", "mnist/../../x", "not a name"])
def test_unknown_name_lists_the_known_ones(name, root):
    write(root, "toy")
    message = error_of(name, "train", root)
    assert f"unknown dataset {name!r}" in message
    assert "digits, cifar10, mnist, fashion_mnist" in message and str(root) in message and "(toy)" in message


def test_unknown_split_lists_the_known_ones(root):
    assert error_of("cifar10", "validation", root) == "cifar10 has no split 'validation'; it has: train, test"
    write(root, "toy")
    assert error_of("toy", "train[:10%]", root) == "toy has no split 'train[:10%]'; it has: train, test"


def test_tfds_set_that_is_not_prepared_says_how_to_prepare_it(root):
    message = error_of("svhn_cropped", "train", root)
    for part in ("svhn_cropped is not prepared", str(root), "TFDS_DATA_DIR", "advjax[tf]", "download_and_prepare"):
        assert part in message


def store_as_tfrecord(folder: pathlib.Path) -> None:
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))


def test_tfrecord_directory_is_named_and_a_way_out(root):
    for name in ("mnist", "toy"):
        store_as_tfrecord(write(root, name))
    assert "stored as tfrecord, which needs TensorFlow" in error_of("mnist", "train", root)
    assert "TFDS_DATA_DIR to another directory" in error_of("mnist", "train", root)
    assert "will be prepared there" in error_of("mnist", "train", root)
    assert "download_and_prepare" in error_of("toy", "train", root)


def test_images_of_different_sizes_are_refused(root):
    records = [{"image": np.zeros((4, 4 + i % 2, 3), np.uint8), "label": 0} for i in range(8)]
    write(root, "toy", records, image=tfds.features.Tensor(shape=(4, None, 3), dtype=np.uint8))
    assert "differ in size" in error_of("toy", "train", root)


@pytest.mark.parametrize(
    ("record", "features"),
    [
        ({"label": 7}, {"label": tfds.features.Scalar(np.int32)}),
        ({"image": np.zeros(4, np.int32)}, {"image": tfds.features.Tensor(shape=(4,), dtype=np.int32)}),
    ],
)
def test_other_features_are_refused(record, features, root):
    write(root, "toy", [RECORDS[0] | record], **features)
    assert "image (uint8) and label (ClassLabel)" in error_of("toy", "train", root)


def test_missing_and_damaged_record_files_are_named(root):
    folder = write(root, "toy")
    (file,) = folder.glob("toy-train*")
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be read" in error_of("toy", "train", root)
    file.unlink()
    assert f"is incomplete, {file.name} is missing" in error_of("toy", "train", root)
