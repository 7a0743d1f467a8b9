"""Runs models and attacks over a data set on all devices; per-image results come back as numpy arrays.

Batches are rounded up to the number of devices.
"""

import contextlib
import time
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import Progress, Stage, ThreatModel, in_precision, run_stages
from advjax.data import Dataset, eval_batches, pixels
from advjax.evaluation.interruption import Adversarial, Done, Interruption
from advjax.evaluation.scored_model import Deployed
from advjax.runtime.devices import Devices, fetch, gather_parts, pad_to_multiple
from advjax.runtime.preemption import PreemptedError
from advjax.runtime.progress import progress
from advjax.types import Array, AttackFn, Key, PyTree

AttackRunner = Callable[[PyTree, Dataset, int, Interruption | None], Adversarial]
"""``(variables, dataset, seed, interruption) -> Adversarial``"""


def predictor(
    model: Deployed, devices: Devices, batch_size: int
) -> Callable[[PyTree, np.ndarray, np.ndarray, int], np.ndarray]:
    """``(variables, images uint8 or float [n, h, w, c], index [n], seed) -> int32 [n]`` predicted classes.

    Every call evaluates batches of the same size, so that a verdict does not depend on how many images there are.  The
    keys of a stochastic model are folded from the seed and the index of the image, and are none that attacks have seen.
    """
    batch_size = pad_to_multiple(batch_size, devices.mesh)
    replica = devices.parallelize(
        lambda variables, images, keys, *, axis_name: model.predict(variables, images, keys),
        in_sharded=(False, True, True),
        out_sharded=True,
    )

    def predict(variables: PyTree, images: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
        variables, rows = devices.replicate(variables), devices.local_rows(batch_size)
        rng = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"prediction"))
        found = []
        for positions, mask in eval_batches(len(images), batch_size):
            here = positions[rows]
            found.append(fetch(replica(variables, pixels(images[here]), _keys(rng, index[here])))[mask])
        return np.concatenate(found).astype(np.int32)

    return predict


def attacker(
    model: Deployed, attack: AttackFn, name: str, devices: Devices, batch_size: int, *, title: str | None = None
) -> AttackRunner:
    """The attack on every image of a data set, all devices together.

    Each image has a key of its own, folded from the seed, the name of the attack and its index in the data set: neither
    batch size nor order nor number of devices changes what happens to it.  The runner raises PreemptedError, with what
    has been done saved, when it is asked to stop.  With a title it shows how far it is.
    """
    batch_size = pad_to_multiple(batch_size, devices.mesh)
    replica = devices.parallelize(
        lambda *args, axis_name: _attack(model, attack, *args),
        in_sharded=(False, True, True, True),
        out_sharded=True,
    )

    def run(variables: PyTree, dataset: Dataset, seed: int, interruption: Interruption | None = None) -> Adversarial:
        start = time.perf_counter()
        variables, rows = devices.replicate(variables), devices.local_rows(batch_size)
        rng = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        done = Done(interruption)
        count = len(dataset.labels)
        with progress(title, count, initial=done.count) if title else contextlib.nullcontext() as bar:
            for number, (positions, mask) in enumerate(eval_batches(count, batch_size)):
                if number * batch_size < done.count:
                    continue
                here = positions[rows]
                keys = _keys(rng, dataset.index[here])
                result = fetch(replica(variables, pixels(dataset.images[here]), dataset.labels[here], keys))
                done.add([array[mask] for array in result], time.perf_counter() - start)
                if bar is not None:
                    bar.advance(int(mask.sum()))
                if done.count < count:
                    done.stop_if_asked(f"{name}: stopped after {done.count} of {count} images, state saved")
        return done.result(time.perf_counter() - start)

    return run


def staged_attacker(
    model: Deployed,
    stages: Sequence[Stage],
    threat_model: ThreatModel,
    name: str,
    devices: Devices,
    batch_size: int,
    *,
    title: str,
    search_dtype: str | None = None,
) -> AttackRunner:
    """Several attacks in stages, each on the images that the ones before it left robust (``attacks.run_stages``).

    Each process attacks its own part of the images on its own devices, with keys that do not depend on the parts.
    Images that stay robust come back as they are.  With ``search_dtype`` the attacks are made on the model computed in
    that type; verdicts are in the model's own.
    """
    search_fn = in_precision(jnp.dtype(search_dtype), model.attacked) if search_dtype else None
    local_size = devices.local_rows(pad_to_multiple(batch_size, devices.mesh))
    local_size = local_size.stop - local_size.start

    def run(variables: PyTree, dataset: Dataset, seed: int, interruption: Interruption | None = None) -> Adversarial:
        start = time.perf_counter()
        parts = np.array_split(np.arange(len(dataset.labels)), jax.process_count())
        mine = parts[jax.process_index()]
        with _RoundBars(title) as bars:

            def show(at: Progress) -> None:
                bars.show(at)
                # The processes of a job make different numbers of batches here, and could not agree on when to stop.
                if interruption is not None and jax.process_count() == 1 and interruption.stop_requested():
                    raise PreemptedError(f"{name}: stopped in {at.stage} {at.round + 1}/{at.num_rounds}, state saved")

            found = run_stages(
                stages,
                threat_model,
                model.attacked,
                pixels(dataset.images[mine]),
                dataset.labels[mine],
                variables=jax.device_get(variables),
                search_fn=search_fn,
                index=dataset.index[mine],
                seed=seed,
                batch_size=local_size,
                progress=show,
                state_file=f"{interruption.path}.{jax.process_index()}" if interruption else None,
            )
        counts = [len(part) for part in parts]
        arrays = found.images, found.distance, found.steps, found.nonfinite
        return Adversarial(*gather_parts(arrays, counts), seconds=time.perf_counter() - start)

    return run


def curve_runner(
    model: Deployed, attack_at: Callable[[Array], AttackFn], name: str, devices: Devices, batch_size: int
) -> Callable[[PyTree, Dataset, float, int], np.ndarray]:
    """``(variables, dataset, epsilon, seed) -> bool [n]``: right under an attack at one epsilon after the other.

    ``attack_at`` makes the attack for a traced epsilon, so that all of them are compiled once.
    """

    batch_size = pad_to_multiple(batch_size, devices.mesh)

    def attacked(variables: PyTree, epsilon: Array, images: Array, labels: Array, keys: Key) -> Array:
        result = attack_at(epsilon)(model.attacked(variables), images, labels, keys)
        return model.predict(variables, result.images, jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys))

    replica = devices.parallelize(
        lambda *args, axis_name: attacked(*args), in_sharded=(False, False, True, True, True), out_sharded=True
    )

    def run(variables: PyTree, dataset: Dataset, epsilon: float, seed: int) -> np.ndarray:
        variables, rows = devices.replicate(variables), devices.local_rows(batch_size)
        rng = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        found = []
        for positions, mask in eval_batches(len(dataset.labels), batch_size):
            here = positions[rows]
            arrays = pixels(dataset.images[here]), dataset.labels[here], _keys(rng, dataset.index[here])
            found.append(fetch(replica(variables, np.float32(epsilon), *arrays))[mask])
        return np.concatenate(found) == dataset.labels

    return run


class _RoundBars:
    """A progress bar for one round of one stage after the other."""

    def __init__(self, title: str) -> None:
        self._title, self._resources, self._here, self._bar, self._done = title, contextlib.ExitStack(), None, None, 0

    def __enter__(self) -> "_RoundBars":
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def show(self, at: Progress) -> None:
        if self._here != (at.stage, at.round):
            self._resources.close()
            title = f"{self._title}: {at.stage} {at.round + 1}/{at.num_rounds}"
            self._bar = self._resources.enter_context(progress(title, at.total))
            self._here, self._done = (at.stage, at.round), 0
        assert self._bar is not None
        self._bar.advance(at.done - self._done, robust=at.robust)
        self._done = at.done


def _attack(model: Deployed, attack: AttackFn, variables: PyTree, images: Array, labels: Array, keys: Key):
    result = attack(model.attacked(variables), images, labels, keys)
    return result.images, result.distance, result.steps, jnp.broadcast_to(result.nonfinite, labels.shape)


@jax.jit
def _keys(rng: Key, index: Array) -> Key:
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)
