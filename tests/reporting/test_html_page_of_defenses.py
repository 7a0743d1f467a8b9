"""The page for six models, some with test-time defenses: long names, four kinds of attack, noise, an epsilon curve."""

import re

import numpy as np
import pytest

from advjax.evaluation.report import SCHEMA_VERSION, CheckRow, CurvePoint, Report, Summary
from advjax.evaluation.summaries import cell
from advjax.reporting import html_page, layout, legend, plots
from advjax.reporting.formatting import model_name
from support.pages import Checker, make_item, make_row

MODELS = [
    ("base", "none"),
    ("noisy_convolutions", "none"),
    ("noisy_convolutions", "random_self_ensemble"),
    ("mixed", "mixup_inference"),
    ("distribution_regression", "random_resize_pad"),
    ("denoising_after_both_convolutions", "none"),
]
ATTACKS = {"pgd_20": (0.52, 0.12), "auto_pgd": (0.49, 0.08), "square": (0.61, 0.31)}
NOISES = {"gn02_std": 0.71, "gn02_variance": 0.44, "gn08_std": 0.5, "gn08_variance": 0.19}
N = 300


def counted(accuracy):
    return cell(np.arange(N) < round(accuracy * N))


def row(run, attack, accuracy, defense, **changes):
    found = counted(accuracy)
    return make_row(
        run, attack, found["accuracy"], defense=defense, n=N, low=found["low"], high=found["high"], **changes
    )


def rows_of(i, run, defense):
    spared = 0.04 * i
    found = [row(run, "clean", 0.72 - spared / 3, defense)]
    for attack, (transfer, adaptive) in ATTACKS.items():
        threat = {"norm": "linf", "epsilon": 8 / 255}
        if run != "base":
            facts = {"made_on": "base", "adaptive": False, "knowledge": "source model", **threat}
            found.append(row(run, attack, transfer + spared / 2, defense, **facts))
        if defense != "none":
            facts = {"made_on": run, "adaptive": False, "knowledge": "undefended model", **threat}
            found.append(row(run, attack, adaptive + spared, defense, **facts))
        facts = {"made_on": run, "adaptive": True, "knowledge": "scores" if attack == "square" else "everything"}
        found.append(row(run, attack, adaptive + spared / 2, defense, eot_samples=1, **facts, **threat))
    facts = {"norm": None, "epsilon": None, "made_on": None, "adaptive": False, "knowledge": "nothing"}
    return found + [row(run, name, accuracy + spared / 4, defense, **facts) for name, accuracy in NOISES.items()]


def summary_of(i, run, defense):
    spared = 0.04 * i
    return Summary(
        run=run,
        defense=defense,
        norm="linf",
        epsilon=8 / 255,
        clean=counted(0.72 - spared / 3),
        oblivious=None if defense == "none" else counted(0.08 + spared),
        transfer=None if run == "base" else counted(0.47 + spared / 2),
        white_box=counted(0.07 + spared / 2),
        queries=counted(0.31 + spared / 2),
        robust=counted(0.06 + spared / 2),
    )


def checks_of(i, run, defense):
    sentences = {
        "bounds": "all 900 adversarial images are inside their threat model",
        "white box against transfer": "pgd_20 leaves 12.0% crafted on the model itself, 10.0% on the undefended one",
        "draws for a gradient": "auto_pgd leaves 11.0% with 20 draws for each gradient, 8.3% with 40 (p = 0.021)",
    }
    return [
        CheckRow(
            run=run, defense=defense, name=name, passed=i % 3 != 2 or name == "bounds", finding=finding, numbers={}
        )
        for name, finding in sentences.items()
    ]


def curve_of(i, run, defense):
    for epsilon in (0, 1, 2, 4, 8, 16):
        found = counted((0.72 - 0.013 * i) * np.exp(-epsilon / (2 + i)))
        yield CurvePoint(run=run, defense=defense, attack="pgd", norm="linf", epsilon=epsilon / 255, **found)


def of_all(make):
    return [entry for i, model in enumerate(MODELS) for entry in make(i, *model)]


@pytest.fixture(scope="module")
def report() -> Report:
    """An undefended base and five other models, some with defenses, under all four kinds of attack."""
    return make_report()


def make_report() -> Report:
    summaries = [summary_of(i, *model) for i, model in enumerate(MODELS)]
    notes = ["The images of pgd_20 were rounded to 8 bits: 3 of 247 wrong answers become right by that."]
    title = "Five defenses around a small CIFAR-10 classifier"
    environment = {"versions": {"jax": "0.10", "flax": "0.12"}, "device_kind": "cpu"}
    config = {"title": title, "evaluation": {"noises": list(NOISES)}}
    content = of_all(rows_of), notes, summaries, of_all(checks_of), of_all(curve_of)
    return Report(SCHEMA_VERSION, title, config, environment, *content)


@pytest.fixture(scope="module")
def html(report) -> str:
    """Its page."""
    return html_page.render_page(report, training={}, gallery=())


def text_of(html):
    return " ".join(re.sub(r"<[^>]*>", "", html.replace("<wbr>", "")).split())


def section(text, heading):
    return next(part for part in text.split("<section>") if f"<h2>{heading}</h2>" in part)


def test_the_page_is_well_formed(report):
    item = make_item(predictions=[html_page.Prediction(run, "cat", "dog", "transfer") for run, _ in MODELS])
    text = html_page.render_page(report, training={}, gallery=[item])
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))


def test_robust_accuracy_is_the_first_number_of_every_table(report, html):
    tables = re.findall(r'<table class="results[^"]*">.*?</table>', html, re.S)
    cells = [re.search(r"<tbody>\s*<tr><th.*?</th>\s*<td([^>]*)>", found, re.S)[1] for found in tables]
    first = [re.sub('data-label="[^"]*"', "", attributes).strip() for attributes in cells]
    assert len(first) == len(layout.blocks(report)) + 2
    assert first == ['class="robust"'] * (len(first) - 1) + [""]
    heads = re.findall(r"<th [^>]*>(.*?)</th>", section(html, "Summary").split("<tbody>")[0])
    assert heads == ["Model", "Robust accuracy", "Clean", "White-box", "Query", "Transfer", "Oblivious"]


def test_noise_has_a_section_with_every_model_and_is_not_called_robust(html):
    text = text_of(section(html, "Random noise"))
    assert "noisy_convolutions with random_self_ensemble" in text and legend.NOISE in text
    assert 0 < text.index("clean") < text.index("gn02_std") < text.index("gn08_variance")
    base = text[text.index("base ") : text.index("noisy_convolutions")]
    assert [number for number in ("72.0 [66.7, 76.8]", "71.0 [65.6, 75.8]", "19.0 [") if number not in base] == []
    assert "robust accuracy" not in text.lower()


def test_without_noise_there_is_no_section(report):
    rest = report._replace(rows=[row for row in report.rows if row["knowledge"] != "nothing"])
    text = html_page.render_page(rest, training={}, gallery=())
    assert "<h2>Random noise</h2>" not in text and legend.NOISE not in text


def test_every_row_states_what_the_attacker_knows(html):
    lines = html.split("All rows of report.json")[1].splitlines()
    (line,) = (line for line in lines if "gn02_std" in line and '<th scope="row">base</th>' in line)
    assert "<td>nothing</td>" in line


def test_long_names_may_break_and_are_still_escaped(report, html):
    assert "random_<wbr>self_<wbr>ensemble" in html
    evil = report._replace(summary=[Summary(**(report.summary[0] | {"run": "<b>_x"}))], rows=report.rows[:1], curve=[])
    assert "&lt;b&gt;_<wbr>x" in html_page.render_page(evil, training={}, gallery=())


def test_no_two_curves_have_the_same_style(report):
    svg = plots.epsilon_curve(report.curve)
    assert svg == plots.epsilon_curve(report.curve)
    # Line styles included; the legend repeats each.
    styles = re.findall(r'style="fill: none; ([^"]*stroke-width: 1\.6[^"]*)"', svg)
    assert len(styles) == 2 * len(MODELS)
    assert len(set(styles)) == len(MODELS)


def heights(svg):
    """Text -> its distance from the top of the plot."""
    return {text: float(y) for y, text in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>([^<]*)</text>', svg)}


def test_the_legend_of_the_curve_is_above_it_and_long_names_do_not_share_a_line(report):
    names = [model_name(*model) for model in MODELS]
    found = heights(plots.epsilon_curve(report.curve))
    assert max(found[name] for name in names) < found["robust accuracy under pgd (%)"]
    assert len({found[name] for name in names}) == 3
    long = [CurvePoint(**(point | {"run": point["run"] * 4})) for point in report.curve]
    assert len({found for name, found in heights(plots.epsilon_curve(long)).items() if "with" in name}) == 3


def test_the_heading_of_the_circles_is_below_the_model_name(report):
    found = heights(plots.accuracy_per_attack(report._replace(rows=rows_of(2, *MODELS[2])[:2])))
    name, kind = "noisy_convolutions with random_self_ensemble", "Transfer, crafted on base"
    assert found[name] + 8 < found[kind]
