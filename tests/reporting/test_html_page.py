"""What `report.html` shows, and that it is self-contained and well formed."""

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from advjax.evaluation.report import SCHEMA_VERSION, Report
from advjax.reporting import html_page, plots
from support.pages import Checker, make_item, make_row


def make_report(*rows, **changes) -> Report:
    rows = rows or (
        make_row("base", accuracy=0.98),
        make_row("base", "pgd", 0.03, "base"),
        make_row("fixer", accuracy=0.96),
        make_row("fixer", "pgd", 0.91, "base"),
        make_row("fixer", "pgd", 0.92, "base", subset="base_correct", n=98),
        make_row("fixer", "pgd", 0.05, "fixer"),
    )
    return Report(
        SCHEMA_VERSION, "Title", {"width": 16}, {"versions": {"jax": "0.10"}}, list(rows), [], [], [], []
    )._replace(**changes)


METRICS = {
    "base": [
        {"step": 10, "kind": "train", "loss": 1.5, "accuracy": 0.4, "learning_rate": 0.1},
        {"step": 20, "kind": "train", "loss": math.nan, "accuracy": 0.6, "learning_rate": 0.1},
        {"step": 20, "kind": "validation", "robust_accuracy": 0.2, "accuracy": None},
    ],
    "fixer": [],
}


def checked(report=None, training=None, gallery=()) -> tuple[str, Checker]:
    text = html_page.render_page(report or make_report(), training=training or {}, gallery=gallery)
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return text, checker


def test_the_page_is_self_contained_and_well_formed():
    gallery = [make_item(), make_item((32, 32, 3))]
    text, checker = checked(training=METRICS, gallery=gallery)
    assert checker.references
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in checker.references)
    assert not checker.tags & {"script", "link", "iframe", "object"}
    assert "@import" not in text
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", text))
    assert set(re.findall(r"https?://[^\"' ]*", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert len(checker.ids) == len(set(checker.ids))
    assert {reference[1:] for reference in checker.references if reference[0] == "#"} <= set(checker.ids)


def test_the_page_supports_phones_and_dark_mode():
    text, _ = checked()
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    for color in ("ink", "muted", "grid", "transfer", "robust", "third", "fourth", "fifth", "sixth"):
        assert text.count(f" --{color}: #") == 2


def test_only_adaptive_results_stand_under_robust_accuracy():
    _, checker = checked()
    robust = [text for kind, text in checker.cells if kind == "robust"]
    assert robust == ["3.0 [0.0, 7.0] ± 1.2", "5.0 [1.0, 9.0] ± 1.2"]
    others = [text for kind, text in checker.cells if kind is None]
    assert "91.0 [87.0, 95.0] ± 1.2" in others
    assert "92.0 [88.0, 96.0] ± 1.2" in others


def test_without_an_adaptive_attack_the_page_says_so():
    warning = "these results are no evidence of robustness"
    text, checker = checked(make_report(make_row("fixer"), make_row("fixer", "pgd", 0.91, "base")))
    assert [cell for kind, cell in checker.cells if kind == "robust"] == ["not measured"]
    assert warning in text
    assert "adaptive: robust accuracy" not in text
    assert warning not in checked()[0]


def test_spread_and_definition_are_labeled():
    text = " ".join(re.sub(r"<[^>]*>", "", checked()[0]).split())
    definition = "Only accuracy under an attack crafted on the very model that is scored is called robust accuracy"
    assert definition in text
    assert "±: standard deviation over five equal parts of the test images" in text
    assert "not across training seeds" in text
    assert "Base-correct: only the images that the base run classifies correctly" in text


def test_names_and_notes_are_escaped():
    evil = "<script>alert('&')</script>$x$"
    report = make_report(
        make_row(evil, accuracy=0.9),
        make_row(evil, evil, 0.1, evil, model_hash=evil),
        title=evil,
        config={evil: evil},
        environment={evil: evil},
        notes=[evil],
    )
    training = {evil: METRICS["base"]}
    item = make_item(caption=evil, made_on=evil, label=evil, predictions=[html_page.Prediction(evil, evil, evil, evil)])
    text, checker = checked(report, training, [item])
    assert "script" not in checker.tags
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_optional_sections_are_left_out():
    text, checker = checked(make_report(make_row("base")))
    assert "svg" not in checker.tags and "img" not in checker.tags
    assert "Training" not in text and "Accuracy per attack" not in text and "<h2>Adversarial examples" not in text
    assert "90.0" in text


def test_provenance_environment_and_config_are_shown():
    text, checker = checked(make_report(config={"epsilon": math.inf, "width": np.int64(16)}))
    assert "8c1f60d2" in text
    assert ("0.10" in [cell for _, cell in checker.cells]) and ("3" in [cell for _, cell in checker.cells])
    assert "&#34;width&#34;: 16" in text and "&#34;epsilon&#34;: null" in text


def test_write_page_writes_what_render_page_says(tmp_path):
    arguments = {"training": METRICS, "gallery": [make_item()]}
    html_page.write_page(make_report(), path=tmp_path / "report.html", **arguments)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html_page.render_page(make_report(), **arguments)


@pytest.mark.parametrize(
    "largest, factor", [(8 / 255, 15), (16 / 255, 7), (0.25, 2), (0.5, 1), (0.8, 0.6), (1.0, 0.5), (0, 1)]
)
def test_magnification_fills_the_range_and_never_clips(largest, factor):
    perturbation = np.array([[0, largest / 3, -largest]], np.float32)
    assert html_page.magnification(perturbation) == factor
    assert np.abs(factor * perturbation).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("shape, mode", [((8, 8, 1), "L"), ((5, 7, 3), "RGB")])
def test_images_are_embedded_pixel_for_pixel(shape, mode):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    prefix, data = html_page.image_uri(pixels / np.float32(255)).split(",")
    assert prefix == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image).reshape(shape), pixels)


def test_images_with_other_channels_are_rejected():
    with pytest.raises(ValueError, match=r"\(8, 8, 2\)"):
        html_page.image_uri(np.zeros((8, 8, 2)))


def test_the_gallery_shows_the_magnified_perturbation_and_which_models_are_fooled():
    text, checker = checked(gallery=[make_item()])
    assert "perturbation ×15" in text
    data = [reference for reference in checker.references if reference.startswith("data:")][2].split(",")[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) / 255
    assert set(np.round(np.unique(shown), 2)) == {0.03, 0.97}
    assert [cell for cell in checker.cells if cell[0] in ("right", "wrong")] == [
        ("right", "cat"),
        ("wrong", "dog"),
        ("right", "cat"),
        ("right", "cat"),
    ]
    assert re.search(r"base <span class=\"what\">adaptive</span>", text)
    assert re.search(r"fixer <span class=\"what\">transfer</span>", text)
    assert 'class="pixels"' in text
    assert 'class="pixels"' not in checked(gallery=[make_item((128, 128, 3))])[0]


def test_plots_are_deterministic_and_name_both_kinds():
    svg = plots.accuracy_per_attack(make_report())
    assert svg == plots.accuracy_per_attack(make_report())
    assert "adaptive: robust accuracy" in svg
    assert ">transfer<" in svg
    assert "Transfer, crafted on base" in svg
    assert svg.startswith("<svg") and "<!DOCTYPE" not in svg
    transfer_only = plots.accuracy_per_attack(make_report(make_row("fixer"), make_row("fixer", "pgd", 0.9, "base")))
    assert "robust" not in transfer_only.lower()


def test_curves_draw_every_loss_and_accuracy_and_nothing_else():
    svg = plots.training_curves(METRICS)
    assert svg == plots.training_curves(METRICS)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"train", "validation robust", "base: loss", "base: accuracy (%)", "fixer: loss"} <= set(texts)
    assert texts.count("none recorded") == 2
    assert "learning" not in svg and "nan" not in svg.lower()


def test_nothing_to_plot_is_rejected():
    with pytest.raises(ValueError, match="at least one attack"):
        plots.accuracy_per_attack(make_report(make_row("base")))
    with pytest.raises(ValueError, match="at least one run"):
        plots.training_curves({})


def test_a_minimum_norm_attack_has_a_distance_but_no_robust_accuracy():
    found = {"norm": "l2", "epsilon": None, "median_distance": 0.58312}
    text = checked(make_report(make_row("base", "cw", 0.0, "base", **found)))[0]
    (line,) = re.findall(r'<tr><th scope="row">cw.*?</tr>', text, re.DOTALL)
    words = [" ".join(re.sub(r"<[^>]*>", "", cell).split()) for cell in re.findall(r"<td.*?</td>", line, re.DOTALL)]
    assert words == ["", "0.583"]
    assert "cw, l2 minimum, median 0.583" in text
    assert "edian distance" not in checked()[0]
