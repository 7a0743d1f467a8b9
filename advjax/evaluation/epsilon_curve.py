"""Accuracy of a model attacked on itself, over epsilon."""

import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from advjax.data import Dataset, eval_batches, pixels
from advjax.evaluation.attack_runs import Resources
from advjax.evaluation.scored_model import ScoredModel, predict
from advjax.runtime.devices import fetch, pad_to_multiple
from advjax.runtime.preemption import PreemptedError
from advjax.types import Array, AttackFn, Key, PyTree


def epsilon_curve(
    model: ScoredModel,
    name: str,
    attack_at: Callable[[Array], AttackFn],
    epsilons: Sequence[float],
    dataset: Dataset,
    resources: Resources,
) -> Iterator[tuple[float, np.ndarray]]:
    """``(epsilon, bool [n]: right under the attack)``, one compilation for all epsilons.

    Args:
      model: what to attack and score.
      name: of the attack; keys are derived from it.
      attack_at: ``epsilon -> attack`` for a traced epsilon.
      epsilons: in pixels of [0, 1].
      dataset: images and labels.
      resources: devices and seed.

    Raises:
      PreemptedError: asked to stop.
    """
    devices = resources.devices
    batch_size = pad_to_multiple(min(resources.batch_size, len(dataset.labels)), devices.mesh)

    def replica(
        variables: PyTree, epsilon: Array, images: Array, labels: Array, keys: Key, *, axis_name: str | None
    ) -> Array:
        result = attack_at(epsilon)(model.attacked(variables), images, labels, keys, until_success=True)
        fresh = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        with jax.default_matmul_precision("highest"):
            return predict(model, variables, result.images, fresh)

    program = devices.parallelize(replica, in_sharded=(False, False, True, True, True), out_sharded=True)
    variables, rows = devices.replicate(model.variables), devices.local_rows(batch_size)
    rng = jax.random.fold_in(jax.random.key(resources.seed), zlib.crc32(name.encode()))
    keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(dataset.index)
    for epsilon in epsilons:
        if resources.stop_requested():
            raise PreemptedError("curve: stopped, all attacks saved")
        found = []
        for positions, mask in eval_batches(len(dataset.labels), batch_size):
            here = positions[rows]
            batch = pixels(dataset.images[here]), dataset.labels[here], keys[here]
            found.append(fetch(program(variables, np.float32(epsilon), *batch))[mask])
        yield epsilon, np.concatenate(found) == dataset.labels
