"""Saving the adversarial images of an evaluation: ``<folder>/adversarial/<attack>.<model>.npz``."""

import os
from typing import Any

import numpy as np

from advjax.data import Dataset, pixels
from advjax.evaluation import adversarial_sets
from advjax.evaluation.adversarial_sets import AdversarialSet
from advjax.evaluation.attack_runs import AttackRun, Resources
from advjax.evaluation.outcomes import Outcome
from advjax.evaluation.predictions import predictions
from advjax.evaluation.scored_model import ScoredModel
from advjax.runtime.devices import is_main_process
from advjax.runtime.environment import describe_environment

FORMAT = 1
FOLDER = "adversarial"


def keep_adversarial(
    run: AttackRun, outcome: Outcome, test: Dataset, kind: str, resources: Resources, folder: str
) -> str | None:
    """Saves the images of an attack on the very model that is scored; called by all processes of a job.

    Args:
      run: the attack run.
      outcome: the predictions of the attacked model on its images.
      test: the clean images.
      kind: "float32", or "uint8" for images rounded as by ``adversarial_sets.quantized``.
      resources: devices, for predictions on rounded images.
      folder: where the report goes.

    Returns:
      For 8-bit images, how many lose their effect; None otherwise.

    Raises:
      UserError: 8-bit images are requested, but the clean ones are not 8-bit.
    """
    model, attack = run.source, run.attack
    images, predicted, distances = run.result.images, np.asarray(outcome.predictions), np.asarray(outcome.distances)
    wrong = predicted != test.labels
    if kind == "uint8":
        images = adversarial_sets.quantized(attack.threat_model, test.images, images)
        options = {"seed": outcome.seed, "batch_size": resources.batch_size, "devices": resources.devices}
        predicted = predictions(model, images, test.index, **options)
        distances = adversarial_sets.distances(attack.threat_model, pixels(test.images), pixels(images))
    lost = int(np.sum(wrong & (predicted == test.labels)))
    provenance = {
        "format": FORMAT,
        "attack": attack.name,
        "spec": attack.identity,
        "norm": attack.norm,
        "epsilon": attack.epsilon,
        "bounds": attack.threat_model.bounds,
        "made_on": model.run,
        "model_hash": model.hash,
        "defense": described_defense(model),
        "knowledge": outcome.knowledge,
        "seed": outcome.seed,
        "data": adversarial_sets.describe_data(test, outcome.split),
        "num_wrong": int(wrong.sum()),
        "num_lost": lost,
        **describe_environment(),
    }
    if is_main_process():
        kept = AdversarialSet(images, test.labels, test.index, predicted, distances.astype(np.float32), provenance)
        adversarial_sets.save(kept, os.path.join(folder, FOLDER, f"{attack.name}.{model.name}.npz"))
    if kind != "uint8":
        return None
    return f"{attack.name} on {model.name}: {lost} of {wrong.sum()} misclassifications are lost in 8 bits"


def described_defense(model: ScoredModel) -> dict[str, Any] | None:
    """The defense as plain data, as far as it decides predictions; None without one."""
    if model.defense_identity is None:
        return None
    return {key: value for key, value in model.defense_identity.items() if key != "num_samples"}
