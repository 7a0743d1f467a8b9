"""The list of the images in an image folder: its ``manifest.csv``, or one directory per class."""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import PIL.Image

from advjax.types import UserError

MANIFEST = "manifest.csv"
_REQUIRED = ("file", "split", "label")
_SPLITS = ("train", "test", "val", "valid", "validation")


class ListedImage(NamedTuple):
    """An image of a folder."""

    file: str
    """Path relative to the folder, in its only normal spelling."""
    split: str
    label: str
    patient: str | None


def list_images(folder: pathlib.Path) -> list[ListedImage]:
    """All images of a folder, in their original order.

    Raises:
      UserError: there is neither a manifest nor one directory per class, something is wrong with the manifest, or an
        image is in two places.
    """
    if not (folder / MANIFEST).exists() and any(directories := _directories(folder)):
        return _list_directories(folder, directories)
    return _read_manifest(folder / MANIFEST)


def _list_directories(folder: pathlib.Path, directories: Sequence[pathlib.Path]) -> list[ListedImage]:
    """The images of ``<class>/`` or, if directories are named like splits, of ``<split>/<class>/``.

    Their order is that of their paths, which does not depend on the file system.
    """
    named = [directory for directory in directories if directory.name.lower() in _SPLITS]
    # A single one that holds no directories is a class: trains are vehicles, too.
    divided = len(named) > 1 or any(map(_directories, named))
    splits = [(directory.name, directory) for directory in directories] if divided else [("train", folder)]
    found, classes = [], {}
    for split, where in splits:
        classes[split] = [directory.name for directory in _directories(where)]
        if not classes[split]:
            raise UserError(f"{where} has no directories, and must have one per class: move the images into them")
        for name in classes[split]:
            files = _images(where / name)
            if not files:
                raise UserError(f"{where / name} has no images: remove this directory, or fill it")
            found += [ListedImage(str(file.relative_to(folder)), split, name, None) for file in files]
    for split, names in classes.items():
        if extra := sorted(set(names) - set(classes.get("train", names))):
            raise UserError(f"{folder / split} has a class {extra[0]!r} that {folder / 'train'} has not: rename one")
    _check_unique([image.file for image in found], [f"in {image.file}" for image in found], folder, "file {} is")
    return found


def _directories(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _images(directory: pathlib.Path) -> list[pathlib.Path]:
    """The image files in a directory and below, by their suffixes."""
    known = PIL.Image.registered_extensions()
    below = sorted(directory.rglob("*"))
    return [path for path in below if path.suffix.lower() in known and not path.name.startswith(".") and path.is_file()]


def _read_manifest(path: pathlib.Path) -> list[ListedImage]:
    lines, columns = _read_lines(path)
    if absent := [column for column in _REQUIRED if column not in columns]:
        raise UserError(
            f"{path} has no column {absent[0]!r}; its first line names {', '.join(columns) or 'none'}, "
            f"and must name {', '.join(_REQUIRED)}"
        )
    needed = [*_REQUIRED, *(["patient"] if "patient" in columns else [])]
    for number, line in lines:
        if empty := [column for column in needed if not line.get(column)]:
            raise UserError(f"line {number} of {path} has no {empty[0]}; every line needs {', '.join(needed)}")
    if not lines:
        raise UserError(f"{path} lists no images; write one line for each, with {', '.join(needed)}")
    images = [
        ListedImage(_location(line["file"], path, number), line["split"], line["label"], line.get("patient"))
        for number, line in lines
    ]
    _check_unique([image.file for image in images], [str(number) for number, _ in lines], path, "file {} is on lines")
    if "patient" in columns:
        splits = [image.split for image in images]
        _check_apart([str(image.patient) for image in images], splits, path, "patient {} is in")
    return images


def _read_lines(path: pathlib.Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """The numbered lines of the manifest, by column, and the names of the columns, in lower case."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            columns = [column.strip().lower() for column in next(reader, ())]
            lines = [(reader.line_num, dict(zip(columns, line, strict=False))) for line in reader if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error}): an image folder needs one directory per class, or a text file "
            f"{MANIFEST} with the columns {', '.join(_REQUIRED)}; set --config.data.dir to the folder"
        ) from error
    if twice := [column for column in (*_REQUIRED, "patient") if columns.count(column) > 1]:
        raise UserError(f"{path} has two columns {twice[0]!r}, whose case makes no difference: rename one")
    return lines, columns


def _location(file: str, path: pathlib.Path, number: int) -> str:
    """The path relative to the folder, in its only normal spelling."""
    normal = os.path.normpath(file)
    if os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir:
        raise UserError(f"line {number} of {path}: file {file!r} is outside the folder; give a path relative to it")
    return normal


def _check_unique(locations: Sequence[str], places: Sequence[str], path: pathlib.Path, what: str) -> None:
    """Refuses an image that is listed twice, also under two spellings or through a link."""
    folder = path if path.is_dir() else path.parent
    _check_apart(locations, places, path, what)
    _check_apart([os.path.realpath(folder / location) for location in locations], places, path, what)


def _check_apart(keys: Sequence[str], places: Sequence[str], path: pathlib.Path, what: str) -> None:
    """Refuses a key in two places: a model must not be tested on what it was trained on."""
    found: dict[str, str] = {}
    for key, place in zip(keys, places, strict=True):
        if found.setdefault(key, place) != place:
            raise UserError(
                f"{path}: {what.format(repr(key))} {found[key]} and {place}; it may be in only one: correct the file"
            )
