"""Runs any attacks over a data set: batches, verification of every success, and resuming after an interruption.

Host code around compiled programs; it works on any ``LogitsFn``, on the devices of this process.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import input_checks, resume, run_identity
from advjax.attacks.base import Attack
from advjax.attacks.batching import batches, default_batch_size, sizes_for
from advjax.attacks.bound_model import bind_model
from advjax.attacks.combine import Stage
from advjax.attacks.continuous_batching import Found, Inputs, attack_images
from advjax.attacks.eot import Expectation
from advjax.attacks.keys import folded_words, image_words, root_words
from advjax.attacks.model_queries import is_fooled
from advjax.attacks.program_cache import owner_of
from advjax.attacks.programs import Programs, Search
from advjax.attacks.result_store import ResultStore
from advjax.attacks.stage_checks import check_stages
from advjax.attacks.threat_model import ThreatModel
from advjax.attacks.verdicts import MISCLASSIFIED as MISCLASSIFIED
from advjax.attacks.verdicts import (
    ROBUST,
    Progress,
    RoundResults,
    Verdicts,
    better,
    merge,
    no_verdicts,
    warn_of_doubtful,
)
from advjax.types import Key, LogitsFn, UserError


def run_stages(
    stages: Sequence[Stage],
    threat_model: ThreatModel,
    logits_fn: LogitsFn | Expectation | Callable[[Any], LogitsFn | Expectation],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    variables: Any = None,
    search_fn: LogitsFn | Expectation | Callable[[Any], LogitsFn | Expectation] | None = None,
    index: np.ndarray | None = None,
    seed: int | Key = 0,
    batch_size: int | None = None,
    survivors_only: bool = True,
    devices: Sequence[Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    state_file: str | os.PathLike[str] | None = None,
) -> Verdicts:
    """Attacks every image with one stage after the other, and verifies what they find.

    A success counts only if the image is misclassified in a separate forward pass, in full precision, and if the threat
    model allows it.  An image whose success does not hold is attacked again in the precision of verdicts before it may
    count as robust (unless the model has no gradients, and the attack follows those of another one).

    An image whose attack has ended is replaced by the next one (continuous batching).  Attacks run on ``batch_size``
    images at a time, or a quarter or a sixteenth of that when fewer are left and this saves more than compiling another
    program costs, so that each is compiled at most three times per process.

    The key of an image is ``fold_in(key(seed), index)``, folded with the numbers of the stage and of the round.  A
    single stage leaves out the former, and a single round of it both, so that it gives what ``with_restarts`` or
    ``attack(logits_fn, images, labels, keys)`` gives on one batch.  Neither batches nor devices nor interruptions
    change the result for an image.

    Warns if images count as robust on which gradients were NaN or infinite, on which no attack with gradients made
    progress, or on which successes did not hold.

    Args:
      stages: attacks in order, e.g. ``auto_attack_stages(threat_model)``; one attack is
        ``(restarts("name", attack, 1),)``.
      threat_model: what is allowed; that of the attacks.
      logits_fn: ``images -> logits``, the ``expectation`` of a stochastic model, or, with ``variables``,
        ``variables ->`` one of these.
      images: float [n, h, w, c] inside the bounds.
      labels: int [n].
      variables: arrays of the model.  A later call with the same functions and other arrays does not trace or compile
        anything; ``logits_fn`` and ``search_fn`` are assumed to be pure, as by ``jax.jit``.
      search_fn: the model that attacks follow if not ``logits_fn`` itself, e.g. the same in bfloat16 by
        ``in_precision``.  Verdicts are about ``logits_fn``.
      index: int [n], position of each image in its data set; 0..n-1 if None.
      seed: of all randomness; an integer or a key.
      batch_size: images at a time, on all devices together; rounded up to a multiple of the number of devices.  None
        suits the devices: 64 on each CPU, 256 on each accelerator.  It limits memory; results do not depend on it.
      survivors_only: leave an image alone after its first verified success, and do not attack what is misclassified;
        for verdicts.  Otherwise every image is attacked to the end in a round; kept is the first success for a bounded
        threat model (later rounds leave the image alone), the closest for an unbounded one, else the result of the
        first round (as ``with_restarts(keep=...)`` does).  For transfer sets and minimum-norm attacks.
      devices: of this process; all of them if None.
      progress: called after each batch; what it raises ends the run, with its results saved.
      state_file: folder (``ResultStore``) that results are saved to every minute and after each round, and resumed
        from if it exists.  It belongs to stages, threat model, data, seed, batch sizes and model: to the bytes of
        ``variables``, and to logits and gradients at some images.  Stored successes are verified again.

    Raises:
      UserError: the folder belongs to another run, or is damaged.
      TypeError: a stage, the threat model or the model is something else.
      ValueError: shapes, dtypes or values make no sense, or a stage attacks in another threat model.
    """
    started = time.monotonic()
    stages = _as_stages(stages)
    check_stages(stages, threat_model)
    images, labels = np.asarray(images), np.asarray(labels)
    input_checks.check_inputs(images, labels, threat_model.bounds)
    if len(images) == 0:
        raise ValueError("run_stages needs at least one image")
    labels = labels.astype(np.int32)
    index = np.arange(len(images)) if index is None else input_checks.as_index(index, len(images))
    for name, function in (("logits_fn", logits_fn), ("search_fn", logits_fn if search_fn is None else search_fn)):
        if not callable(function) and not isinstance(function, Expectation):
            raise TypeError(f"{name} must be a function of images, or an attacks.expectation, got {function!r:.100}")
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    programs = make_programs(stages, threat_model, logits_fn, search_fn, variables, shape, batch_size, devices)
    root = root_words(seed)
    keys = np.asarray(image_words(root, index))
    problem = run_identity.Problem(images, labels, index, root, keys, _clean_logits(programs, images, labels, keys))
    for stage in stages:
        # No image may count as robust that no round attacks.
        input_checks.require_count(f"rounds of stage {stage.name!r}", stage.num_rounds(problem.logits.shape[1]))
    store = ResultStore(None, {})
    if state_file is not None:
        fingerprint = run_identity.fingerprint(problem, programs)
        options = {"has_variables": variables is not None, "has_gradients": "gradients" in fingerprint}
        facts = run_identity.identity(problem, stages, programs, survivors_only=survivors_only, **options)
        store = ResultStore(state_file, facts, fingerprint, run_identity.TOLERANCES)
    found = _run(_Run(programs, stages, problem, survivors_only, store, progress or (lambda at: None), started))
    warn_of_doubtful(found, [stage.name for stage in stages], survivors_only=survivors_only)
    return found


class _Run(NamedTuple):
    """A run, ready to start or resume."""

    programs: Programs
    stages: tuple[Stage, ...]
    problem: run_identity.Problem
    survivors_only: bool
    store: ResultStore
    progress: Callable[[Progress], None]
    started: float

    def keys(self, stage: int, number: int) -> np.ndarray:
        """Words of the images' keys in a round."""
        if len(self.stages) > 1:
            return np.asarray(folded_words(folded_words(self.problem.keys, stage), number))
        return np.asarray(folded_words(self.problem.keys, number)) if self.num_rounds(0) > 1 else self.problem.keys

    def num_rounds(self, stage: int) -> int:
        return self.stages[stage].num_rounds(self.problem.logits.shape[1])

    def search(self, stage: int, number: int) -> Search:
        """How an image is attacked in a round."""
        return Search(self.stages[stage], number, self.survivors_only, False)

    def repetitions(self, first: Search) -> list[Search]:
        """How an image is attacked again, one after the other, as long as verdicts refuse what was found.

        An attack that ends at its first success may always end at the same one, which holds in the batch of the attack
        alone, by rounding.  The last time, it goes on to its end.
        """
        attack = first.stage.attack(jnp.int32(0))
        is_query = isinstance(attack, Attack) and attack.objective is None
        is_other = self.programs.search is not self.programs.verdict
        if is_other and not is_query and not self.programs.verdict_has_gradients(self.problem.images):
            # What was found with the gradients of another model cannot be searched for again.
            return []
        precise = first._replace(is_precise=True)
        return [precise, precise._replace(until_success=False)] if self.survivors_only else [precise]

    def attacked(self, found: Verdicts) -> np.ndarray:
        """bool [n]: the images that the next round attacks."""
        robust = found.broken_by == ROBUST
        return robust if self.survivors_only else robust | (found.broken_by == MISCLASSIFIED) | self.is_closest

    def inputs(self, stage: int, number: int) -> Inputs:
        """What a round attacks."""
        return Inputs(self.problem.images, self.problem.labels, self.keys(stage, number), self.problem.logits)

    def verify(self, found: Verdicts, inputs: Inputs, result: Found, is_first: bool) -> RoundResults:
        """The verified results of some images."""
        keys = inputs.keys[result.rows]
        parts = [
            self.programs.verify(inputs.images[result.rows[part]], result.images[part], keys[part])
            for part in batches(np.arange(len(result.rows)), self.programs.sizes)
        ]
        logits, allowed, distance = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        success = np.asarray(is_fooled(logits, inputs.labels[result.rows])) & allowed
        kept = better(found, result.rows, success, distance, closest=self.is_closest)
        if is_first and not self.survivors_only:
            kept = np.ones_like(kept)
        refused, kept_results = result.claimed & ~success, (result.images[kept], distance[kept])
        course = result.nonfinite, result.progress
        return RoundResults(result.rows, result.steps, refused, *course, success, kept, *kept_results)

    @property
    def is_closest(self) -> bool:
        """Whether the closest success is kept, not the first."""
        return not self.survivors_only and not self.programs.threat_model.is_bounded


def _run(run: _Run) -> Verdicts:
    problem, stages = run.problem, range(len(run.stages))
    misclassified = np.asarray(is_fooled(problem.logits, problem.labels))
    stored = resume.load(run.store, problem, [run.num_rounds(stage) for stage in stages])
    if stored is None:
        run.store.append({"misclassified": misclassified})
        stored = resume.Stored({}, misclassified, 0.0)
    else:
        resume.check_stored(stored, problem, run.programs, run.keys, run.store)
    found = no_verdicts(problem.images, stored.misclassified, len(run.stages))
    recorder = resume.Recorder(run.store, run.started, stored.seconds)
    for stage in stages:
        began = time.perf_counter()
        for number in range(run.num_rounds(stage)):
            rows = np.flatnonzero(run.attacked(found))
            done = np.zeros(0, np.int64)
            if (results := stored.rounds.get((stage, number))) is not None:
                done = results.rows
                if not np.all(np.isin(done, rows)):
                    raise UserError(f"{run.store.folder} is damaged: delete the folder to start afresh")
                merge(found, results, stage)
            _run_round(run, recorder, found, stage, number, rows, done, began)
    return found._replace(seconds=recorder.seconds)


def _run_round(
    run: _Run,
    recorder: resume.Recorder,
    found: Verdicts,
    stage: int,
    number: int,
    rows: np.ndarray,
    done: np.ndarray,
    began: float,
) -> None:
    """Attacks those of the ``rows`` that are not ``done``, and records the results as attacks end."""
    count, name = len(done), run.stages[stage].name
    try:
        for results in _attack(run, found, stage, number, np.setdiff1d(rows, done)):
            merge(found, results, stage)
            recorder.add(results, stage, number)
            count += len(results.rows)
            counts = count, len(rows), int(np.sum(found.broken_by == ROBUST))
            seconds = time.perf_counter() - began
            run.progress(Progress(name, number, run.num_rounds(stage), *counts, seconds))
    finally:
        recorder.save()


def _attack(run: _Run, found: Verdicts, stage: int, number: int, rows: np.ndarray) -> Iterator[RoundResults]:
    """Attacks some images in one round until the verdict on each of them is certain."""
    if not len(rows):
        return
    inputs, search = run.inputs(stage, number), run.search(stage, number)
    repetitions: list[Search] | None = None
    steps, nonfinite = np.zeros(len(found.steps), np.int32), np.zeros(len(found.steps), bool)
    refused, progress = np.zeros(len(found.steps), bool), np.zeros(len(found.steps), np.int8)
    while True:
        again = []
        for result in attack_images(run.programs, search, inputs, rows):
            here = result.rows
            # Also those of the searches whose successes were refused.
            steps[here] += result.steps
            nonfinite[here] |= result.nonfinite
            progress[here] = np.maximum(progress[here], result.progress)
            result = result._replace(steps=steps[here], nonfinite=nonfinite[here], progress=progress[here])
            results = run.verify(found, inputs, result, (stage, number) == (0, 0))
            if repetitions is None and np.any(results.refused):
                repetitions = run.repetitions(search)
            certain = ~results.refused | (not repetitions)
            again.append(here[~certain])
            # A last search that claims nothing does not settle the doubts about the ones before it.
            refused[here] |= results.refused
            results = results._replace(refused=refused[here] & ~results.success)
            if np.any(certain):
                yield results.at(certain)
        rows = np.concatenate(again)
        if not len(rows) or not repetitions:
            return
        search, *repetitions = repetitions


def _as_stages(stages: Any) -> tuple[Any, ...]:
    """A tuple; a single stage, which is a tuple itself, is one of its own."""
    return tuple(stages) if isinstance(stages, Sequence) and not isinstance(stages, Stage | str) else (stages,)


def make_programs(
    stages: Sequence[Stage],
    threat_model: ThreatModel,
    logits_fn: Any,
    search_fn: Any,
    variables: Any,
    images: jax.ShapeDtypeStruct,
    batch_size: int | None,
    devices: Sequence[Any] | None,
) -> Programs:
    """The programs of ``run_stages``, not compiled yet; ``variables`` may be shapes and dtypes, too."""
    devices = jax.local_devices() if devices is None else list(devices)
    if not devices or any(device.process_index != jax.process_index() for device in devices):
        raise ValueError(f"devices must be one or more devices of this process, got {devices}")
    batch_size = default_batch_size(devices) if batch_size is None else batch_size
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__"):
        raise TypeError(f"batch_size must be an integer, got {batch_size!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    mesh, sizes = jax.sharding.Mesh(np.asarray(devices), ("data",)), sizes_for(batch_size, len(devices), len(images))
    dtype = jax.dtypes.canonicalize_dtype(images.dtype)
    example = jax.ShapeDtypeStruct((sizes[0] // len(devices), *images.shape[1:]), dtype)
    verdict = bind_model(logits_fn, variables, example, mesh)
    is_same = search_fn is None or search_fn is logits_fn
    search = verdict if is_same else bind_model(search_fn, variables, example, mesh)
    owners = {id(stage.attack): owner_of(stage.attack) for stage in stages}
    return Programs(threat_model, verdict, search, mesh, sizes, owners, len(images))


def _clean_logits(programs: Programs, images: np.ndarray, labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    found = []
    for rows in batches(np.arange(len(images)), programs.sizes):
        logits, _, _ = programs.verify(images[rows], images[rows], keys[rows])
        input_checks.check_logits(logits, images[rows], labels[rows])
        found.append(logits)
    return np.concatenate(found)
