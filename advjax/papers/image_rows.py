"""Rows of images, one of each class: as they are, and under attacks on the trained networks, as papers print them."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from advjax.data import Dataset, pixels
from advjax.evaluation.attack_runs import Resources, run_attack
from advjax.evaluation.predictions import predictions
from advjax.evaluation.scored_model import ScoredModel
from advjax.jobs.evaluate import scored_models, test_images
from advjax.jobs.workdir import open_experiment
from advjax.papers.running import Job, with_shared_runs
from advjax.reporting.html_page import image_uri
from advjax.reporting.plots.style import COLORS, Svg
from advjax.runtime.devices import Devices, mesh

_SIDE, _GAP, _TEXT = 56, 4, 16
_BATCH_SIZE = 64
"""Enough for the few images here; predictions fill every batch."""


def image_rows(job: Job, attacks: Sequence[str], networks: Mapping[str, str]) -> Svg | None:
    """An image of each class, and below it what each attack makes of it on each network; None before the evaluation.

    The networks are attacked anew, each image with the whole attack: the images that an evaluation keeps are those of
    verdicts, which spare what is misclassified anyway and end at the first success.  Below an image is the class that
    the attacked network sees in it.

    Args:
      job: of an entry, which has trained the networks.
      attacks: names in its config.
      networks: run -> what to call it instead.
    """
    if not job.is_done:
        return None
    config = with_shared_runs(job)
    experiment = open_experiment(config, str(job.folder))
    models = scored_models(experiment, str(job.folder), warnings.warn)
    resources = Resources(Devices(mesh(), config["mapping"]), _BATCH_SIZE, experiment.seed, store=None)
    shown = _one_of_each(test_images(experiment), models[0], resources)
    described = {found.name: found for found in experiment.evaluation.attacks}
    # The prediction -1, of logits that are NaN, takes the last name.
    names = (*shown.class_names, "none (NaN)")
    rows = [("as they are", pixels(shown.images), [names[label] for label in shown.labels])]
    for attack in attacks:
        for model in models:
            images = run_attack(model, described[attack], shown, resources, survivors_only=False).images
            seen = _predicted(model, images, shown.index, resources)
            heading = f"{attack} on {networks.get(model.name, model.name)}"
            rows.append((heading, images, [names[prediction] for prediction in seen]))
    return _grid(rows)


def _one_of_each(test: Dataset, model: ScoredModel, resources: Resources) -> Dataset:
    """Of each class the first image that the model classifies correctly; if there is none, the first of the class."""
    is_wrong = _predicted(model, test.images, test.index, resources) != test.labels
    order = np.argsort(is_wrong, kind="stable")
    return test.take(order[np.unique(test.labels[order], return_index=True)[1]])


def _predicted(model: ScoredModel, images: np.ndarray, index: np.ndarray, resources: Resources) -> np.ndarray:
    options = {"seed": resources.seed, "batch_size": resources.batch_size, "devices": resources.devices}
    return predictions(model, images, index, **options)


def _grid(rows: Sequence[tuple[str, np.ndarray, Sequence[str]]]) -> Svg:
    columns = max(len(images) for _, images, _ in rows)
    height, width = len(rows) * (_SIDE + 2 * _TEXT + _GAP), columns * (_SIDE + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Rows of images" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="system-ui, sans-serif" '
        f'fill="{COLORS.ink}">'
    ]
    for number, (heading, images, names) in enumerate(rows):
        top = number * (_SIDE + 2 * _TEXT + _GAP)
        parts.append(f'<text x="0" y="{top + _TEXT - 4}" font-size="11" font-weight="bold">{heading}</text>')
        for column, (image, name) in enumerate(zip(images, names, strict=True)):
            left = column * (_SIDE + _GAP)
            parts.append(
                f'<image x="{left}" y="{top + _TEXT}" width="{_SIDE}" height="{_SIDE}" '
                f'style="image-rendering: pixelated" href="{image_uri(image)}"/>'
            )
            parts.append(f'<text x="{left}" y="{top + _SIDE + 2 * _TEXT - 5}" font-size="9">{name}</text>')
    return "".join([*parts, "</svg>\n"])
