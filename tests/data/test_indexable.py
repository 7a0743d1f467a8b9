"""Sources from random-access collections that look like those of Hugging Face, Grain and PyTorch."""

import io
import sys
import types

import numpy as np
import PIL.Image
import pytest

from advjax import data
from advjax.experiment import defaults
from advjax.experiment.from_config import from_config
from advjax.types import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = [0, 2, 1, 2, 0, 1, 0, 2, 1, 2, 0, 1]


def png(image):
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


class LikeHuggingFace:
    """Rows are dictionaries with decoded Pillow images; columns and features are by name."""

    column_names = ("img", "fine")
    features = types.MappingProxyType({"fine": types.SimpleNamespace(names=["bird", "cat", "dog"])})

    def __init__(self):
        self.read = []

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, key):
        if isinstance(key, str):
            return {"fine": LABELS}[key]
        self.read.append(key)
        return {"img": PIL.Image.fromarray(IMAGES[key]), "fine": LABELS[key]}


class LikeGrain:
    """Only a length and records."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, position):
        return {"image": png(IMAGES[position]), "label": np.int64(LABELS[position])}


SOURCES = {
    "hugging face": lambda: data.from_indexable(LikeHuggingFace(), image="img", label="fine"),
    "grain": lambda: data.from_indexable(LikeGrain()),
    "pytorch": lambda: data.from_indexable([(PIL.Image.fromarray(i), n) for i, n in zip(IMAGES, LABELS, strict=True)]),
    "arrays": lambda: data.from_indexable(list(zip(LABELS, IMAGES, strict=True)), image=1, label=0),
    "labels": lambda: data.from_indexable([{"image": image} for image in IMAGES], labels=LABELS),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_images_and_labels_are_those_of_the_examples(kind):
    source = SOURCES[kind]()
    assert source.image_shape == (6, 5, 3) and source.labels.dtype == np.int32
    found = data.read_all(source)
    np.testing.assert_array_equal(found.images, IMAGES)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.class_names == (("bird", "cat", "dog") if kind == "hugging face" else ("0", "1", "2"))
    np.testing.assert_array_equal(source.take(np.array([5, 3])).read(1), IMAGES[3])


def test_a_column_of_labels_is_read_without_the_images():
    examples = LikeHuggingFace()
    source = data.from_indexable(examples, image="img", label="fine")
    assert examples.read == [0]
    source.read(7)
    assert examples.read == [0, 7]


def test_sizes_and_channels():
    gray = [{"image": PIL.Image.fromarray(image[..., 0]), "label": 0} for image in IMAGES]
    assert data.from_indexable(gray).image_shape == (6, 5, 1)
    assert data.from_indexable(gray, channels=3, image_size=4).read(1).shape == (4, 4, 3)
    color = {"image": PIL.Image.fromarray(IMAGES[0]), "label": 0}
    assert data.from_indexable([color, gray[0]]).read(1).shape == (6, 5, 3)
    with pytest.raises(UserError, match="image 1 of examples has 3 channels, image 0 has 1: convert all of them"):
        data.from_indexable([gray[0], color]).read(1)
    assert data.from_indexable([gray[0], color], channels=1).read(1).shape == (6, 5, 1)
    floats = data.from_indexable([(image / 255, 0) for image in IMAGES[..., 0]], image_size=3)
    assert floats.read(2).dtype == np.float32 and floats.image_shape == (3, 3, 1)


@pytest.mark.parametrize(
    "examples, options, message",
    [
        ([], {}, "has no examples"),
        ([{"img": IMAGES[0], "label": 0}], {}, "example 0 of examples has no 'image'; it has: img, label"),
        ([{"image": IMAGES[0]}], {}, "example 0 of examples has no 'label'"),
        ([(IMAGES[0],)], {}, "example 0 of examples has no 'label'; it has: tuple"),
        ([IMAGES[0]], {}, "has no 'label'; it has: ndarray"),
        ([(IMAGES[0], "cat")], {}, "number the classes of names"),
        ([(IMAGES[0], -1)], {}, "range from -1"),
        ([(IMAGES[0], 1)], {"class_names": ["a"]}, "go up to 1, and there are 1 class names"),
        ([(IMAGES[0], 1)], {"labels": [1, 2]}, "has 1 examples and 2 labels"),
        ([(IMAGES[0] * 1.0, 1)], {}, "image 0 of examples has values in .* divide by 255"),
        ([(IMAGES[0].astype(int), 1)], {}, r"image 0 of examples is int64 \[6, 5, 3\]"),
        ([(b"no image", 1)], {}, "image 0 of examples is not a readable image"),
        ([(png(IMAGES[0])[:60], 1)], {}, "image 0 of examples is not a readable image"),
    ],
)
def test_what_are_no_examples_is_refused(examples, options, message):
    with pytest.raises(UserError, match=message) as error:
        data.from_indexable(examples, **options)
    assert "\n" not in str(error.value)


def test_iterables_are_refused_and_later_mistakes_show_when_read():
    with pytest.raises(TypeError, match="convert an iterable to a list"):
        data.from_indexable(iter([(IMAGES[0], 1)]))
    source = data.from_indexable([(IMAGES[0], 0), (IMAGES[1][:3], 0), (b"", 1)])
    with pytest.raises(UserError, match="differ in size"):
        data.read_all(source)
    with pytest.raises(UserError, match="image 2 of examples is not a readable image"):
        source.read(2)


# Functions of the user's own ------------------------------------------------------------------------------------------

MODULE = """
import numpy as np
from advjax import data

def arrays(split):
    images = np.random.RandomState(len(split)).randint(0, 256, (40, 16, 16), dtype=np.uint8)
    return data.from_arrays(images, np.arange(40) % 4, name="mine")

def examples(split):
    found = arrays(split)
    return data.from_indexable(list(zip(found.images, found.labels)), name="mine")

def nothing(split):
    return [split]

def split_error(split):
    raise ValueError("a bug")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_data", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def splits_of(name, **changes):
    run = defaults.run(model={"name": "lenet5"}, num_steps=2, batch_size=4, select="last")
    config = defaults.experiment(data={"name": name, **changes}, runs=("base",), run={"base": run})
    return from_config(config).load_data().splits


def image(part, position):
    return part.read(position) if isinstance(part, data.Source) else part.images[position]


@pytest.mark.parametrize("stream", [False, True])
def test_a_config_may_name_a_function(module, stream):
    """Found in the current folder, as by ``python -m``."""
    arrays, examples = (splits_of(f"my_data:{name}", stream=stream) for name in ("arrays", "examples"))
    for one, other in zip(arrays, examples, strict=True):
        assert one.name == other.name == "mine"
        np.testing.assert_array_equal(one.labels, other.labels)
        for position in range(len(one.labels)):
            np.testing.assert_array_equal(image(one, position), image(other, position))
    assert [len(part.labels) for part in arrays] == [40, 0, 40]
    assert splits_of("my_data:examples", image_size=8, fractions=(0.5, 0.25, 0.25))[2].image_shape == (8, 8, 1)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("my_data:nothing", {}, "my_data:nothing must return an advjax.data.Dataset or Source, and returned list"),
        ("my_data:missing", {}, "data.name: 'my_data:missing' cannot be imported"),
        ("no_module:load", {}, "data.name: 'no_module:load' cannot be imported: No module named 'no_module'"),
        ("my_data:np", {}, "'my_data:np' is not a function"),
        ("my_data/other:load", {}, "write package.module:function"),
        ("my_data:arrays", {"dir": "x"}, "data.dir has no effect on the function my_data:arrays"),
    ],
)
def test_functions_that_are_not_for_data_are_refused(module, name, changes, message):
    with pytest.raises(UserError, match=message):
        splits_of(name, **changes)


def test_an_error_in_the_function_is_shown_whole(module):
    with pytest.raises(ValueError, match="a bug"):
        data.load("my_data:split_error", "train")
