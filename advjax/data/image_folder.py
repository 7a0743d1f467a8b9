"""Folders of image files with a ``manifest.csv``: histology patches and any other images that are not in tfds.

The manifest has a header and one line per image:

* ``file``: path relative to the folder;
* ``split``: "train", "validation", "test", or any other name;
* ``label``: the class;
* ``patient`` (optional): the patient; no patient may be in two splits.

Other columns are ignored. Classes are numbered in the alphabetical order of all labels in the manifest, or in numerical
order if all of them are whole numbers. The order of the lines is the original order.
"""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from advjax.data import array_cache, images
from advjax.data.dataset import Dataset, check
from advjax.data.source import Source, read_all
from advjax.types import UserError

MANIFEST = "manifest.csv"
_REQUIRED = ("file", "split", "label")


class _Row(NamedTuple):
    file: str
    split: str
    label: str
    patient: str | None


def open_folder(folder: str | os.PathLike, split: str, *, image_size: int = 0) -> Source:
    """Opens one split of an image folder; images are decoded when they are read.

    Args:
      folder: the folder with the manifest; its last component is the name of the dataset.
      split: one of the splits in the manifest.
      image_size: if positive, images are resized so that the shorter side has this length, and center-cropped to a
        square (see ``images.square``); 0 keeps the stored size, which must then be the same for all images.

    Returns:
      ``Source`` of uint8 images [h, w, 3], with ``groups`` if the manifest has patients.

    Raises:
      UserError: there is no manifest, it lacks a column or a value, a file is listed twice, is missing, or lies outside
        the folder, the split does not exist, or a patient is in two splits. Reading an image raises a UserError if its
        file is not an intact image.
    """
    return _open(pathlib.Path(folder).expanduser(), split, image_size)[0]


def load_folder(folder: str | os.PathLike, split: str, *, image_size: int = 0) -> Dataset:
    """Loads one split of an image folder into memory; arguments and errors as in ``open_folder``.

    Decoded images are cached, see ``array_cache``; the cache entry is valid for exactly the same files.
    """
    folder = pathlib.Path(folder).expanduser()
    source, files = _open(folder, split, image_size)
    safe_split = "".join(letter if letter.isalnum() else "-" for letter in split)
    arrays = array_cache.get(
        f"{source.name}-{safe_split}-{image_size or 'stored'}",
        source_files=[folder / MANIFEST, *files],
        compute=lambda: {"images": read_all(source).images},
    )
    return check(Dataset(source.name, arrays["images"], source.labels, source.index, source.class_names, source.groups))


def _open(folder: pathlib.Path, split: str, image_size: int) -> tuple[Source, list[pathlib.Path]]:
    rows = _read_manifest(folder / MANIFEST)
    class_names = _class_names({row.label for row in rows})
    chosen = [row for row in rows if row.split == split]
    files = [folder / row.file for row in chosen]
    if not chosen:
        known = ", ".join(dict.fromkeys(row.split for row in rows))
        raise UserError(f"{folder / MANIFEST} has no split {split!r}; it has: {known}")
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(
            f"{len(missing)} of {len(files)} files of split {split!r} in {folder / MANIFEST} do not exist, "
            f"the first is {missing[0]}: copy the folder again, or remove these lines"
        )

    def read(position: int) -> np.ndarray:
        image = _decode(files[position])
        return images.square(image, image_size) if image_size else image

    number_of = {name: number for number, name in enumerate(class_names)}
    patients = [row.patient for row in chosen if row.patient is not None]
    source = Source(
        folder.resolve().name,
        (image_size, image_size, 3) if image_size else read(0).shape,
        read,
        np.array([number_of[row.label] for row in chosen], np.int32),
        np.arange(len(chosen), dtype=np.int32),
        class_names,
        np.array(patients) if patients else None,
    )
    return source, files


def _read_manifest(path: pathlib.Path) -> list[_Row]:
    lines, columns = _read_lines(path)
    if absent := [column for column in _REQUIRED if column not in columns]:
        raise UserError(
            f"{path} has no column {absent[0]!r}; its first line names {', '.join(columns) or 'none'}, "
            f"and must name {', '.join(_REQUIRED)}"
        )
    needed = [*_REQUIRED, *(["patient"] if "patient" in columns else [])]
    for number, line in lines:
        if empty := [column for column in needed if not line[column]]:
            raise UserError(f"line {number} of {path} has no {empty[0]}; every line needs {', '.join(needed)}")
    rows = [_Row(line["file"], line["split"], line["label"], line.get("patient")) for _, line in lines]
    if not rows:
        raise UserError(f"{path} lists no images; write one line for each, with {', '.join(needed)}")
    numbers = [str(number) for number, _ in lines]
    _check_unique([_location(row.file, path, number) for row, number in zip(rows, numbers, strict=True)], numbers, path)
    if "patient" in columns:
        _check_apart([str(row.patient) for row in rows], [row.split for row in rows], path, "patient {} is in")
    return rows


def _read_lines(path: pathlib.Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """The numbered lines of the manifest, by column, and the names of the columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            return [(reader.line_num, line) for line in reader], columns
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error}): an image folder needs a text file {MANIFEST} with the columns "
            f"{', '.join(_REQUIRED)}; set --config.data.dir to the folder"
        ) from error


def _location(file: str, path: pathlib.Path, number: str) -> str:
    """The path relative to the folder, in its only normal spelling."""
    normal = os.path.normpath(file)
    if os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir:
        raise UserError(f"line {number} of {path}: file {file!r} is outside the folder; give a path relative to it")
    return normal


def _check_unique(locations: Sequence[str], numbers: Sequence[str], path: pathlib.Path) -> None:
    """Refuses an image that is listed twice, also under two spellings or through a link."""
    _check_apart(locations, numbers, path, "file {} is on lines")
    links = [os.path.realpath(path.parent / location) for location in locations]
    _check_apart(links, numbers, path, "file {} is on lines")


def _check_apart(keys: Sequence[str], places: Sequence[str], path: pathlib.Path, what: str) -> None:
    """Refuses a key in two places: a model must not be tested on what it was trained on."""
    found: dict[str, str] = {}
    for key, place in zip(keys, places, strict=True):
        if found.setdefault(key, place) != place:
            raise UserError(
                f"{path}: {what.format(repr(key))} {found[key]} and {place}; it may be in only one: correct the file"
            )


def _class_names(names: set[str]) -> tuple[str, ...]:
    is_numeric = all(name.isascii() and name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if is_numeric else sorted(names))


def _decode(path: pathlib.Path) -> np.ndarray:
    try:
        return images.decode(path)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} is not a readable image ({reason}): copy it again, or remove its line from {MANIFEST}"
        ) from error
