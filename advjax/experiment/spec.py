"""The records of an experiment: an ordered set of named runs and a plan for their evaluation.

`advjax.experiment.from_config` builds them from a config.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import numpy as np

from advjax.data import Dataset, Source
from advjax.evaluation.attack_runs import NamedAttack
from advjax.evaluation.scored_model import ScoredModel, variables_hash
from advjax.runtime.metrics import OnMetrics
from advjax.training.loop import Method, Plan
from advjax.types import Array, AttackFn, PyTree, StochasticLogitsFn, UserError, Variables

GivenNetwork: TypeAlias = tuple[nn.Module, Variables | None]
"""A network that was given in Python; with variables, it is not trained."""


class DefenseRecipe(NamedTuple):
    """A test-time defense for any model: what the registry builds from a name and its arguments."""

    wrap: Callable[[nn.Module, PyTree, PyTree], StochasticLogitsFn]
    """``(model, its variables, arrays of the defense) -> one draw``."""
    arrays: Callable[[Dataset | Source], PyTree] = lambda train: {}
    """``training images -> arrays`` that the defense needs; of a source, it reads only the images that it uses."""
    check: Callable[[nn.Module, tuple[int, int, int]], None] = lambda model, image_shape: None
    """``(model, image shape)``: raises a UserError where the defense would have no effect or another one."""


class DefensePlan(NamedTuple):
    """A test-time defense of one run."""

    name: str
    run: str
    recipe: DefenseRecipe
    num_draws: int
    num_votes: int
    num_samples: int
    mean_over: str
    """What draws are averaged over: "probabilities" or "log_probabilities"."""
    identity: Mapping[str, Any]
    """What the defense is, as plain data, whatever the name of the run."""

    def check(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """Raises a UserError where the defense does not fit the model or its images."""
        try:
            self.recipe.check(model, image_shape)
        except UserError as error:
            raise UserError(f"evaluation.defenses.{self.name}: {error}") from error

    def defend(self, model: nn.Module, variables: Variables, train: Dataset | Source) -> ScoredModel:
        """The trained run with the defense around it."""
        try:
            arrays = self.recipe.arrays(train)
        except ValueError as error:
            raise UserError(f"evaluation.defenses.{self.name}: {error}") from error
        return ScoredModel(
            run=self.run,
            defense=self.name,
            bind=lambda both: self.recipe.wrap(model, both["model"], both["defense"]),
            variables={"model": variables, "defense": arrays},
            hash=variables_hash(variables),
            num_draws=self.num_draws,
            num_votes=self.num_votes,
            num_samples=self.num_samples,
            mean_over=self.mean_over,
            defense_identity=self.identity,
        )


class CurvePlan(NamedTuple):
    """Accuracy over epsilon."""

    name: str
    norm: str
    attack_at: Callable[[Array], AttackFn]
    """``epsilon -> attack``, for a traced epsilon."""
    epsilons: tuple[float, ...]
    num_examples: int


class AdversarialCopies(NamedTuple):
    """Adversarial copies of the training images, to train on beside the images themselves."""

    made_on: str
    """The earlier run that is attacked."""
    attacks: tuple[NamedAttack, ...]
    """One copy of every image for each attack."""
    label_use: str
    """What the attacks take for the labels: "true" or "predicted"."""
    format: str
    """"float32", "float16" for images stored in half precision, or "uint8" for images rounded as by
    ``adversarial_sets.quantized``."""


class PlacedAttack(NamedTuple):
    """A single attack and the network that it is made on, for training and validation."""

    attack: NamedAttack
    """Every image gets the whole of it."""
    made_on: str
    """"self", or an earlier run."""

    @property
    def function(self) -> AttackFn:
        """The attack as one function of a batch."""
        assert self.attack.attack is not None
        return self.attack.attack


class Run(NamedTuple):
    """One model trained by one method."""

    name: str
    model: nn.Module
    start: str | None
    """The run whose variables this one starts from or patches."""
    train_fraction: float
    copies: AdversarialCopies | None
    """What to train on beside the training images, None for nothing."""
    undersample: bool
    """Whether examples of the larger classes, copies included, are left out until all classes are equally large."""
    extra_images: str
    """File of more training images, of which every batch has ``plan.extra_rows``; "" for none."""
    method: Callable[[Variables, Mapping[str, nn.Module]], Method]
    """``(untrained variables, models of earlier runs) -> Method``."""
    sources: tuple[str, ...]
    """Earlier runs whose networks the training step evaluates."""
    validation_attack: PlacedAttack | None
    """The attack under which the best checkpoint is chosen, None for clean images alone."""
    plan: Plan
    validate_loss: bool
    """Whether validation also measures the mean cross-entropy."""
    checkpoint: str
    """Folder of a finished run to use instead of training, or ""."""
    given: Variables | None
    """Variables that the network was given with, to use instead of training; None for a network of our own."""
    identity: Mapping[str, Any]
    """All that decides the result of training, as plain data: equal for equal runs."""

    @property
    def is_taken(self) -> bool:
        """Whether its variables come from elsewhere, so that it is not trained."""
        return bool(self.checkpoint) or self.given is not None

    @property
    def needs(self) -> tuple[str, ...]:
        """Earlier runs that this one depends on."""
        start, copies = [self.start] if self.start else [], [self.copies.made_on] if self.copies else []
        placed = self.validation_attack.made_on if self.validation_attack else "self"
        return tuple(dict.fromkeys([*start, *copies, *self.sources, *([] if placed == "self" else [placed])]))


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


class DataFacts(NamedTuple):
    """What models and plans depend on of the data; a workdir keeps it, so that the data need not be read again."""

    name: str
    image_shape: tuple[int, int, int]
    """[h, w, c]"""
    num_classes: int
    num_validation: int
    num_examples: Mapping[str, int]
    """Run -> number of training examples, copies included."""


class EvaluationPlan(NamedTuple):
    """What is measured on the test images."""

    attacks: tuple[NamedAttack, ...]
    made_on: tuple[str, ...]
    """The runs that the transfer attacks are made on, the base first; RUN+DEFENSE is a defended model, on which whole
    attacks are made that it alone sees."""
    transfer_labels: str
    """"true" or "predicted"."""
    protocol: str
    """Of the transfer results: "sound" or "faithful"."""
    faithful_attacks: tuple[str, ...]
    """The attacks that ``transfer_labels`` and ``protocol`` are about; () for all."""
    num_examples: int
    """So many test images, as `advjax.evaluation.few_images` chooses them; 0 for all."""
    batch_size: int
    pictured: str
    """The attack whose images the report shows."""
    num_pictures: int
    defenses: tuple[DefensePlan, ...]
    num_checked: int
    """Number of test images in each report card; 0 for none."""
    checked: tuple[str, ...]
    """The runs that get a report card."""
    curve: CurvePlan | None
    save_adversarial: str
    """How adversarial images are kept: "float32", "uint8", or "" for not at all."""

    def transfer_rules(self, attack: str) -> tuple[str, str]:
        """Label use and protocol of the transfer results of an attack."""
        is_listed = not self.faithful_attacks or attack in self.faithful_attacks
        return (self.transfer_labels, self.protocol) if is_listed else ("true", "sound")


class Experiment(NamedTuple):
    """What a config describes."""

    title: str
    seed: int
    runs: tuple[Run, ...]
    facts: DataFacts
    load_data: Callable[[], Data]
    """Reads the data, at the first call."""
    evaluation: EvaluationPlan
    mapping: str
    """How steps are mapped over devices: one of ``runtime.devices.MAPPINGS``."""
    split: str
    """What the evaluated images are of: "test", or "train" where training images are evaluated."""
    validates_on_test: bool
    """Whether training is validated on the test images."""
    on_metrics: OnMetrics | None
    """Called with every record of the metrics of training."""
