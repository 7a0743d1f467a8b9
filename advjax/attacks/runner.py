"""Runs stages of attacks over a data set: only survivors go on, every verdict is verified, interruptions cost nothing.

Host code around compiled attacks; it works on any ``LogitsFn``, over the devices of this process.
"""

import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import input_checks, model_queries
from advjax.attacks.combine import Stage, call_attack
from advjax.attacks.eot import Expectation
from advjax.attacks.keys import AFTER, fold_in, model_keys
from advjax.attacks.result_store import StateFile
from advjax.attacks.threat_model import ThreatModel
from advjax.types import Array, Key, LogitsFn

_IDENTITY = "images, labels, index, predictions, stages, threat model, seed, batch size or version of JAX"
ROBUST, MISCLASSIFIED = -1, -2
"""Values of ``broken_by`` for images that no stage broke, and for those that are misclassified as they are."""


class Verdicts(NamedTuple):
    """What the stages found, one entry per image, as numpy arrays."""

    broken_by: np.ndarray
    """int32 [n]: the number of the stage that broke the image, ``ROBUST`` or ``MISCLASSIFIED``."""
    images: np.ndarray
    """float32 [n, h, w, c]: the adversarial images; the images themselves where there is none."""
    distance: np.ndarray
    """float32 [n]: size of the perturbation; 0 for robust and misclassified images."""
    steps: np.ndarray
    """int32 [n]: steps of all attacks on the image."""
    refused: np.ndarray
    """int32 [n]: successes that an attack claimed and the verification refused; those of a search in low precision."""
    nonfinite: np.ndarray
    """bool [n]: gradients were NaN or infinite in some attack on the image (``AttackResult.nonfinite``)."""

    def robust_after(self, stage: int) -> np.ndarray:
        """bool [n]: still classified correctly after the given stage; -1 means before the first one."""
        return (self.broken_by == ROBUST) | (self.broken_by > stage)


class Progress(NamedTuple):
    """Where a run stands, after each batch."""

    stage: str
    round: int
    num_rounds: int
    done: int
    """Images that this round has attacked."""
    total: int
    """Images that this round attacks."""
    robust: int
    """Images of the whole data set that are still robust."""
    seconds: float
    """Since the beginning of the stage (or since it was resumed)."""


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
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[Progress], None] | None = None,
    state_file: str | os.PathLike | None = None,
) -> Verdicts:
    """Attacks every image with one stage after the other until it is broken.

    The survivors of each round are gathered into batches of ``batch_size``, a quarter of it or a sixteenth, so that
    nothing is compiled more than three times.  An image counts as broken only if it is misclassified in a separate
    forward pass, always in batches of ``batch_size``, and inside the threat model.  Keys are folded from (seed, index,
    stage, round): neither batches nor devices nor an interruption change what happens to an image.

    There is a warning at the end if images stay robust on which gradients were NaN or infinite.

    Args:
      stages: e.g. ``auto_attack_stages(threat_model)``.
      threat_model: what is allowed.
      logits_fn: ``images -> logits``, the ``expectation`` of a stochastic model, or, with ``variables``,
        ``variables ->`` one of these.
      images: float [n, h, w, c] inside the bounds.
      labels: int [n].
      variables: arrays of the model, if they shall be arguments of the compiled attacks instead of constants in them.
      search_fn: what the attacks are made on, if not ``logits_fn`` itself: the same model in bfloat16, say, as
        ``in_precision`` makes it.  Verdicts are about ``logits_fn`` in any case.
      index: int [n], position of each image in its data set; 0..n-1 if None.
      seed: of all randomness.
      batch_size: images at a time, on all devices together; rounded up to a multiple of the number of devices.
      progress: called after each batch; what it raises ends the run, with its state saved.
      state_file: npz file (``.npz`` is not added) that the run is saved to, and resumed from if it exists.  It knows
        every stage by the program that it compiles to for a model of its own, parameters and all; of ``logits_fn``
        only the predictions on ``images``.

    Raises:
      UserError: the state file belongs to another run (other images, labels, predictions, stages, threat model, seed,
        batch size, or another version of JAX).
      ValueError: shapes, dtypes or values make no sense.
    """
    input_checks.check_inputs(images, labels, threat_model.bounds)
    if len(images) == 0:
        raise ValueError("run_stages needs at least one image")
    if not stages:
        raise ValueError("run_stages needs at least one stage")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    images, labels = np.asarray(images), np.asarray(labels, np.int32)
    index = np.arange(len(images)) if index is None else np.asarray(index)
    if index.shape != labels.shape:
        raise ValueError(f"index must have one entry per image, shape {labels.shape}, got {index.shape}")
    runner = _Runner(threat_model, logits_fn, variables, batch_size, search_fn)
    found = _run(runner, tuple(stages), images, labels, index, seed, progress, StateFile(state_file, _IDENTITY))
    input_checks.warn_of_nonfinite(found.nonfinite[found.broken_by == ROBUST], "robust images")
    return found


def _run(runner, stages, images, labels, index, seed, progress, state_file) -> Verdicts:
    rngs = np.asarray(jax.random.key_data(_image_keys(jax.random.key(seed), index.astype(np.uint32))))
    predictions, num_classes = runner.predict(images, labels, rngs)
    names = [stage.name for stage in stages]
    is_searched = runner.search_fn is not runner.logits_fn
    facts = [names, seed, runner.sizes, is_searched, *_threat(runner.threat_model)]
    if state_file.path is not None:
        is_bounded = runner.threat_model.is_bounded
        facts += [_program(stage, is_bounded, images.shape[1:], num_classes) for stage in stages]
    identity = _digest(images, labels, index, predictions, *facts)
    state = _from_arrays(state_file.load(identity)) or _first_state(images, predictions != labels)
    found = state.found
    for stage_number, stage in enumerate(stages):
        began, num_rounds = time.perf_counter(), stage.num_rounds(num_classes)
        for number in range(num_rounds):
            here = (stage_number, number)
            if here < (state.stage, state.round):
                continue
            if here > (state.stage, state.round):
                state = _State(found, *here, 0, np.flatnonzero(found.broken_by == ROBUST))
            for rows in _batches(state.attacked[state.done :], runner.sizes):
                keys = _round_keys(rngs[rows], stage_number, number)
                runner.attack(stage, number, stage_number, found, images, labels, rows, keys)
                state = state._replace(done=state.done + len(rows))
                state_file.save_sometimes(identity, _as_arrays(state))
                if progress is not None:
                    counts = state.done, len(state.attacked), int(np.sum(found.broken_by == ROBUST))
                    try:
                        progress(Progress(stage.name, number, num_rounds, *counts, time.perf_counter() - began))
                    except BaseException:
                        state_file.save(identity, _as_arrays(state))
                        raise
            state_file.save(identity, _as_arrays(state))
    return found


class _State(NamedTuple):
    """All that a resumed run has to know."""

    found: Verdicts
    stage: int
    round: int
    done: int
    """How many of ``attacked`` this round is through with."""
    attacked: np.ndarray
    """Images that were robust when the round began."""


def _first_state(images: np.ndarray, wrong: np.ndarray) -> _State:
    none = np.zeros(len(images), np.int32)
    broken_by = np.where(wrong, MISCLASSIFIED, ROBUST).astype(np.int32)
    found = Verdicts(broken_by, images.copy(), none.astype(np.float32), none, none.copy(), none > 0)
    return _State(found, 0, 0, 0, np.flatnonzero(~wrong))


def _as_arrays(state: _State) -> dict[str, np.ndarray]:
    fields = state._asdict() | state.found._asdict()
    del fields["found"]
    return {name: np.asarray(value) for name, value in fields.items()}


def _from_arrays(arrays: dict[str, np.ndarray] | None) -> _State | None:
    if arrays is None:
        return None
    found = Verdicts(*(arrays[name] for name in Verdicts._fields))
    stage, number, done = (int(arrays[name]) for name in ("stage", "round", "done"))
    return _State(found, stage, number, done, arrays["attacked"])


class _Runner:
    """The compiled attacks and forward passes, for a few batch sizes."""

    def __init__(self, threat_model: ThreatModel, logits_fn: Any, variables: Any, batch_size: int, search_fn: Any):
        self.threat_model, self.logits_fn = threat_model, logits_fn
        self.search_fn = logits_fn if search_fn is None else search_fn
        devices = jax.local_devices()
        self.mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
        self.sizes = tuple(sorted({-(-batch_size // (part * len(devices))) * len(devices) for part in (1, 4, 16)}))
        self.has_variables = variables is not None
        self.variables = jax.device_put(variables, jax.sharding.NamedSharding(self.mesh, jax.P()))
        self.compiled = {}

    def predict(self, images, labels, rngs):
        """The predicted classes, and how many classes there are."""
        predictions, num_classes = [], 0
        for rows in _batches(np.arange(len(images)), self.sizes):
            keys = jax.random.wrap_key_data(jnp.asarray(rngs[rows]))
            logits, _, _ = self._verify(images[rows], images[rows], keys)
            input_checks.check_logits(logits, images[rows], labels[rows])
            predictions.append(np.argmax(logits, axis=-1))
            num_classes = logits.shape[-1]
        return np.concatenate(predictions).astype(np.int32), num_classes

    def attack(self, stage, number, stage_number, found, images, labels, rows, keys):
        """Attacks some images and writes down what a verification of the result says."""
        attack = functools.partial(_attack, stage, self.threat_model.is_bounded)
        run = self._parallel(("attack", stage_number), attack, (False, True, True, True), self.search_fn)
        arguments, count = self._padded(images[rows], labels[rows], keys)
        adversarial, steps, claimed, nonfinite = jax.device_get(run(self.variables, np.int32(number), *arguments))
        adversarial = adversarial[:count]
        logits, allowed, distance = self._verify(images[rows], adversarial, keys)
        broken = (np.argmax(logits, axis=-1) != labels[rows]) & allowed
        found.steps[rows] += steps[:count]
        found.refused[rows] += claimed[:count] & ~broken
        found.nonfinite[rows] |= nonfinite[:count]
        found.broken_by[rows[broken]] = stage_number
        found.images[rows[broken]] = adversarial[broken]
        found.distance[rows[broken]] = distance[broken]

    def _verify(self, images, adversarial, keys):
        look = functools.partial(_look, self.threat_model)
        run = self._parallel("verify", look, (True, True, True), self.logits_fn)
        arguments, count = self._padded(images, adversarial, keys, sizes=self.sizes[-1:])
        return (np.asarray(part)[:count] for part in jax.device_get(run(self.variables, *arguments)))

    def _padded(self, *arrays, sizes=None):
        """Fills up to the next size with copies of the last image."""
        count = len(arrays[0])
        size = next(size for size in sizes or self.sizes if size >= count)
        return [array[np.minimum(np.arange(size), count - 1)] for array in arrays], count

    def _parallel(self, name, function, sharded, model):
        """``function(logits_fn, ...)`` on every device's part of the batch, without communication."""
        if name not in self.compiled:

            def replica(variables, *arguments):
                return function(model(variables) if self.has_variables else model, *arguments)

            split = tuple(jax.P("data") if is_sharded else jax.P() for is_sharded in (False, *sharded))
            mapped = jax.shard_map(replica, mesh=self.mesh, in_specs=split, out_specs=jax.P("data"), check_vma=False)
            self.compiled[name] = jax.jit(mapped)
        return self.compiled[name]


def _attack(stage: Stage, until_success: bool, logits_fn: Any, number: Array, images: Array, labels: Array, keys: Key):
    # The first success of a minimum-norm attack is not the closest.
    attack = stage.attack(number)
    result = call_attack(attack, logits_fn, images, labels, keys, until_success=until_success)
    return result.images, result.steps, result.success, jnp.broadcast_to(result.nonfinite, labels.shape)


def _look(threat_model: ThreatModel, logits_fn: Any, images: Array, adversarial: Array, keys: Key):
    logits = model_queries.evaluate(logits_fn, adversarial, model_keys(keys, AFTER))
    allowed = jax.vmap(threat_model.contains)(images, adversarial)
    distance = jax.vmap(threat_model.distance)(images, adversarial)
    return logits, allowed, distance.astype(jnp.float32)


def _batches(positions: np.ndarray, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Parts of ``positions``, each at least half as long as the size it is filled up to, if there is a smaller one."""
    begin = 0
    while begin < len(positions):
        left = len(positions) - begin
        size = next((size for size in reversed(sizes) if 2 * left > size), sizes[0])
        yield positions[begin : begin + size]
        begin += size


@jax.jit
def _image_keys(rng: Key, index: Array) -> Key:
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)


def _round_keys(rngs: np.ndarray, stage: int, number: int) -> Key:
    """The keys that ``worst_of(*all_rounds(stages))`` would use."""
    return fold_in(fold_in(jax.random.wrap_key_data(jnp.asarray(rngs)), stage), number)


def _threat(threat_model: ThreatModel) -> tuple[Any, ...]:
    """What is allowed, as plain data."""
    return threat_model.norm.name, float(threat_model.epsilon), tuple(map(float, threat_model.bounds))


def _program(stage: Stage, until_success: bool, image_shape: tuple[int, ...], num_classes: int) -> tuple[int, str]:
    """What a stage does: how often, and the program that it makes of a small model.

    A stage is a closure, which hides its parameters; they all are in the program.  Nothing is compiled for this.
    """

    def logits_fn(images: Array) -> Array:
        return jnp.tensordot(images.reshape(len(images), -1).mean(axis=1), jnp.arange(float(num_classes)), axes=0)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    label, number = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 1)
    attack = jax.jit(lambda number, *arguments: _attack(stage, until_success, logits_fn, number, *arguments))
    return stage.num_rounds(num_classes), attack.lower(number, image, label, keys).as_text()


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()
