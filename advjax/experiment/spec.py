"""What an experiment is made of, as records: an ordered set of named runs and a plan for their evaluation.

`advjax.experiment.from_config` makes them from a config.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from advjax import attacks, data
from advjax.data import Dataset, Source
from advjax.evaluation.scored_model import Deployed, Deployment
from advjax.experiment.registry import NOISES
from advjax.training.loop import Method, Plan
from advjax.types import Array, AttackFn, PyTree, UserError, Variables


class NamedAttack(NamedTuple):
    """An attack under the name that the report gives it."""

    name: str
    threat_model: attacks.ThreatModel
    attack: attacks.Attack | tuple[attacks.Stage, ...]
    """One attack, or stages of attacks for the images that are still robust."""
    num_restarts: int
    search_dtype: str | None
    """The type that stages search in, if not that of the model."""
    spec: dict[str, Any]
    """The attack as the config describes it."""

    @property
    def epsilon(self) -> float | None:
        """None for a minimum-norm attack."""
        return float(self.threat_model.epsilon) if self.threat_model.is_bounded else None

    @property
    def norm(self) -> str:
        """Name of the norm."""
        return self.threat_model.norm.name

    @property
    def stages(self) -> tuple[attacks.Stage, ...] | None:
        """The stages, None for a single attack."""
        return None if isinstance(self.attack, attacks.Attack) else self.attack

    @property
    def is_noise(self) -> bool:
        """Whether it is the same for every model, and so no attack."""
        return self.spec["name"] in NOISES

    @property
    def is_query(self) -> bool:
        """Whether it asks for no gradients."""
        return isinstance(self.attack, attacks.Attack) and self.attack.objective is None

    @property
    def is_examinable(self) -> bool:
        """Whether a report card can be about its threat model."""
        return self.threat_model.norm.dense and self.threat_model.is_bounded

    def for_verdict(self) -> AttackFn:
        """A single attack with true labels, on to the next image at the first success.

        A minimum-norm attack goes on: its verdict is a distance, and the first success is not the closest.
        """
        assert isinstance(self.attack, attacks.Attack)
        return functools.partial(self._restarted(self.attack), until_success=self.threat_model.is_bounded)

    def for_transfer(self, label_use: str) -> AttackFn:
        """The whole of a single attack on every image, with "true" or "predicted" labels."""
        assert isinstance(self.attack, attacks.Attack)
        attack = self._restarted(self.attack)
        return attacks.with_predicted_labels(attack) if label_use == "predicted" else attack

    def _restarted(self, attack: AttackFn) -> AttackFn:
        # A minimum-norm attack is better the closer its result is, one inside a ball is done at the first success.
        keep = "first" if self.threat_model.is_bounded else "closest"
        return attacks.with_restarts(attack, self.num_restarts, keep=keep) if self.num_restarts > 1 else attack


class NamedDefense(NamedTuple):
    """A test-time defence of one run."""

    name: str
    run: str
    deployment: Deployment
    num_draws: int
    num_votes: int
    num_samples: int
    spec: dict[str, Any]
    """The defence as the config describes it."""

    def deploy(self, model: nn.Module) -> Deployed:
        """The model with its defence; variables are ``(those of the model, arrays)``."""
        return Deployed(self.deployment.bind(model), self.num_draws, self.num_votes, self.num_samples)

    def check(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """That the defence is one for this model and such images.

        Raises:
          UserError: it would do nothing, or something else than it says.
        """
        try:
            self.deployment.check(model, image_shape)
        except UserError as error:
            raise UserError(f"evaluation.defenses.{self.name}: {error}") from error

    def arrays(self, train: Dataset | Source) -> PyTree:
        """What the defence has of its own, such as images to mix with."""
        return self.deployment.arrays(train if isinstance(train, Dataset) else data.read_all(train))


class Curve(NamedTuple):
    """Accuracy over epsilon."""

    name: str
    norm: str
    attack_at: Callable[[Array], AttackFn]
    """``epsilon -> attack``, for a traced epsilon."""
    epsilons: tuple[float, ...]
    num_examples: int


class Copies(NamedTuple):
    """Attacked copies of training images, which are learnt beside them."""

    made_on: str
    """The earlier run that is attacked."""
    attacks: tuple[NamedAttack, ...]
    """One copy of every image for each."""
    label_use: str
    """What the attacks take for the labels: "true" or "predicted"."""
    format: str
    """"float32", or "uint8" for images rounded as by ``adversarial_sets.quantized``."""


class PlacedAttack(NamedTuple):
    """An attack, and the network that it is made on."""

    attack: AttackFn
    made_on: str
    """"self", or an earlier run."""


class Run(NamedTuple):
    """One model trained by one method."""

    name: str
    model: nn.Module
    start: str | None
    """The run whose variables this one starts from (or patches)."""
    train_fraction: float
    copies: Copies | None
    """What is learnt beside the training images, None for nothing."""
    undersample: bool
    """Whether examples of the larger classes, copies included, are left out until all classes are equally large."""
    method: Callable[[Variables, Mapping[str, nn.Module]], Method]
    """``(untrained variables, models of earlier runs) -> Method``."""
    asks: tuple[str, ...]
    """Earlier runs whose networks training asks."""
    validation_attack: PlacedAttack | None
    """The attack that the best checkpoint is to withstand, None for clean images alone."""
    plan: Plan
    checkpoint: str
    """Folder of a finished run to take instead of training, or ""."""
    spec: dict[str, Any]
    """Everything that decides what training gives, as plain data."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Earlier runs that this one cannot do without."""
        start, copies = [self.start] if self.start else [], [self.copies.made_on] if self.copies else []
        placed = self.validation_attack.made_on if self.validation_attack else "self"
        return tuple(dict.fromkeys([*start, *copies, *self.asks, *([] if placed == "self" else [placed])]))


class Division(NamedTuple):
    """How a split of a data set has been divided; ``data.write_index`` stores it."""

    name: str
    """Of the data set."""
    labels: np.ndarray
    """int32 [n]: of all its examples."""
    parts: Mapping[str, np.ndarray]
    """"train", "validation" and perhaps "test" -> positions."""


class Data(NamedTuple):
    """The splits of a data set."""

    train: Dataset | Source
    """A source streams its images instead of holding them."""
    validation: Dataset
    test: Dataset
    division: Division

    @property
    def splits(self) -> tuple[Dataset | Source, Dataset, Dataset]:
        """Train, validation and test."""
        return self.train, self.validation, self.test


class EvaluationPlan(NamedTuple):
    """What is measured on the test images."""

    attacks: tuple[NamedAttack, ...]
    made_on: tuple[str, ...]
    """The runs that the transfer attacks are made on, the base first."""
    transfer_labels: str
    """"true" or "predicted"."""
    protocol: str
    """Of the transfer results: "sound" or "faithful"."""
    num_examples: int
    """The first so many test images; 0 for all."""
    batch_size: int
    pictured: str
    """The attack whose images the report shows."""
    num_pictures: int
    defenses: tuple[NamedDefense, ...]
    num_checked: int
    """How many of the test images a report card is made with; 0 for none."""
    checked: tuple[str, ...]
    """The runs that get one."""
    curve: Curve | None
    save_adversarial: str
    """How adversarial images are kept: "float32", "uint8", or "" for not at all."""


class Experiment(NamedTuple):
    """Everything main needs."""

    title: str
    seed: int
    runs: tuple[Run, ...]
    data: Data
    evaluation: EvaluationPlan
    mapping: str
    config: dict[str, Any]
    """All of the above as plain data."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[h, w, c]"""
        return self.data.train.image_shape
