"""The report as one HTML file that needs nothing else: no scripts, no network, light and dark, from phones to paper."""

import base64
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from advjax.evaluation.report import BASE_CORRECT, Report
from advjax.reporting import noise_table, summary, terminal
from advjax.reporting.plots import Svg, accuracy_per_attack, epsilon_curve
from advjax.runtime.files import plain, write_atomically


class GalleryItem(NamedTuple):
    """One image and what an attack made of it."""

    caption: str
    """The attack, such as "autopgd_8"."""
    made_on: str
    """The run that the attack was made on."""
    original: np.ndarray
    """float [h, w, c] in [0, 1], c = 1 or 3."""
    adversarial: np.ndarray
    """float [h, w, c] in [0, 1]."""
    label: str
    """Name of the true class."""
    predictions: Mapping[str, tuple[str, str]]
    """Run -> names of the classes it predicts for the original and for the adversarial image."""


def write_page(
    report: Report, *, curves: Svg | None, gallery: Sequence[GalleryItem], path: str | os.PathLike[str]
) -> None:
    """Write ``report.html``.

    Args:
      report: what to show; an accuracy under an attack made on another model is shown as transfer.
      curves: training curves (`plots.training_curves`), or None to leave the section out.
      gallery: images to show; empty to leave the section out.
      path: the HTML file, replaced in one step.
    """
    write_atomically(path, render_page(report, curves=curves, gallery=gallery).encode())


def render_page(report: Report, *, curves: Svg | None, gallery: Sequence[GalleryItem]) -> str:
    """The text of the page; equal arguments give equal text.  See `write_page`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("advjax.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": terminal.percent, "threat": terminal.threat_name, "subset": terminal.subset_name}
    environment.filters["breakable"] = _breakable
    environment.globals["model_name"] = summary.model_name
    blocks = terminal.blocks(report)
    has_attacks = any(block.lines for block in blocks)
    noisy = noise_table.noise_table(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        blocks=blocks,
        minimum_explanation=terminal.MINIMUM,
        terms=terminal.explained_terms(blocks),
        kinds={source.kind for source in terminal.sources(blocks)},
        has_base_correct=any(BASE_CORRECT in source.sizes for source in terminal.sources(blocks)),
        ways=[(way, summary.WAYS[way]) for way in summary.ways_measured(report.summary)],
        explanation=summary.EXPLANATION,
        cards=summary.by_model(report.checks),
        noise=noisy,
        noises=noise_table.noises(noisy),
        noise_explanation=noise_table.EXPLANATION,
        curve=Markup(epsilon_curve(report.curve)) if report.curve else None,
        plot=Markup(accuracy_per_attack(report)) if has_attacks else None,
        curves=None if curves is None else Markup(curves),
        gallery=[_panel(item) for item in gallery],
        environment=_flat(report.environment),
        config=json.dumps(plain(report.config, "config"), indent=2, ensure_ascii=False),
        provenance=_provenance(report),
    )


def magnification(perturbation: np.ndarray) -> float:
    """The factor m for which ``0.5 + m * perturbation`` just fits into [0, 1], rounded down to a readable number.

    A whole number from 1 on, a tenth below; 1 for a perturbation of zero.
    """
    largest = float(np.max(np.abs(perturbation)))
    if largest == 0:
        return 1.0
    fitting = 0.5 / largest
    # The rounding of float32 pixels must not cost a whole step: 0.5 / 0.25000001 is 2.
    return float(math.floor(fitting + 1e-4)) if fitting >= 1 else math.floor(10 * fitting + 1e-4) / 10


def image_uri(image: np.ndarray) -> str:
    """A PNG data URI of ``image`` (float [h, w, c], clipped to [0, 1], c = 1 or 3), pixel for pixel."""
    image = np.asarray(image, dtype=np.float32)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"image has shape {image.shape}; expected [height, width, 1 or 3 channels]")
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _panel(item: GalleryItem) -> dict[str, Any]:
    """What the template shows of one gallery item."""
    perturbation = np.asarray(item.adversarial, np.float32) - np.asarray(item.original, np.float32)
    factor = magnification(perturbation)
    magnified = 0.5 + factor * perturbation
    return {
        "caption": item.caption,
        "made_on": item.made_on,
        "label": item.label,
        "images": [
            ("original", image_uri(item.original)),
            ("adversarial", image_uri(item.adversarial)),
            (f"perturbation ×{factor:g}", image_uri(magnified)),
        ],
        # Enlarged pixels stay squares; a large photograph that is made smaller must be averaged instead.
        "is_small": max(item.original.shape[:2]) <= 96,
        "predictions": [
            {"run": run, "clean": clean, "adversarial": adversarial, "is_source": run == item.made_on}
            for run, (clean, adversarial) in item.predictions.items()
        ],
    }


def _breakable(name: str) -> Markup:
    """``name`` with places where a narrow column may break it: after underscores and plus signs."""
    return Markup(re.sub("([_+])", r"\1<wbr>", str(escape(name))))


def _flat(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of every entry, one level of nesting unfolded."""
    entries: list[tuple[str, str]] = []
    for name, value in environment.items():
        inner = value.items() if isinstance(value, Mapping) else [(name, value)]
        entries += [(str(key).replace("_", " "), str(entry)) for key, entry in inner]
    return entries


def _provenance(report: Report) -> list[dict[str, Any]]:
    """One entry per model: its hash and the seeds of the attacks on it."""
    models: dict[tuple[str, str, str], set[int]] = {}
    for row in report.rows:
        models.setdefault((row["run"], row["defense"], row["model_hash"]), set()).add(row["seed"])
    return [
        {"run": run, "defense": defense, "hash": model_hash, "seeds": ", ".join(str(seed) for seed in sorted(seeds))}
        for (run, defense, model_hash), seeds in models.items()
    ]
