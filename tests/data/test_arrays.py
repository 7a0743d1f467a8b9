"""Datasets from arrays: what is accepted, what the files of npz and CIFAR-10-C mean, and what is refused."""

import numpy as np
import pytest

from advjax import data
from advjax.types import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (10, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(10) % 3


# Arrays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, bool, ">i4"])
def test_labels_of_any_whole_type(dtype):
    labels = (LABELS % 2).astype(dtype)
    found = data.from_arrays(IMAGES, labels[:, None])
    assert found.labels.dtype == np.int32 and found.class_names == ("0", "1")
    np.testing.assert_array_equal(found.labels, LABELS % 2)
    np.testing.assert_array_equal(found.index, np.arange(10))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_float32(dtype):
    pixels = (IMAGES / 255).astype(dtype)
    found = data.from_arrays(pixels, LABELS, class_names=["a", "b", "c", "d"], groups=LABELS)
    assert found.images.dtype == np.float32 and found.num_classes == 4 and found.groups.tolist() == list("0120120120")
    np.testing.assert_array_equal(found.images, pixels.astype(np.float32))


def test_gray_images_get_a_channel():
    assert data.from_arrays(IMAGES[..., 0], LABELS).image_shape == (8, 8, 1)


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (IMAGES, LABELS[:9], "has 10 images, 9 labels"),
        (IMAGES, LABELS / 1, r"labels of arrays are float64 \[10\]; they must be whole numbers"),
        (IMAGES, np.eye(10), "take the argmax of one-hot labels"),
        (IMAGES, ["cat"] * 10, "number the classes of names"),
        (IMAGES, LABELS - 1, "range from -1 to 1"),
        (IMAGES, LABELS + 2**31, "range from 2147483648"),
        (IMAGES.astype(np.float32), LABELS, r"values in \[0, 255\]; pixels must lie in \[0, 1\]"),
        (IMAGES.astype(np.float32) / 255 * np.nan, LABELS, "pixels must lie in"),
        (IMAGES.astype(np.int64), LABELS, "images of arrays are int64"),
        (IMAGES[0, 0], LABELS[:8], r"images of arrays are uint8 \[8, 3\]"),
        (IMAGES[:0], LABELS[:0], "at least one example is needed"),
    ],
)
def test_arrays_that_are_no_dataset_are_refused(images, labels, message):
    with pytest.raises(UserError, match=message):
        data.from_arrays(images, labels)
    with pytest.raises(UserError, match="with 1 class names they must lie in 0"):
        data.from_arrays(IMAGES, LABELS, class_names=["a"])


# npz ------------------------------------------------------------------------------------------------------------------


def keys(kind, split):
    return {"keras": (f"x_{split}", f"y_{split}"), "medmnist": (f"{split}_images", f"{split}_labels")}[kind]


@pytest.mark.parametrize("kind", ["keras", "medmnist"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_splits_of_an_npz_file(tmp_path, kind, save):
    path = tmp_path / "shapes.npz"
    (x, y), (x2, y2) = keys(kind, "train"), keys(kind, "test")
    save(path, **{x: IMAGES[:6], y: LABELS[:6], x2: IMAGES[6:], y2: LABELS[6:, None] + 1, "extra": LABELS})
    train, test = (data.load("npz", split, directory=path) for split in ("train", "test"))
    assert train.name == test.name == "shapes"
    assert train.class_names == test.class_names == ("0", "1", "2", "3")
    np.testing.assert_array_equal(train.images, IMAGES[:6])
    np.testing.assert_array_equal(test.images, IMAGES[6:])
    np.testing.assert_array_equal(test.labels, LABELS[6:] + 1)
    both = data.load("npz", "train+test[1:]", directory=path)
    np.testing.assert_array_equal(both.images, np.delete(IMAGES, 6, axis=0))
    small = data.load("npz", "train", directory=path, image_size=4)
    source = data.open_source("npz", "train", directory=path, image_size=4)
    assert small.image_shape == source.image_shape == (4, 4, 3)
    np.testing.assert_array_equal(source.read(3), small.images[3])


def test_images_without_splits_are_for_training(tmp_path):
    path = tmp_path / "shapes.npz"
    np.savez(path, images=(IMAGES / 255)[..., 0], labels=LABELS, class_names=["a", "b", "c"])
    found = data.load("npz", "train", directory=path, image_size=4)
    assert found.class_names == ("a", "b", "c") and found.image_shape == (4, 4, 1) and found.images.dtype == np.float32
    means = (IMAGES[..., 0] / 255).reshape(10, -1).mean(axis=1)
    np.testing.assert_allclose(found.images.reshape(10, -1).mean(axis=1), means, atol=0.05)
    with pytest.raises(UserError, match=r"has no split 'test'; it has: train; set data.fractions to divide it"):
        data.load("npz", "test", directory=path)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"pictures": IMAGES}, "has no split 'train'; it has: none, only the arrays pictures"),
        ({"x_train": IMAGES}, "has no split 'train'; it has: none, only the arrays x_train"),
        ({"x_train": IMAGES, "y_train": LABELS[:3]}, "has 10 images, 3 labels"),
        ({"x_train": IMAGES, "y_train": np.array([None] * 10)}, "cannot be read .*allow_pickle"),
    ],
)
def test_files_without_images_and_labels_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        data.load("npz", "train", directory=tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_are_one_line(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, x_train=IMAGES, y_train=LABELS)
    content = path.read_bytes()
    damaged = [content[:count] for count in (0, 1, 10, 100, len(content) // 2, len(content) - 1)]
    damaged += [content[:300] + bytes(64) + content[364:], b"no archive"]
    for text in damaged:
        path.write_bytes(text)
        with pytest.raises(UserError, match=r"a.npz cannot be read \(.*\): copy it again") as error:
            data.load("npz", "train", directory=path)
        assert "\n" not in str(error.value)
    path.unlink()
    for missing in (path, tmp_path):
        with pytest.raises(UserError, match=r"cannot be read .*: set --config.data.dir"):
            data.load("npz", "train", directory=missing)
    with pytest.raises(UserError, match=r"dataset 'npz' needs the .npz file: set --config.data.dir"):
        data.load("npz", "train")


# CIFAR-10-C -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def corrupted(tmp_path):
    """Two images at five severities, which the first pixel names."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for number, name in enumerate(("fog", "gaussian_noise")):
        images = np.full((10, 32, 32, 3), 100 * number, np.uint8)
        images[:, 0, 0, 0] = np.repeat([1, 2, 3, 4, 5], 2)
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", np.tile(np.uint8([7, 2]), 5))
    return folder


def test_severities_of_corruptions(corrupted):
    for severity in range(1, 6):
        found = data.load(f"cifar10_c/gaussian_noise_{severity}", "test", directory=corrupted)
        assert found.images.shape == (2, 32, 32, 3) and set(found.images[:, 0, 0, 0]) == {severity}
        assert found.images[0, 1, 1, 1] == 100 and found.labels.tolist() == [7, 2]
        assert found.class_names[7] == "horse" and found.index.tolist() == [0, 1]
    assert data.open_source("cifar10_c/fog_2", "test", directory=corrupted).read(1)[0, 0, 0] == 2


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("cifar10_c", "test", "write cifar10_c/CORRUPTION_SEVERITY"),
        ("cifar10_c/fog", "test", "write cifar10_c/CORRUPTION_SEVERITY"),
        ("cifar10_c/fog_6", "test", "a severity from 1 to 5"),
        ("cifar10_c/fog_0", "test", "a severity from 1 to 5"),
        ("cifar10_c/snow_1", "test", "corruptions there are fog, gaussian_noise"),
        ("cifar10_c/../CIFAR-10-C/fog_1", "test", "corruptions there are fog, gaussian_noise"),
        ("cifar10_c/fog_1", "train", "has no split 'train'; it has: test"),
    ],
)
def test_corruptions_that_there_are_not(corrupted, name, split, message):
    with pytest.raises(UserError, match=message):
        data.load(name, split, directory=corrupted)


def test_damaged_corruptions_are_one_line(corrupted):
    with pytest.raises(UserError, match=r"'cifar10_c' needs the folder of the .npy files: set --config.data.dir"):
        data.load("cifar10_c/fog_1", "test")
    content = (corrupted / "fog.npy").read_bytes()
    for count in (0, 5, 60, 1000, len(content) - 1):
        (corrupted / "fog.npy").write_bytes(content[:count])
        with pytest.raises(UserError, match=r"fog.npy cannot be read \(.*\): copy it again") as error:
            data.load("cifar10_c/fog_1", "test", directory=corrupted)
        assert "\n" not in str(error.value)
    np.save(corrupted / "labels.npy", np.zeros(7, np.uint8))
    with pytest.raises(UserError, match=r"\[10, 32, 32, 3\] images and labels.npy \[7\] labels"):
        data.load("cifar10_c/gaussian_noise_1", "test", directory=corrupted)
    (corrupted / "labels.npy").unlink()
    with pytest.raises(UserError, match=r"labels.npy cannot be read"):
        data.load("cifar10_c/gaussian_noise_1", "test", directory=corrupted)
