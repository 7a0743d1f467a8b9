"""Random noise has its own table, apart from attacks."""

import io

import pytest
from rich.console import Console

from advjax.reporting import layout, noise_table, terminal
from support.evaluations import evaluation, outcome

NOISE = {"norm": None, "epsilon": None, "made_on": None, "adaptive": False, "knowledge": "nothing"}


@pytest.fixture
def report():
    base = outcome([0], attack="clean"), outcome(range(4), attack="gn08_std", **NOISE), outcome(range(10))
    other = outcome([], attack="clean", run="other"), outcome(range(2), attack="gn08_std", run="other", **NOISE)
    return evaluation(*base, *other).report


def test_table_has_every_model_under_every_noise(report):
    cells = noise_table.noise_table(report)
    accuracy = {(model, name): row["accuracy"] for model, found in cells.items() for name, row in found.items()}
    expected = {("base", "clean"): 0.95, ("base", "gn08_std"): 0.8, ("other", "clean"): 1.0, ("other", "gn08_std"): 0.9}
    assert accuracy == expected


def test_noise_is_printed_apart_from_the_attacks(report):
    assert [line.attack for block in layout.blocks(report) for line in block.lines] == ["pgd"]
    text = io.StringIO()
    terminal.print_report(report, Console(file=text))
    lines = text.getvalue().splitlines()
    (head,) = (number for number, line in enumerate(lines) if "gn08_std" in line)
    (base,) = (line for line in lines[head:] if line.startswith("base"))
    (other,) = (line for line in lines[head:] if line.startswith("other"))
    assert "95.0 [" in base and "80.0 [" in base and "90.0 [" in other
    assert "not optimized against any model" in " ".join(text.getvalue().split())


def test_without_noise_there_is_no_table():
    found = evaluation(outcome([0], attack="clean"), outcome(range(10))).report
    assert noise_table.noise_table(found) == {} and noise_table.render(found) == []


def test_noise_with_a_source_model_is_rejected():
    with pytest.raises(ValueError, match="made_on must be None exactly for clean and for noisy images"):
        evaluation(outcome([0], attack="gn08_std", **{**NOISE, "made_on": "other"}))
