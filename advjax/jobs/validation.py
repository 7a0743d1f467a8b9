"""Validation during training: the accuracies that the best checkpoint is chosen by."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import numpy as np

from advjax.data import Dataset
from advjax.evaluation.attack_runs import Resources, run_attack
from advjax.evaluation.predictions import cross_entropies, predictions
from advjax.evaluation.scored_model import ScoredModel, as_trained
from advjax.experiment.spec import Run
from advjax.types import Variables


def validation(
    run: Run,
    untrained: Variables,
    dataset: Dataset,
    sources: Mapping[str, tuple[nn.Module, Variables]],
    resources: Resources,
) -> Callable[[Variables], dict[str, float]]:
    """``variables -> metrics``: accuracy on the validation images, clean and under the validation attack of the run.

    A stochastic model has its noise on, one draw for each image and query.  The mean of both accuracies is the "score",
    which the best checkpoint is chosen by unless the plan says otherwise.  With ``validate_loss``, there are also
    "cross_entropy" and "attacked_cross_entropy".  Without validation images there are no metrics.

    Args:
      run: the run in training.
      untrained: its variables; only shapes and types count.
      dataset: the validation images.
      sources: earlier runs that the attack may be made on.
      resources: devices, and the store for attacks on runs that no longer change.
    """
    if not len(dataset.labels):
        return lambda variables: {}
    image_shape, placed, seed = dataset.image_shape, run.validation_attack, run.plan.seed
    own = as_trained(run.name, run.model, untrained, image_shape)
    attack = placed.attack._replace(name="validation") if placed else None
    # Images attacked on a model that does not change need to be attacked only once.
    transferred: list[np.ndarray] = []

    options = {"seed": seed, "batch_size": resources.batch_size, "devices": resources.devices}

    def accuracy(model: ScoredModel, images: np.ndarray) -> float:
        return float(np.mean(predictions(model, images, dataset.index, **options) == dataset.labels))

    def loss(model: ScoredModel, images: np.ndarray) -> float:
        return float(np.mean(cross_entropies(model, images, dataset.labels, dataset.index, **options)))

    def attacked(model: ScoredModel) -> np.ndarray:
        assert attack is not None and placed is not None
        shared = resources._replace(seed=seed)
        if placed.made_on == "self":
            here = shared._replace(store=None, stop_requested=lambda: False)
            return run_attack(model, attack, dataset, here, survivors_only=False).images
        if not transferred:
            source = as_trained(placed.made_on, *sources[placed.made_on], image_shape)
            transferred.append(run_attack(source, attack, dataset, shared, survivors_only=False).images)
        return transferred[0]

    def validate(variables: Variables) -> dict[str, float]:
        model = own._replace(variables=variables)
        shown = {"": dataset.images} | ({"attacked_": attacked(model)} if attack is not None else {})
        scores = {f"{name}accuracy": accuracy(model, images) for name, images in shown.items()}
        losses = {f"{name}cross_entropy": loss(model, images) for name, images in shown.items() if run.validate_loss}
        return {**scores, "score": float(np.mean(list(scores.values()))), **losses}

    return validate
