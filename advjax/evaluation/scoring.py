"""From a model and images to an outcome: what the model predicts on clean and on adversarial images."""

import time

import numpy as np

from advjax.data import Dataset
from advjax.evaluation.attack_runs import AttackRun, Resources
from advjax.evaluation.attacker_knowledge import ADAPTIVE, attacker_knowledge
from advjax.evaluation.outcomes import CLEAN, Outcome
from advjax.evaluation.predictions import predictions
from advjax.evaluation.scored_model import ScoredModel


def clean_outcome(model: ScoredModel, test: Dataset, resources: Resources) -> Outcome:
    """The predictions of a model on the images as they are."""
    predicted = _predicted(model, test.images, test.index, resources)
    zeros = np.zeros(len(test.labels))
    return _outcome(model, None, test, resources)._replace(predictions=predicted, distances=zeros, steps=zeros)


def attacked_outcome(model: ScoredModel, run: AttackRun, test: Dataset, resources: Resources) -> Outcome:
    """The predictions of a model on the adversarial images of an attack run, on itself or on another model."""
    start = time.perf_counter()
    predicted = _predicted(model, run.result.images, test.index, resources)
    return _outcome(model, run, test, resources)._replace(
        predictions=predicted,
        distances=run.result.distance,
        steps=run.result.steps,
        progress=np.max(run.result.progress, axis=1),
        seconds=run.result.seconds + time.perf_counter() - start,
    )


def _predicted(model: ScoredModel, images: np.ndarray, index: np.ndarray, resources: Resources) -> np.ndarray:
    options = {"seed": resources.seed, "batch_size": resources.batch_size, "devices": resources.devices}
    return predictions(model, images, index, **options)


def _outcome(model: ScoredModel, run: AttackRun | None, test: Dataset, resources: Resources) -> Outcome:
    """All that is known before anything is predicted."""
    attack, knowledge, nothing = run and run.attack, attacker_knowledge(model, run), np.zeros(0)
    searched = attack is not None and not attack.is_noise
    adaptive = knowledge in ADAPTIVE
    return Outcome(
        run=model.run,
        split=resources.split,
        attack=attack.name if attack else CLEAN,
        norm=attack.norm if attack and searched else None,
        epsilon=attack.epsilon if attack else None,
        made_on=run.source.run if run and searched else None,
        adaptive=adaptive,
        knowledge=knowledge,
        defense=model.defense,
        protocol=run.protocol if run else "sound",
        label_use=run.labels if run else "true",
        seed=resources.seed,
        eot_samples=max(1, model.num_samples) if adaptive else 1,
        seconds=0.0,
        model_hash=model.hash,
        index=test.index,
        labels=test.labels,
        predictions=nothing,
        distances=nothing,
        steps=nothing,
    )
