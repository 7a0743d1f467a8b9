"""Keeping the adversarial images of an evaluation, and scoring models on kept ones.

<folder>/adversarial/<attack>.<model>.npz
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console, Group
from rich.text import Text

from advjax.data import pixels
from advjax.evaluation import adversarial_sets, report, summaries
from advjax.evaluation.adversarial_sets import AdversarialSet
from advjax.evaluation.outcomes import ADAPTIVE, OBLIVIOUS, TRANSFER, Outcome
from advjax.experiment.registry import NORMS
from advjax.experiment.spec import Experiment, NamedAttack
from advjax.jobs.judges import Judge, judges_of
from advjax.jobs.train import Notify
from advjax.reporting.plain_table import plain_table
from advjax.reporting.summary import cell_text, model_name
from advjax.reporting.terminal import threat_name
from advjax.runtime.devices import Devices
from advjax.runtime.environment import describe_environment
from advjax.types import UserError

FORMAT = 1
FOLDER = "adversarial"


class Score(NamedTuple):
    """What one model makes of adversarial images that were made before."""

    model: str
    knowledge: str
    """What their attacker knew of it, as in a report."""
    clean: report.SummaryCell
    """Of the images as they were."""
    attacked: report.SummaryCell
    differing: int | None
    """Predictions that are not those stored with the images; None for another model than they were made on."""


def keep(judge: Judge, attack: NamedAttack, outcome: Outcome, images: np.ndarray, kind: str, folder: str) -> str | None:
    """Saves what an attack on this very model found; called by all processes of a job.

    Args:
      judge: the attacked model.
      attack: what has been done to it.
      outcome: what it made of ``images``.
      images: float32 [n, h, w, c].
      kind: "float32", or "uint8" for images rounded as by ``adversarial_sets.quantized``.
      folder: where the report goes.

    Returns:
      For 8-bit images, how many lose their effect; None otherwise.

    Raises:
      UserError: 8-bit images are asked for, but the clean ones are none.
    """
    test, predictions, distances = judge.test, np.asarray(outcome.predictions), np.asarray(outcome.distances)
    wrong = predictions != test.labels
    if kind == "uint8":
        images = adversarial_sets.quantized(attack.threat_model, test.images, images)
        predictions = judge.predict(judge.variables, images, test.index, outcome.seed)
        distances = adversarial_sets.distances(attack.threat_model, pixels(test.images), pixels(images))
    lost = int(np.sum(wrong & (predictions == test.labels)))
    provenance = {
        "format": FORMAT,
        "attack": attack.name,
        "spec": attack.spec,
        "norm": attack.norm,
        "epsilon": attack.epsilon,
        "bounds": attack.threat_model.bounds,
        "made_on": judge.run.name,
        "model_hash": judge.hash,
        "defense": _defense(judge),
        "knowledge": outcome.knowledge,
        "seed": outcome.seed,
        "data": adversarial_sets.describe_data(test, outcome.split),
        "num_wrong": int(wrong.sum()),
        "num_lost": lost,
        **describe_environment(),
    }
    if jax.process_index() == 0:
        kept = AdversarialSet(images, test.labels, test.index, predictions, distances.astype(np.float32), provenance)
        adversarial_sets.save(kept, os.path.join(folder, FOLDER, f"{attack.name}.{judge.name}.npz"))
    if kind != "uint8":
        return None
    return f"{attack.name} on {judge.name}: {lost} of {wrong.sum()} wrong answers become right in 8 bits"


def score(
    experiment: Experiment, workdir: str, path: str, devices: Devices, notify: Notify
) -> tuple[AdversarialSet, list[Score]]:
    """What every run, alone and with its defences, makes of saved adversarial images.

    Raises:
      UserError: the file is none, was made of other data, or has images outside its threat model; or a run has not
        been trained.
    """
    kept = adversarial_sets.load(path)
    facts = kept.provenance
    if facts["format"] != FORMAT:
        raise UserError(f"{path} has format {facts['format']}; this advjax reads {FORMAT}: make it again")
    clean = adversarial_sets.clean_images(kept, experiment.data.test)
    epsilon = float("inf") if facts["epsilon"] is None else facts["epsilon"]
    adversarial_sets.check_allowed(kept, clean, NORMS[facts["norm"]](epsilon, tuple(facts["bounds"])))
    return kept, [_score(judge, kept) for judge in judges_of(experiment, workdir, clean, devices, notify)]


def print_scores(path: str, kept: AdversarialSet, scores: Sequence[Score], console: Console) -> None:
    """The scores as a table, under what the images are."""
    facts = kept.provenance
    threat = threat_name(facts["norm"], facts["epsilon"])
    source = facts["made_on"] + (f" with {facts['defense']['name']}" if facts["defense"] else "")
    lines = [Text(path, style="bold")]
    lines.append(Text(f"{facts['attack']} ({threat}), made on {source} {facts['model_hash']}, {kept.images.dtype}"))
    if kept.images.dtype == np.uint8:
        lines.append(Text(f"{facts['num_lost']} of {facts['num_wrong']} lost their effect when rounded to 8 bits"))
    table = plain_table("model, %", "attacker knew", "clean", "attacked", "stored verdicts")
    for score in scores:
        again = "" if score.differing is None else "the same" if not score.differing else f"{score.differing} differ"
        cells = score.model, score.knowledge, cell_text(score.clean), cell_text(score.attacked), again
        table.add_row(*map(Text, cells))
    console.print(Group(*lines, table))


def _score(judge: Judge, kept: AdversarialSet) -> Score:
    predictions = judge.predict(judge.variables, kept.images, kept.index, kept.provenance["seed"])
    knowledge = _knowledge(judge, kept.provenance)
    return Score(
        model=model_name(judge.run.name, judge.defense_name),
        knowledge=knowledge,
        clean=summaries.cell(judge.predictions == kept.labels),
        attacked=summaries.cell(predictions == kept.labels),
        differing=int(np.sum(predictions != kept.predictions)) if knowledge in ADAPTIVE else None,
    )


def _knowledge(judge: Judge, facts: dict[str, Any]) -> str:
    if judge.hash != facts["model_hash"]:
        return TRANSFER
    if _defense(judge) == facts["defense"]:
        return facts["knowledge"]
    return TRANSFER if facts["defense"] else OBLIVIOUS


def _defense(judge: Judge) -> dict[str, Any] | None:
    """The defence as plain data, without the name of the run, which may be another in another experiment."""
    if judge.defense is None:
        return None
    spec = {key: value for key, value in judge.defense.spec.items() if key != "run"}
    return {**spec, "num_draws": judge.defense.num_draws, "num_votes": judge.defense.num_votes}
