"""Scoring every model on adversarial images that were saved before."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, Group
from rich.text import Text

from advjax.attacks import ThreatModel
from advjax.data import Dataset
from advjax.evaluation import adversarial_sets, report, summaries
from advjax.evaluation.adversarial_sets import AdversarialSet
from advjax.evaluation.attack_runs import Resources
from advjax.evaluation.attacker_knowledge import ADAPTIVE, OBLIVIOUS, TRANSFER
from advjax.evaluation.keep_adversarial import FORMAT, described_defense
from advjax.evaluation.predictions import predictions
from advjax.evaluation.scored_model import ScoredModel
from advjax.experiment.from_config import complete
from advjax.experiment.registry import NORMS
from advjax.jobs.evaluate import scored_models
from advjax.jobs.workdir import Notify, open_experiment
from advjax.reporting.formatting import accuracy_text, model_name, threat_name
from advjax.reporting.plain_table import plain_table
from advjax.runtime.devices import Devices
from advjax.types import UserError


class Score(NamedTuple):
    """The accuracy of one model on saved adversarial images."""

    model: str
    knowledge: str
    """What their attacker knew of it, as in a report."""
    clean: report.SummaryCell
    """On the clean images."""
    attacked: report.SummaryCell
    differing: int | None
    """Predictions that differ from those stored with the images; None for other models than the attacked one."""


def rescore(
    config: Mapping[str, Any], workdir: str, path: str, devices: Devices, notify: Notify
) -> tuple[AdversarialSet, list[Score]]:
    """Scores every run, alone and with its defenses, on saved adversarial images.

    Args:
      config: of the experiment, complete or not.
      workdir: the folder that the runs were trained in.
      path: the file of adversarial images.
      devices: where to compute.
      notify: receives a line when a damaged checkpoint is passed over.

    Raises:
      UserError: not an adversarial-set file, or made from different data, or with images outside its threat model; or a
        run has not been trained.
    """
    experiment = open_experiment(complete(config), workdir)
    kept = adversarial_sets.load(path)
    facts = kept.provenance
    if facts.get("format") != FORMAT:
        raise UserError(f"{path} has format {facts.get('format')}; this advjax reads {FORMAT}: make it again")
    clean = adversarial_sets.clean_images(kept, experiment.load_data().test)
    adversarial_sets.check_allowed(kept, clean, _threat_model(facts))
    resources = Resources(devices, experiment.evaluation.batch_size, experiment.seed, None)
    return kept, [_score(model, kept, clean, resources) for model in scored_models(experiment, workdir, notify)]


def print_scores(path: str, kept: AdversarialSet, scores: Sequence[Score], console: Console) -> None:
    """The scores as a table, below a description of the images."""
    facts = kept.provenance
    threat = threat_name(facts["norm"], facts["epsilon"])
    source = facts["made_on"] + (f" with {facts['defense']['name']}" if facts["defense"] else "")
    lines = [Text(path, style="bold")]
    lines.append(Text(f"{facts['attack']} ({threat}), made on {source} {facts['model_hash']}, {kept.images.dtype}"))
    if kept.images.dtype == np.uint8:
        lines.append(Text(f"{facts['num_lost']} of {facts['num_wrong']} misclassifications were lost in 8 bits"))
    table = plain_table("model, %", "attacker knew", "clean", "attacked", "stored verdicts")
    for score in scores:
        again = "" if score.differing is None else "the same" if not score.differing else f"{score.differing} differ"
        cells = score.model, score.knowledge, accuracy_text(score.clean), accuracy_text(score.attacked), again
        table.add_row(*map(Text, cells))
    console.print(Group(*lines, table))


def _threat_model(facts: Mapping[str, Any]) -> ThreatModel:
    epsilon = float("inf") if facts["epsilon"] is None else facts["epsilon"]
    return NORMS[facts["norm"]](epsilon, tuple(facts["bounds"]))


def _score(model: ScoredModel, kept: AdversarialSet, clean: Dataset, resources: Resources) -> Score:
    def predicted(images: np.ndarray, seed: int) -> np.ndarray:
        options = {"seed": seed, "batch_size": resources.batch_size, "devices": resources.devices}
        return predictions(model, images, kept.index, **options)

    attacked = predicted(kept.images, kept.provenance["seed"])
    knowledge = _knowledge(model, kept.provenance)
    return Score(
        model=model_name(model.run, model.defense),
        knowledge=knowledge,
        clean=summaries.cell(predicted(clean.images, resources.seed) == kept.labels),
        attacked=summaries.cell(attacked == kept.labels),
        differing=int(np.sum(attacked != kept.predictions)) if knowledge in ADAPTIVE else None,
    )


def _knowledge(model: ScoredModel, facts: Mapping[str, Any]) -> str:
    """What the attacker behind the saved images knew of the model: models are told apart by their variables."""
    if model.hash != facts["model_hash"]:
        return TRANSFER
    defense = facts["defense"] and {key: value for key, value in facts["defense"].items() if key != "num_samples"}
    if described_defense(model) == defense:
        return facts["knowledge"]
    return TRANSFER if facts["defense"] else OBLIVIOUS
