"""Cross-architecture augmentation: adversarial copies of the training images, made once on an earlier run and kept.

``<workdir>/copies/<attack>.<made_on>.<digest>/`` is a result store (`advjax.attacks.result_store`) with parts of 2,048
images in their order.  Runs that train on the same copies share it; an interrupted run resumes after its last part.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from advjax import data
from advjax.attacks import model_queries, run_identity
from advjax.attacks.keys import image_keys
from advjax.attacks.result_store import ResultStore
from advjax.data import Dataset, Source
from advjax.data.source import joined
from advjax.evaluation.adversarial_sets import quantized
from advjax.evaluation.attack_runs import NamedAttack, Resources, run_attack
from advjax.evaluation.scored_model import ScoredModel, as_trained
from advjax.experiment.spec import AdversarialCopies
from advjax.runtime.devices import is_main_process, sync
from advjax.runtime.files import plain
from advjax.runtime.preemption import PreemptedError
from advjax.runtime.progress import progress
from advjax.types import Array, UserError, Variables

_IMAGES_IN_A_PART = 2048


def with_copies(
    train: Dataset | Source, copies: AdversarialCopies, model: nn.Module, variables: Variables, resources: Resources
) -> Dataset | Source:
    """The training images, then all of them under the first attack, then under the second, and so on.

    Cross-architecture adversarial augmentation (002): ``A = union over epsilon of FGSM(source model, images)``; other
    networks are trained on the images and ``A``.

    Args:
      train: the images, in memory or streamed; the result is the same, with copies in memory or read from the store.
      copies: what to make.
      model: that of the run ``copies.made_on``.
      variables: of this run.
      resources: devices, seed, and the folder of the stores.

    Returns:
      ``train`` and its copies.  Positions are numbered anew, so that copies of one image augment independently; images
      are float32 [n, h, w, c] in [0, 1], or uint8 if ``copies.format`` says so; "float16" is how they are stored alone,
      with rounding errors up to 2^-12 = 0.00024, and read as float32.

    Raises:
      UserError: a store is damaged; or 8-bit copies are requested of images that are not 8-bit.
      PreemptedError: asked to stop; all finished parts are kept.
    """
    source = as_trained(copies.made_on, model, variables, train.image_shape)
    fingerprint = _fingerprint(train, source, resources.seed)
    stores = [_filled_store(train, copies, attack, source, fingerprint, resources) for attack in copies.attacks]
    # The main process writes; nobody reads before it is done.
    sync("adversarial copies")
    parts = [[part["images"] for part in store.parts()] for store in stores]
    for store, images in zip(stores, parts, strict=True):
        _check(images, train, copies.format, store)
    return _joined(train, parts, copies.format)


def _filled_store(
    train: Dataset | Source,
    copies: AdversarialCopies,
    attack: NamedAttack,
    source: ScoredModel,
    fingerprint: Mapping[str, np.ndarray],
    resources: Resources,
) -> ResultStore:
    """The store of the copies under one attack, after making what it lacks."""
    facts = _facts(train, copies, attack, source, resources.seed)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    assert resources.store is not None
    folder = os.path.join(resources.store, f"{attack.name}.{copies.made_on}.{digest}")
    store = ResultStore(folder, facts, fingerprint)
    starts = range(0, len(train.labels), _IMAGES_IN_A_PART)
    missing, title = starts[len(store.parts()) :], f"{attack.name} on {copies.made_on}"
    if not missing:
        return store
    with progress(title, len(train.labels), initial=missing[0]) as bar:
        for start in missing:
            if resources.stop_requested():
                raise PreemptedError(f"{title}: stopped before image {start} of {len(train.labels)}, state saved")
            part = train.take(np.arange(start, min(start + _IMAGES_IN_A_PART, len(train.labels))))
            part = part if isinstance(part, Dataset) else data.read_all(part)
            here = resources._replace(store=None, stop_requested=lambda: False)
            images = run_attack(source, attack, part, here, survivors_only=False).images
            if copies.format == "uint8":
                images = quantized(attack.threat_model, part.images, images)
            elif copies.format == "float16":
                images = images.astype(np.float16)
            if is_main_process():
                store.append({"images": images})
            bar.advance(len(images))
    return store


def _facts(
    train: Dataset | Source, copies: AdversarialCopies, attack: NamedAttack, source: ScoredModel, seed: int
) -> dict[str, Any]:
    """What decides the copies under one attack."""
    positions = hashlib.sha256(np.asarray(train.index, np.int32).tobytes()).hexdigest()
    facts = {"attack": attack.identity, "name": attack.name, "labels": copies.label_use, "format": copies.format}
    made = {"made_on": copies.made_on, "model_hash": source.hash, "seed": seed}
    images = {"data": train.name, "image_shape": train.image_shape, "count": len(train.labels), "positions": positions}
    return plain({**facts, **made, **images}, "copies")


def _fingerprint(train: Dataset | Source, source: ScoredModel, seed: int) -> dict[str, np.ndarray]:
    """Identifies the attacked model: the code of a network may change where its variables do not."""
    few = train.take(run_identity.few(len(train.labels)))
    few = few if isinstance(few, Dataset) else data.read_all(few)
    arguments = source.variables, data.pixels(few.images), image_keys(jax.random.key(seed), few.index)

    def answered(query: Callable[..., Array]) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            found = jax.jit(lambda variables, images, keys: query(source.attacked(variables), images, keys))(*arguments)
        return np.asarray(found)

    logits = answered(model_queries.evaluate)
    return run_identity.model_fingerprint(logits, lambda: answered(model_queries.probe_gradients))


def _check(parts: list[np.ndarray], train: Dataset | Source, kind: str, store: ResultStore) -> None:
    """Refuses parts that are not the copies of the training images."""
    for start, part in zip(range(0, len(train.labels), _IMAGES_IN_A_PART), parts, strict=True):
        expected = (min(_IMAGES_IN_A_PART, len(train.labels) - start), *train.image_shape)
        if part.shape != expected or part.dtype != kind:
            there = f"{part.dtype} {list(part.shape)}, not {kind} {list(expected)}"
            raise UserError(f"{store.folder} holds {there}: remove it, and the copies are made again")


def _joined(train: Dataset | Source, copies: list[list[np.ndarray]], kind: str) -> Dataset | Source:
    if isinstance(train, Dataset):
        return data.concatenate([train, *(train._replace(images=_readable(np.concatenate(parts))) for parts in copies)])
    read = train.read
    # One batch holds images and copies, so all of them are of one type.
    clean = train if kind == "uint8" else train._replace(read=lambda position: data.pixels(read(position)))
    return joined([clean, *(_opened(parts, train) for parts in copies)])


def _opened(parts: list[np.ndarray], train: Source) -> Source:
    return train._replace(
        read=lambda position: _readable(parts[position // _IMAGES_IN_A_PART][position % _IMAGES_IN_A_PART])
    )


def _readable(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) if images.dtype == np.float16 else images
