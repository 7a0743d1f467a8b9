"""Runs one round of an attack over many images: those whose attack has ended give up their lanes to the next ones.

Host code around the programs of ``lanes``.  The lanes stay on the devices; the host decides who gets them, and moves
the images that are left to fewer lanes when none are waiting.  What an image's attack finds does not depend on any of
this.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import lanes, model_queries
from advjax.attacks.base import Attack
from advjax.attacks.batching import batches
from advjax.attacks.combine import parts_of
from advjax.attacks.course import NO_PROGRESS, UNKNOWN, Course
from advjax.attacks.keys import typed
from advjax.attacks.lanes import Lanes
from advjax.attacks.programs import Program, Programs, Search
from advjax.attacks.schedule import number_of_lanes, overhead, steps_until_look
from advjax.cpu.compiling import compiler_options


class Found(NamedTuple):
    """What attacks that have ended found, not yet verified; one entry for each of k images."""

    rows: np.ndarray
    """int64 [k]: positions in the data set, in no particular order."""
    images: np.ndarray
    """[k, h, w, c]: adversarial images."""
    steps: np.ndarray
    """int32 [k]."""
    claimed: np.ndarray
    """bool [k]: the attack counts it as a success."""
    nonfinite: np.ndarray
    """bool [k]."""
    progress: np.ndarray
    """int8 [k]: as in ``AttackResult``."""


class Inputs(NamedTuple):
    """What a round attacks, one entry for each image of the data set."""

    images: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    """uint32 [n, 2]: words of the keys of the round."""
    clean_logits: np.ndarray

    def at(self, rows: np.ndarray) -> list[np.ndarray]:
        return [array[rows] for array in self]


def attack_images(programs: Programs, search: Search, inputs: Inputs, rows: np.ndarray) -> Iterator[Found]:
    """Attacks some of the images in one round, and yields what is found as attacks end.

    Args:
      programs: of the run.
      search: which round of which attack, on which model.
      inputs: of the round.
      rows: int64 [k], the images to attack, each once.
    """
    attack = search.stage.attack(jnp.int32(0))
    if isinstance(attack, Attack):
        return _in_lanes(_LaneRun(programs, search, attack, inputs), rows)
    return _in_batches(programs, search, inputs, rows)


def _in_batches(programs: Programs, search: Search, inputs: Inputs, rows: np.ndarray) -> Iterator[Found]:
    """For attacks that are plain functions."""
    parts = parts_of(search.stage.attack(jnp.int32(0)))
    is_own = not any(isinstance(part, Attack) for part in parts) and float(programs.threat_model.epsilon) > 0
    for batch in batches(rows, programs.sizes):
        found = Found(batch, *programs.attack(search, inputs.images[batch], inputs.labels[batch], inputs.keys[batch]))
        if is_own:
            # A function that does not say whether it made progress made none where it changed nothing.
            unchanged = np.all(found.images == inputs.images[batch], axis=(1, 2, 3)) & ~found.claimed
            idle = unchanged & (found.progress == UNKNOWN)
            found = found._replace(progress=np.where(idle, NO_PROGRESS, found.progress).astype(np.int8))
        yield found


def _in_lanes(run: "_LaneRun", rows: np.ndarray) -> Iterator[Found]:
    waiting = collections.deque(rows.tolist())
    occupied = _Occupied(len(run.programs.mesh.devices.flat))
    held, found, rate = None, None, 1.0
    while True:
        steps = steps_until_look(rate)
        held = _arrange(run, occupied, held, waiting, steps)
        if held is not None:
            count = min(steps, run.most_steps(occupied))
            held = run.advance(held, count)
            occupied.ages += count
        if found is not None:
            # Only now, so that the devices are busy while the host verifies what was found.
            yield found
        if held is None:
            return
        ended = np.asarray(held.ended) & (occupied.rows >= 0)
        share = np.mean(ended[occupied.rows >= 0]) / count
        rate = (rate + float(share)) / 2
        found = run.found(held, ended, occupied.rows) if np.any(ended) else None
        occupied.rows[ended] = -1


class _Occupied:
    """Which image is in which lane."""

    def __init__(self, num_devices: int) -> None:
        self.num_devices = num_devices
        self.rows, self.ages = np.zeros(0, np.int64), np.zeros(0, np.int64)

    @property
    def live(self) -> np.ndarray:
        """bool [devices, lanes]."""
        return (self.rows >= 0).reshape(self.num_devices, -1)


def _arrange(
    run: "_LaneRun", occupied: _Occupied, held: Lanes | None, waiting: collections.deque, steps: int
) -> Lanes | None:
    """Moves to another number of lanes if that suits what is left, and fills the lanes; None if nothing is left.

    ``steps`` are taken before the next look.
    """
    live = int(np.sum(occupied.rows >= 0))
    if not live and not waiting:
        return None
    most = int(np.max(np.sum(occupied.live, axis=1), initial=0)) * occupied.num_devices
    compiled = frozenset() if live else run.programs.compiled_sizes(run.search, "advance")
    size = number_of_lanes(live + len(waiting), most, run.programs.sizes, overhead(run.programs.mesh), compiled)
    if held is None or (not live and size != len(occupied.rows)):
        held, occupied.rows, occupied.ages = None, np.full(size, -1), np.zeros(size, np.int64)
    elif size < len(occupied.rows) and (size := run.size_for(held, size, steps)) < len(occupied.rows):
        held = _moved(run, occupied, held, size)
    return _filled(run, occupied, held, waiting)


def _moved(run: "_LaneRun", occupied: _Occupied, held: Lanes, size: int) -> Lanes:
    """Moves the images to fewer lanes, each on its device."""
    here, there = occupied.live.shape[1], size // occupied.num_devices
    # Lanes in use first, in their order.
    local = np.argsort(~occupied.live, axis=1, kind="stable")[:, :there]
    chosen = (local + here * np.arange(occupied.num_devices)[:, None]).reshape(-1)
    occupied.rows, occupied.ages = occupied.rows[chosen], occupied.ages[chosen]
    return run.take(held, local.reshape(-1).astype(np.int32), occupied.rows < 0)


def _filled(run: "_LaneRun", occupied: _Occupied, held: Lanes | None, waiting: collections.deque) -> Lanes | None:
    """Gives lanes that are free to images that are waiting, to one device after the other."""
    free = np.flatnonzero(occupied.rows < 0)
    free = free[np.argsort(free % occupied.live.shape[1], kind="stable")][: len(waiting)]
    if not len(free):
        return held
    occupied.rows[free], occupied.ages[free] = [waiting.popleft() for _ in free], 0
    fresh = np.zeros(len(occupied.rows), bool)
    fresh[free] = True
    return run.filled(held, np.where(fresh, occupied.rows, occupied.rows[free[0]]), fresh)


class _LaneRun(NamedTuple):
    """A round of an attack in lanes."""

    programs: Programs
    search: Search
    attack: Attack
    inputs: Inputs

    def most_steps(self, occupied: _Occupied) -> int:
        """Number of steps after which the first attack has ended for certain; 1 more than its steps observes them."""
        return int(self.attack.num_steps + 1 - np.max(occupied.ages[occupied.rows >= 0]))

    def filled(self, held: Lanes | None, rows: np.ndarray, fresh: np.ndarray) -> Lanes:
        """Puts images into the lanes that are ``fresh``."""
        batch = *self.inputs.at(rows), ~fresh
        function = functools.partial(_begin, self.search.stage, _is_other(self.programs, self.search))
        new = self.programs.of_search(self.search, "begin", function, batch, is_hot=False)(*batch)
        return new if held is None else _replace(self.programs.mesh)(held, new, fresh)

    def advance(self, held: Lanes, count: int) -> Lanes:
        """Takes some steps, without waiting for them."""
        program = step_program(self.programs, self.search, held)
        if counts_steps(self.programs):
            return program(held, np.int32(count))
        for _ in range(count):
            held = program(held)
        return held

    def size_for(self, held: Lanes, wanted: int, steps: int) -> int:
        """The number of lanes to take some steps in, where ``wanted`` would do."""
        return self.programs.size_for(self.search, "advance", _step_batch(self.programs, held), wanted, steps)

    def take(self, held: Lanes, positions: np.ndarray, vacant: np.ndarray) -> Lanes:
        return _take(self.programs.mesh)(held, positions, vacant)

    def found(self, held: Lanes, ended: np.ndarray, rows: np.ndarray) -> Found:
        parts = jax.device_get((held.state.best.image, held.steps, held.fooled, held.nonfinite, *held.course))
        chosen: list[Any] = [np.asarray(part)[ended] for part in parts]
        images, steps, fooled, nonfinite, *course = chosen
        progress = np.asarray(self.attack.progress(Course(*course), fooled, steps))
        # Clipping lets NaN through, and no threat model allows it.
        lost = ~np.all(np.isfinite(images), axis=(1, 2, 3))
        images = np.where(lost[:, None, None, None], self.inputs.images[rows[ended]], images)
        return Found(rows[ended], images, steps, fooled & self.claims, nonfinite, progress)

    @property
    def claims(self) -> bool:
        """Whether an attack that has seen a success is over, or looks for a closer one: it then counts as one."""
        return self.search.until_success or self.attack.done is not None or not self.programs.threat_model.is_bounded


def step_program(programs: Programs, search: Search, held: Lanes) -> Program:
    """The program of one step in every lane, or, if ``counts_steps``, of as many as it is told."""
    function = functools.partial(_advance, search.stage, search.until_success)
    return programs.of_search(search, "advance", function, _step_batch(programs, held), donate=True)


def counts_steps(programs: Programs) -> bool:
    """Whether one call of the program takes several steps.

    On a CPU, what depends on the weights alone is then computed once for all of them, such as the transformed kernels
    of ``advjax.cpu.winograd``.  A GPU would wait for the host at every turn of such a loop.
    """
    return programs.mesh.devices.flat[0].platform == "cpu"


def _step_batch(programs: Programs, held: Lanes) -> tuple[Any, ...]:
    return (held, jax.ShapeDtypeStruct((), np.int32)) if counts_steps(programs) else (held,)


def lane_shapes(programs: Programs, search: Search, batch: Sequence[Any]) -> Lanes:
    """Shapes and dtypes of the lanes of images, labels, keys, clean logits and vacancies of these shapes [k, ...]."""
    model = programs.verdict if search.is_precise else programs.search

    def begin(variables: Any, *batch: Any) -> Lanes:
        return _begin(search.stage, _is_other(programs, search), model.bind(variables), jnp.int32(0), *batch)

    return jax.eval_shape(begin, model.variables, *batch)


def _is_other(programs: Programs, search: Search) -> bool:
    """Whether the attack follows another model than verdicts are about."""
    return not search.is_precise and programs.search is not programs.verdict


def _begin(stage, is_other, logits_fn, number, images, labels, keys, clean_logits, vacant):
    rngs = typed(keys)
    if is_other:
        # The attack computes in the type of the logits of the model that it follows.
        logits = jax.eval_shape(lambda images: model_queries.evaluate(logits_fn, images, rngs), images)
        if logits.shape != clean_logits.shape:
            classes = logits.shape[1:], clean_logits.shape[1:]
            raise ValueError(f"search_fn must have the classes of logits_fn, got logits of shapes {classes}")
        clean_logits = clean_logits.astype(logits.dtype)
    return lanes.begin(stage.attack(number), logits_fn, images, labels, rngs, clean_logits, vacant)


def _advance(stage, until_success, logits_fn, number, held, count=None):
    step = functools.partial(lanes.advance, stage.attack(number), until_success, logits_fn)
    return step(held) if count is None else jax.lax.fori_loop(0, count, lambda _, held: step(held), held)


@functools.lru_cache(maxsize=8)
def _replace(mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    return _in_parallel(lambda held, new, fresh: lanes.replace(fresh, new, held), mesh)


@functools.lru_cache(maxsize=8)
def _take(mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    return _in_parallel(lanes.take, mesh)


def _in_parallel(function: Callable[..., Any], mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """The compiled function on all devices, each with its part of all arrays."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"), check_vma=False)
    return jax.jit(mapped, compiler_options=compiler_options(mesh, quickly=True))
