"""Attacks run on the images of a data set: what is run, on which model, and what it found."""

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import Progress, Stage, ThreatModel, Verdicts, in_precision, run_stages
from advjax.data import Dataset, pixels
from advjax.evaluation.adversarial_sets import allowed
from advjax.evaluation.scored_model import ScoredModel
from advjax.runtime.devices import Devices, gather_parts, pad_to_multiple, process_count, process_index
from advjax.runtime.preemption import PreemptedError
from advjax.runtime.progress import progress
from advjax.types import AttackFn


class NamedAttack(NamedTuple):
    """An attack under the name that the report gives it."""

    name: str
    threat_model: ThreatModel
    stages: tuple[Stage, ...]
    """What runs, in order; an attack by itself is one stage, with a round for each restart."""
    attack: AttackFn | None
    """The same as one function of a batch, for use inside jit; None for an ensemble of stages."""
    is_noise: bool
    """Whether it is random noise, drawn without looking at any model."""
    is_query: bool
    """Whether it uses the outputs of the model alone, no gradients."""
    search_dtype: str | None
    """Floating-point type that the search computes in, if not the model's; verdicts are in the model's own."""
    identity: Mapping[str, Any]
    """What the attack is, as plain data: equal for equal attacks."""

    @property
    def epsilon(self) -> float | None:
        """None for a minimum-norm attack."""
        return float(self.threat_model.epsilon) if self.threat_model.is_bounded else None

    @property
    def norm(self) -> str:
        """Name of the norm."""
        return self.threat_model.norm.name

    @property
    def is_ensemble(self) -> bool:
        return self.attack is None

    @property
    def is_examinable(self) -> bool:
        """Whether a report card can be about its threat model: linf or l2, and a finite epsilon above 0."""
        return self.threat_model.norm.dense and self.threat_model.is_bounded and float(self.threat_model.epsilon) > 0


class AttackRun(NamedTuple):
    """Adversarial images of a data set and how they were made."""

    source: ScoredModel
    """The model that was attacked."""
    attack: NamedAttack
    labels: str
    """What the attack took for the labels: "true", or "predicted" by the attacked model."""
    protocol: str
    """"sound", or "faithful" to a paper."""
    is_verdict: bool
    """Made to score the source itself; otherwise to be shown to other models."""
    result: Verdicts
    inside: np.ndarray
    """bool [n]: the image is inside the threat model."""


class Resources(NamedTuple):
    """What every attack run of an evaluation shares."""

    devices: Devices
    batch_size: int
    seed: int
    store: str | None
    """Folder of results that an interrupted run resumes from; None keeps nothing.  All processes see it."""
    stop_requested: Callable[[], bool] = lambda: False
    """Asked before a run and after its batches."""
    split: str = "test"
    """What the images are of, as the report names it."""


def run_attack(
    source: ScoredModel,
    attack: NamedAttack,
    dataset: Dataset,
    resources: Resources,
    *,
    survivors_only: bool,
    title: str | None = None,
    name: str | None = None,
) -> Verdicts:
    """Runs an attack on every image of a data set, on all devices of all processes.

    Each image has its own key, derived from (seed, name of the attack, index): neither batch size nor order nor the
    number of devices changes what happens to it.  Each process attacks its share of the images on its own devices.

    Args:
      source: the model to attack.
      attack: what to run.
      dataset: images uint8 or float [n, h, w, c], and the labels to leave.
      resources: devices, seed and store.
      survivors_only: leave an image alone at its first success, for verdicts; otherwise every image gets the whole
        attack, as transfer sets and training images need it.  Minimum-norm attacks always run to their end, ensembles
        always stop at a success.
      title: shown while it runs; None runs silently.
      name: of the store; by default the attack and the model.

    Raises:
      PreemptedError: asked to stop; what has been done is in the store.
    """
    if attack.is_ensemble or not attack.threat_model.is_bounded:
        survivors_only = attack.is_ensemble
    parts = np.array_split(np.arange(len(dataset.labels)), process_count())
    mine = parts[process_index()]
    search_fn = in_precision(jnp.dtype(attack.search_dtype), source.attacked) if attack.search_dtype else None
    batch = resources.devices.local_rows(pad_to_multiple(resources.batch_size, resources.devices.mesh))
    label, start = title or attack.name, time.perf_counter()
    if resources.stop_requested():
        raise PreemptedError(f"{label}: stopped before it, state saved")
    with _RoundBars(title, only=len(attack.stages) == 1) as bars:

        def show(at: Progress) -> None:
            bars.show(at)
            # The processes of a job finish different numbers of batches and could not agree on when to stop.
            if process_count() == 1 and resources.stop_requested():
                raise PreemptedError(f"{label}: stopped in {at.stage} {at.round + 1}/{at.num_rounds}, state saved")

        found = run_stages(
            attack.stages,
            attack.threat_model,
            source.attacked,
            pixels(dataset.images[mine]),
            dataset.labels[mine],
            variables=source.variables,
            search_fn=search_fn,
            index=dataset.index[mine],
            seed=_seed(attack, resources.seed),
            batch_size=batch.stop - batch.start,
            survivors_only=survivors_only,
            devices=list(resources.devices.mesh.local_mesh.devices.flat),
            progress=show,
            state_file=_store(resources, name or f"{attack.name}.{source.name}"),
        )
    counts = [len(part) for part in parts]
    arrays = {field: getattr(found, field) for field in found._fields if field != "seconds"}
    return Verdicts(**gather_parts(arrays, counts), seconds=max(found.seconds, time.perf_counter() - start))


def inside_threat_model(attack: NamedAttack, dataset: Dataset, images: np.ndarray, batch_size: int) -> np.ndarray:
    """bool [n]: the adversarial images are inside the threat model of the attack."""
    return allowed(attack.threat_model, pixels(dataset.images), images, batch_size)


def _seed(attack: NamedAttack, seed: int) -> Any:
    """Stages of an ensemble tell their keys apart by their numbers, attacks by themselves by their names."""
    return seed if attack.is_ensemble else jax.random.fold_in(jax.random.key(seed), zlib.crc32(attack.name.encode()))


def _store(resources: Resources, name: str) -> str | None:
    if resources.store is None:
        return None
    suffix = f".{process_index()}" if process_count() > 1 else ""
    return os.path.join(resources.store, name + suffix)


class _RoundBars:
    """A progress bar for one round of one stage after the other."""

    def __init__(self, title: str | None, only: bool) -> None:
        self._only = only
        self._title, self._resources, self._here, self._bar, self._done = title, contextlib.ExitStack(), None, None, 0

    def __enter__(self) -> "_RoundBars":
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def show(self, at: Progress) -> None:
        if self._title is None:
            return
        if self._here != (at.stage, at.round):
            self._resources.close()
            title = (
                self._title
                if self._only and at.num_rounds == 1
                else f"{self._title}: {at.stage} {at.round + 1}/{at.num_rounds}"
            )
            self._bar = self._resources.enter_context(progress(title, at.total))
            self._here, self._done = (at.stage, at.round), 0
        assert self._bar is not None
        self._bar.advance(at.done - self._done, robust=at.robust)
        self._done = at.done
