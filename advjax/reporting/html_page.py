"""Writes ``report.html``, one self-contained file: no scripts, no network, light and dark, for phones and for print."""

import base64
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from advjax.evaluation.report import BASE_CORRECT, Report
from advjax.reporting import formatting, layout, legend, noise_table, summary, verdict
from advjax.reporting.plots import Plot, Svg, accuracy_per_attack, at_both_widths, epsilon_curve, training_curves
from advjax.reporting.plots.training import Metrics
from advjax.runtime.files import plain, write_atomically


class Prediction(NamedTuple):
    """How one model classifies an image before and after an attack: names of classes."""

    model: str
    original: str
    adversarial: str
    relation: str
    """What the attack was to this model: "transfer", "oblivious", "adaptive"."""


class GalleryItem(NamedTuple):
    """An image, its adversarial version and how the models classify both."""

    caption: str
    """The attack, such as "autopgd_8"."""
    made_on: str
    """The model that the attack was crafted on."""
    given: str
    """What is unusual about what the attack was given, "" for nothing."""
    original: np.ndarray
    """float [h, w, c] in [0, 1], c = 1 or 3."""
    adversarial: np.ndarray
    """float [h, w, c] in [0, 1]."""
    label: str
    """Name of the true class."""
    predictions: Sequence[Prediction]

    @property
    def kind(self) -> str:
        """The caption that all images of one kind share."""
        return f"{self.caption} crafted on {self.made_on}" + (f", {self.given}" if self.given else "")


def write_page(
    report: Report, *, training: Metrics, gallery: Sequence[GalleryItem], path: str | os.PathLike[str]
) -> None:
    """Write ``report.html``.

    Args:
      report: the report to show.  Accuracies under attacks crafted on another model appear as transfer results.
      training: metrics of the runs, for training curves; if empty, the section is omitted.
      gallery: images to show; if empty, the section is omitted.
      path: the HTML file, replaced atomically.
    """
    write_atomically(path, render_page(report, training=training, gallery=gallery).encode())


def render_page(report: Report, *, training: Metrics, gallery: Sequence[GalleryItem]) -> str:
    """The HTML text of the page, determined by the arguments alone.  See `write_page`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("advjax.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": formatting.percent,
        "threat": formatting.threat_name,
        "subset": formatting.subset_name,
        "breakable": formatting.breakable,
    }
    environment.globals |= {
        "legend": legend,
        "model_name": formatting.model_name,
        "checks_in_words": summary.checks_in_words,
    }
    blocks = layout.blocks(report)
    has_attacks = any(block.lines for block in blocks)
    noise = noise_table.noise_table(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        blocks=blocks,
        terms=layout.explained_terms(blocks),
        kinds={source.kind for source in layout.sources(blocks)},
        has_base_correct=any(BASE_CORRECT in source.sizes for source in layout.sources(blocks)),
        columns=[(key, summary.COLUMNS[key]) for key in summary.measured_columns(report.summary)],
        cards=summary.checks_by_model(report.checks),
        noise=noise,
        noise_columns=noise_table.noise_columns(noise),
        head=verdict.head(report),
        curve=_both(lambda width: epsilon_curve(report.curve, width)) if report.curve else None,
        plot=_both(lambda width: accuracy_per_attack(report, width)) if has_attacks else None,
        curves=_both(lambda width: training_curves(training, width)) if training else None,
        gallery=[_panel(item) for item in gallery],
        environment=_flat(report.environment),
        config=json.dumps(plain(report.config, "config"), indent=2, ensure_ascii=False),
        provenance=_provenance(report),
    )


def magnification(perturbation: np.ndarray) -> float:
    """The largest factor m for which ``0.5 + m * perturbation`` stays in [0, 1], rounded down.

    Rounded to an integer if at least 1 and to one decimal otherwise; 1 for a zero perturbation.
    """
    largest = float(np.max(np.abs(perturbation)))
    if largest == 0:
        return 1.0
    fitting = 0.5 / largest
    # Tolerate float32 rounding of the pixels: 0.5 / 0.25000001 counts as 2.
    return float(math.floor(fitting + 1e-4)) if fitting >= 1 else math.floor(10 * fitting + 1e-4) / 10


def image_uri(image: np.ndarray) -> str:
    """A lossless PNG data URI of ``image`` (float [h, w, c], clipped to [0, 1], c = 1 or 3).

    Raises:
      ValueError: another shape.
    """
    image = np.asarray(image, dtype=np.float32)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"image must have shape [height, width, 1 or 3 channels], got {image.shape}")
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _both(draw: Callable[[float], Svg]) -> Plot:
    """A plot at both widths, as markup."""
    return Plot(*map(Markup, at_both_widths(draw)))


def _panel(item: GalleryItem) -> dict[str, Any]:
    """A gallery item as the template shows it."""
    perturbation = np.asarray(item.adversarial, np.float32) - np.asarray(item.original, np.float32)
    factor = magnification(perturbation)
    magnified = 0.5 + factor * perturbation
    return {
        "kind": item.kind,
        "label": item.label,
        "images": [
            ("original", image_uri(item.original)),
            ("adversarial", image_uri(item.adversarial)),
            (f"perturbation ×{factor:g}", image_uri(magnified)),
        ],
        # Small images are enlarged with crisp pixels; large photographs are downscaled, which needs smoothing.
        "is_small": max(item.original.shape[:2]) <= 96,
        "predictions": item.predictions,
    }


def _flat(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of every entry, with nested mappings flattened by one level."""
    entries: list[tuple[str, str]] = []
    for name, value in environment.items():
        inner = value.items() if isinstance(value, Mapping) else [(name, value)]
        entries += [(str(key).replace("_", " "), str(entry)) for key, entry in inner]
    return entries


def _provenance(report: Report) -> list[dict[str, Any]]:
    """One entry per model: its hash and the seeds of its evaluation."""
    models: dict[tuple[str, str, str], set[int]] = {}
    for row in report.rows:
        models.setdefault((row["run"], row["defense"], row["model_hash"]), set()).add(row["seed"])
    return [
        {"run": run, "defense": defense, "hash": model_hash, "seeds": ", ".join(str(seed) for seed in sorted(seeds))}
        for (run, defense, model_hash), seeds in models.items()
    ]
