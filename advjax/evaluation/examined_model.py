"""A model under examination: accuracies under many short attacks, each computed once."""

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax import attacks
from advjax.attacks import Attack, ThreatModel, model_queries
from advjax.attacks.keys import keys_per_image
from advjax.types import Array, Key

STEPS, QUERIES = 20, 300
"""Steps of AutoPGD ("few steps"; "many steps" are twice as many), and queries of Square."""
Weights = tuple[float, float, float]
CROSS_ENTROPY, MARGIN, TARGET = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
"""Weights of the losses that AutoPGD maximizes; as arguments, they need no compilation of their own."""


def _auto_pgd(num_steps: int) -> Callable[[ThreatModel, Array], Attack]:
    def make(threat_model: ThreatModel, weights: Array) -> Attack:
        def loss(logits: Array, label: Array, target: Array) -> Array:
            parts = attacks.cross_entropy(logits, label), attacks.margin(logits, label)
            return jnp.dot(weights, jnp.stack([*parts, attacks.targeted_cross_entropy(logits, label, target)]))

        return attacks.auto_pgd(threat_model, num_steps=num_steps, loss=loss, aim=attacks.random_class)

    return make


_PROGRAMS: Mapping[str, Callable[[ThreatModel, Array], Attack]] = {
    "one step": lambda threat_model, weights: attacks.fgsm(threat_model),
    "random points": lambda threat_model, weights: attacks.random_points(threat_model),
    "queries": lambda threat_model, weights: attacks.square(threat_model, num_queries=QUERIES),
    "few steps": _auto_pgd(STEPS),
    "many steps": _auto_pgd(2 * STEPS),
}
"""Each is compiled once per model; epsilon, loss and labels are arguments."""


class ExaminedModel:
    """A model with its images; remembers the accuracy under each attack, and may be used from several threads."""

    def __init__(
        self,
        bind: Callable[[Any], Any],
        variables: Any,
        images: Array,
        labels: Array,
        threat_model: ThreatModel,
        seed: int,
    ) -> None:
        self.bind, self.variables, self.images, self.labels = bind, variables, images, labels
        self.threat_model, self.keys = threat_model, keys_per_image(jax.random.key(seed), len(images))
        self._evaluate = jax.jit(lambda variables, images, keys: model_queries.evaluate(bind(variables), images, keys))
        self._seen: dict[tuple, np.ndarray] = {}
        self._compiled = {program: self._compile(make) for program, make in _PROGRAMS.items()}
        self._locks = {program: threading.Lock() for program in _PROGRAMS}

    def logits(self, images: Array, number: int = 0) -> np.ndarray:
        """Logits [n, classes]; another ``number`` gives other draws of a stochastic model."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(self.keys[: len(images)])
        return np.asarray(self._evaluate(self.variables, images, keys))

    def clean(self) -> np.ndarray:
        """bool [n]: correctly classified."""
        return self._correct(self.images)

    def under(
        self, program: str, times: float = 1.0, weights: Weights = CROSS_ENTROPY, predicted: bool = False
    ) -> np.ndarray:
        """bool [n]: correctly classified under an attack with ``times`` epsilon.

        Args:
          program: name of the attack in ``_PROGRAMS``.
          times: factor on epsilon.
          weights: of the losses of AutoPGD.
          predicted: attack the model's own predictions instead of the labels.
        """
        key = program, times, weights, predicted
        with self._locks[program]:
            if key not in self._seen:
                labels = jnp.argmax(self.logits(self.images), axis=-1) if predicted else self.labels
                epsilon = jnp.float32(times * self.threat_model.epsilon)
                arguments = epsilon, jnp.asarray(weights), self.images, labels, self.keys
                self._seen[key] = self._correct(self._compiled[program](self.variables, *arguments))
            return self._seen[key]

    def _correct(self, images: Array) -> np.ndarray:
        return ~np.asarray(model_queries.is_fooled(self.logits(images, 1), self.labels))

    def _compile(self, make_attack: Callable[[ThreatModel, Array], Attack]) -> Callable[..., Array]:
        @jax.jit
        def run(variables: Any, epsilon: Array, weights: Array, images: Array, labels: Array, keys: Key) -> Array:
            threat_model = dataclasses.replace(self.threat_model, epsilon=epsilon)
            attack = make_attack(threat_model, weights)
            return attack(self.bind(variables), images, labels, keys, until_success=True).images

        return run
