"""Rows of images, one of each class: as they are, and under attacks on the trained networks, as papers print them."""

from collections.abc import Mapping, Sequence

import numpy as np

from advjax.data import pixels
from advjax.evaluation import adversarial_sets
from advjax.experiment.from_config import from_config
from advjax.papers.running import Job
from advjax.reporting.html_page import image_uri
from advjax.reporting.plots.style import COLORS, Svg

_SIDE, _GAP, _TEXT = 56, 4, 16


def image_rows(jobs: Sequence[Job], attacks: Sequence[str], networks: Mapping[str, str]) -> Svg | None:
    """The first test image of each class, and below it what each attack makes of it on each network that it attacked.

    Below an image is the class that the attacked network sees in it.

    Args:
      jobs: of an entry; the images are those that its first seed has kept.
      attacks: names in the configs.
      networks: run -> what to call it instead.
    """
    rows = []
    for job in jobs:
        kept = [
            adversarial_sets.load(path)
            for attack in attacks
            for path in sorted((job.folder / "adversarial").glob(f"{attack}.*.npz"))
        ]
        if not kept or job.config["seed"] != jobs[0].config["seed"]:
            continue
        test = from_config(job.config).load_data().test
        for found in kept:
            chosen = _one_of_each(found.labels)
            if not rows:
                clean = adversarial_sets.clean_images(found, test)
                names = [test.class_names[label] for label in found.labels[chosen]]
                rows.append(("as they are", pixels(clean.images)[chosen], names))
            seen = [test.class_names[prediction] for prediction in found.predictions[chosen]]
            network = found.provenance["made_on"]
            heading = f"{found.provenance['attack']} on {networks.get(network, network)}"
            rows.append((heading, pixels(found.images)[chosen], seen))
    return _grid(rows) if rows else None


def _one_of_each(labels: np.ndarray) -> np.ndarray:
    """Positions of the first image of every class that there is, in the order of the classes."""
    return np.unique(labels, return_index=True)[1]


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
