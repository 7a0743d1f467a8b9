"""Attacked copies of training images: made once on a trained run, kept, and learnt beside the images themselves.

<workdir>/copies/<attack>.<made_on>.<digest>/about.json, 00000.npy, 00001.npy, ...   2,048 images each, in their order

Runs that ask for the same copies share them.  What was interrupted goes on after the last file that is there.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from advjax import data
from advjax.data import Dataset, Source
from advjax.data.source import joined
from advjax.evaluation.adversarial_sets import quantized
from advjax.evaluation.evaluate import attacker
from advjax.evaluation.scored_model import model_hash, one_draw
from advjax.experiment.spec import Copies, NamedAttack
from advjax.runtime.devices import Devices
from advjax.runtime.environment import describe_environment
from advjax.runtime.files import plain, write_atomically
from advjax.runtime.preemption import PreemptedError
from advjax.runtime.progress import progress
from advjax.types import UserError, Variables

FOLDER = "copies"
_IMAGES_IN_A_FILE = 2048


def with_copies(
    train: Dataset | Source,
    copies: Copies,
    model: nn.Module,
    variables: Variables,
    *,
    workdir: str,
    seed: int,
    batch_size: int,
    devices: Devices,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Dataset | Source:
    """The training images, then all of them under the first attack, then under the second, and so on.

    Cross-architecture adversarial augmentation (002): ``A = union over epsilon of FGSM(source model, images)``, and
    others learn from the images and ``A``.

    Args:
      train: the images, in memory or streamed; the result is the same, with copies in memory or read from the files.
      copies: what to make.
      model: that of the run ``copies.made_on``.
      variables: of this run.
      workdir: where the files go.
      seed: of attacks that draw.
      batch_size: how many images are attacked at once.
      devices: what computes.
      stop_requested: asked after every file.

    Returns:
      ``train`` and its copies.  Positions are numbered anew, so that copies of one image augment independently; images
      are float32 [n, h, w, c] in [0, 1], or uint8 if ``copies.format`` says so.

    Raises:
      UserError: a file is damaged; or 8-bit copies are asked for, of images that have no 8 bits.
      PreemptedError: asked to stop; all whole files are kept.
    """
    code = model_hash(variables)
    folders = []
    for attack in copies.attacks:
        facts = _facts(train, copies, attack, code, seed)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        folder = pathlib.Path(workdir, FOLDER, f"{attack.name}.{copies.made_on}.{digest}")
        attack_fn = attack.for_transfer(copies.label_use)
        network = one_draw(model, variables, train.image_shape)
        run = attacker(network, attack_fn, attack.name, devices, batch_size)

        def attacked(part: Dataset, run=run, attack=attack) -> np.ndarray:
            images = run(variables, part, seed, None).images
            return quantized(attack.threat_model, part.images, images) if copies.format == "uint8" else images

        _make(train, folder, attacked, f"{attack.name} on {copies.made_on}", stop_requested)
        if jax.process_index() == 0:
            _describe(folder, facts)
        folders.append(folder)
    if jax.process_count() > 1:
        # The first process writes; nobody reads before it is done.
        multihost_utils.sync_global_devices("attacked copies")
    return _joined(train, folders, copies.format)


def _facts(train: Dataset | Source, copies: Copies, attack: NamedAttack, code: str, seed: int) -> dict[str, Any]:
    """What decides the copies under one attack."""
    positions = hashlib.sha256(np.asarray(train.index, np.int32).tobytes()).hexdigest()
    facts = {"attack": attack.spec, "name": attack.name, "labels": copies.label_use, "format": copies.format}
    source = {"made_on": copies.made_on, "model_hash": code, "seed": seed}
    images = {"data": train.name, "image_shape": train.image_shape, "count": len(train.labels), "positions": positions}
    return plain({**facts, **source, **images}, "copies")


def _make(
    train: Dataset | Source,
    folder: pathlib.Path,
    attacked: Callable[[Dataset], np.ndarray],
    title: str,
    stop_requested: Callable[[], bool],
) -> None:
    """Makes the files that are not there yet."""
    count = len(train.labels)
    missing = [
        (path, positions)
        for start in range(0, count, _IMAGES_IN_A_FILE)
        for positions in [np.arange(start, min(start + _IMAGES_IN_A_FILE, count))]
        if not (path := _file(folder, start)).exists()
    ]
    if not missing:
        return
    with progress(title, count, initial=count - sum(len(positions) for _, positions in missing)) as bar:
        for path, positions in missing:
            if stop_requested():
                raise PreemptedError(f"{title}: stopped before image {positions[0]} of {count}, state saved")
            part = train.take(positions)
            images = attacked(part if isinstance(part, Dataset) else data.read_all(part))
            if jax.process_index() == 0:
                write_atomically(path, lambda file, images=images: np.save(file, images))
            bar.advance(len(positions))


def _describe(folder: pathlib.Path, facts: Mapping[str, Any]) -> None:
    path = folder / "about.json"
    if not path.exists():
        write_atomically(path, (json.dumps({**facts, **describe_environment()}, indent=1) + "\n").encode())


def _joined(train: Dataset | Source, folders: list[pathlib.Path], kind: str) -> Dataset | Source:
    if isinstance(train, Dataset):
        copies = [train._replace(images=np.concatenate(_read(folder, train, kind))) for folder in folders]
        return data.concatenate([train, *copies])
    read = train.read
    # One batch holds images and copies: all of them are of one type.
    clean = train if kind == "uint8" else train._replace(read=lambda position: data.pixels(read(position)))
    return joined([clean, *(_opened(folder, train, kind) for folder in folders)])


def _opened(folder: pathlib.Path, train: Source, kind: str) -> Source:
    files = _read(folder, train, kind)
    return train._replace(read=lambda position: files[position // _IMAGES_IN_A_FILE][position % _IMAGES_IN_A_FILE])


def _read(folder: pathlib.Path, train: Dataset | Source, kind: str) -> list[np.ndarray]:
    """The arrays in the files of a folder, left on the disk until they are used."""
    count, found = len(train.labels), []
    for start in range(0, count, _IMAGES_IN_A_FILE):
        path, expected = _file(folder, start), (min(_IMAGES_IN_A_FILE, count - start), *train.image_shape)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}): remove it, and it is made again") from error
        if array.shape != expected or array.dtype != kind:
            there = f"{array.dtype} {list(array.shape)}, not {kind} {list(expected)}"
            raise UserError(f"{path} holds {there}: remove it, and it is made again")
        found.append(array)
    return found


def _file(folder: str | os.PathLike[str], start: int) -> pathlib.Path:
    return pathlib.Path(folder, f"{start // _IMAGES_IN_A_FILE:05}.npy")
