"""Folders of image files: histology patches and any other images that are not in tfds.

The images are in one directory per class, ``<class>/...``, or ``<split>/<class>/...`` if a directory is named train,
test, val, valid, or validation; without such directories, all of them are the split "train", which ``data.fractions``
divides. Or a ``manifest.csv`` lists them; it has a header and one line per image:

* ``file``: path relative to the folder;
* ``split``: "train", "validation", "test", or any other name;
* ``label``: the class;
* ``patient`` (optional): the patient; no patient may be in two splits.

Other columns are ignored, and so is the case of column names. Classes are numbered in the alphabetical order of all
labels, or in numerical order if all of them are whole numbers. The original order is that of the lines or paths.
"""

import hashlib
import os
import pathlib

import numpy as np

from advjax.data import array_cache, images
from advjax.data.dataset import Dataset, check
from advjax.data.image_list import MANIFEST, list_images
from advjax.data.source import Source, read_all
from advjax.types import UserError


def open_folder(folder: str | os.PathLike, split: str, *, image_size: int = 0) -> Source:
    """Opens one split of an image folder; images are decoded when they are read.

    Args:
      folder: the folder; its last component is the name of the dataset.
      split: one of the splits of the folder.
      image_size: if positive, images are resized so that the shorter side has this length, and center-cropped to a
        square (see ``images.square``); 0 keeps the stored size, which must then be the same for all images.

    Returns:
      ``Source`` of uint8 images [h, w, 3], with ``groups`` if the manifest has patients.

    Raises:
      UserError: there are neither a manifest nor directories, the manifest lacks a column or a value, a file is listed
        twice, is missing, or lies outside the folder, the split does not exist, or an image or a patient is in two
        splits. Reading an image raises a UserError if its file is not an intact image.
    """
    return _open(pathlib.Path(folder).expanduser(), split, image_size)[0]


def load_folder(folder: str | os.PathLike, split: str, *, image_size: int = 0) -> Dataset:
    """Loads one split of an image folder into memory; arguments and errors as in ``open_folder``.

    Decoded images are cached, see ``array_cache``; the cache entry is valid for exactly the same files.
    """
    folder = pathlib.Path(folder).expanduser()
    source, files = _open(folder, split, image_size)
    safe_split = "".join(letter if letter.isalnum() else "-" for letter in split)
    manifest = [folder / MANIFEST] if (folder / MANIFEST).exists() else []
    # The paths, because files of two directories may have equal names, sizes and times.
    listing = "\n".join(str(file.relative_to(folder)) for file in files)
    arrays = array_cache.get(
        f"{source.name}-{safe_split}-{image_size or 'stored'}-{hashlib.sha256(listing.encode()).hexdigest()[:8]}",
        source_files=[*manifest, *files],
        compute=lambda: {"images": read_all(source).images},
    )
    return check(Dataset(source.name, arrays["images"], source.labels, source.index, source.class_names, source.groups))


def _open(folder: pathlib.Path, split: str, image_size: int) -> tuple[Source, list[pathlib.Path]]:
    listed = list_images(folder)
    class_names = _class_names({image.label for image in listed})
    chosen = [image for image in listed if image.split == split]
    files = [folder / image.file for image in chosen]
    if not chosen:
        raise _no_such_split(folder, split, list(dict.fromkeys(image.split for image in listed)))
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(
            f"{len(missing)} of {len(files)} files of split {split!r} in {folder / MANIFEST} do not exist, "
            f"the first is {missing[0]}: copy the folder again, or remove these lines"
        )

    def read(position: int) -> np.ndarray:
        image = _decode(files[position])
        return images.square(image, image_size) if image_size else image

    number_of = {name: number for number, name in enumerate(class_names)}
    patients = [image.patient for image in chosen if image.patient is not None]
    source = Source(
        folder.resolve().name,
        (image_size, image_size, 3) if image_size else read(0).shape,
        read,
        np.array([number_of[image.label] for image in chosen], np.int32),
        np.arange(len(chosen), dtype=np.int32),
        class_names,
        np.array(patients) if patients else None,
    )
    return source, files


def _no_such_split(folder: pathlib.Path, split: str, known: list[str]) -> UserError:
    has_manifest = (folder / MANIFEST).exists()
    hint = "" if has_manifest or known != ["train"] else "; divide it with data.fractions, such as (0.7, 0.1, 0.2)"
    place = folder / MANIFEST if has_manifest else folder
    return UserError(f"{place} has no split {split!r}; it has: {', '.join(known)}{hint}")


def _class_names(names: set[str]) -> tuple[str, ...]:
    is_numeric = all(name.isascii() and name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if is_numeric else sorted(names))


def _decode(path: pathlib.Path) -> np.ndarray:
    try:
        return images.decode(path)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} is not a readable image ({reason}): copy it again, or remove its line from {MANIFEST} or, without "
            "one, the file"
        ) from error
