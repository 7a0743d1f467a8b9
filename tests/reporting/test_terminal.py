"""What the terminal shows of a report, and how the layout behind it arranges the rows."""

import io

import pytest
from rich.console import Console

from advjax.evaluation.report import SCHEMA_VERSION, Report, Row
from advjax.evaluation.statistics import wilson_interval
from advjax.reporting import terminal
from advjax.reporting.formatting import threat_name
from advjax.reporting.layout import blocks
from support import pages


def make_row(run, attack="clean", correct=90, made_on=None, n=100, **changes) -> Row:
    low, high = wilson_interval(correct, n)
    accuracy = correct / n if n else None
    return pages.make_row(run, attack, accuracy, made_on, n=n, low=low, high=high, **{"seed": 0, **changes})


def make_report(*rows) -> Report:
    return Report(SCHEMA_VERSION, "Title", {}, {}, list(rows), ["A note."], [], [], [])


def full_report() -> Report:
    return make_report(
        make_row("base", correct=98),
        make_row("base", "pgd", 3, "base"),
        make_row("fixer", correct=96),
        make_row("fixer", correct=79, n=80, subset="base_correct"),
        make_row("fixer", "pgd", 91, "base"),
        make_row("fixer", "pgd", 76, "base", n=80, subset="base_correct"),
        make_row("fixer", "pgd", 5, "fixer"),
        make_row("fixer", "pgd", 1, "fixer", n=80, subset="base_correct"),
    )


def printed(report: Report, **options) -> str:
    file = io.StringIO()
    terminal.print_report(report, Console(file=file, **options))
    return file.getvalue()


def cells_of(text: str, attack: str) -> list[str]:
    """Cells of the printed line of an attack; columns are at least two blanks apart."""
    line = next(line for line in text.splitlines() if line.startswith(attack))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_transfer_and_robust_accuracy_are_kept_apart():
    base, fixer = blocks(full_report())
    assert (base.run, base.sources) == ("base", ())
    assert base.lines[0].robust["accuracy"] == 0.03
    (source,) = fixer.sources
    assert (fixer.run, source.made_on, source.kind) == ("fixer", "base", "transfer")
    assert source.sizes == {"all": "100", "base_correct": "80"}
    (line,) = fixer.lines
    assert (line.attack, line.threat) == ("pgd", "linf 8/255")
    assert {subset: row["accuracy"] for subset, row in line.transfer[0].items()} == {"all": 0.91, "base_correct": 0.95}
    assert line.robust["accuracy"] == 0.05
    assert {subset: row["n"] for subset, row in fixer.clean.items()} == {"all": 100, "base_correct": 80}


def test_a_row_that_only_claims_to_be_adaptive_is_transfer():
    (block,) = blocks(make_report(make_row("fixer", "pgd", 91, "base", adaptive=True)))
    assert block.lines[0].robust is None
    assert block.lines[0].transfer[0]["all"]["accuracy"] == 0.91


def test_every_defense_has_its_block_and_every_source_its_column():
    report = make_report(
        make_row("fixer", "pgd", 90, "base"),
        make_row("fixer", "pgd", 80, "other"),
        make_row("fixer", "pgd", 5, "fixer"),
        make_row("fixer", "pgd", 70, "base", defense="resize"),
        make_row("fixer", "pgd", 60, "fixer", defense="resize", adaptive=False),
    )
    plain, defended = blocks(report)
    assert (plain.name, defended.name) == ("fixer", "fixer with resize")
    assert [(source.made_on, source.kind) for source in plain.sources] == [("base", "transfer"), ("other", "transfer")]
    assert [source.kind for source in defended.sources] == ["transfer", "oblivious"]
    accuracies = [[cell["all"]["accuracy"] for cell in block.lines[0].transfer] for block in (plain, defended)]
    assert accuracies == [[0.9, 0.8], [0.7, 0.6]]
    assert (plain.lines[0].robust["accuracy"], defended.lines[0].robust) == (0.05, None)


def test_an_attack_on_a_random_model_is_beside_the_one_made_elsewhere():
    report = make_report(
        make_row("fixer", "pgd", 70, "base", defense="resize"),
        make_row("fixer", "pgd", 9, "fixer", defense="resize", eot_samples=20),
        make_row("fixer", "pgd", 8, "fixer", defense="resize", eot_samples=40),
        make_row("fixer", "worst case", 7, "fixer", defense="resize", eot_samples=40),
    )
    (block,) = blocks(report)
    assert block.adaptive == "adaptive, 20 draws"
    assert [(line.attack, line.robust["accuracy"]) for line in block.lines] == [
        ("worst case", 0.07),
        ("pgd", 0.09),
        ("pgd, 40 draws", 0.08),
    ]
    assert [len(line.transfer[0]) for line in block.lines] == [0, 1, 0]


def test_outcomes_that_differ_in_anything_have_their_own_line():
    variants = [
        {},
        {"protocol": "faithful"},
        {"eot_samples": 20},
        {"seed": 1},
        {"epsilon": 0.5, "norm": "l2"},
        {"epsilon": None, "norm": "l2"},
    ]
    (block,) = blocks(make_report(*(make_row("base", "pgd", 3, "base", **variant) for variant in variants)))
    assert [(line.attack, line.threat) for line in block.lines] == [
        ("pgd, seed 0", "linf 8/255"),
        ("pgd, faithful, seed 0", "linf 8/255"),
        ("pgd, 20 draws, seed 0", "linf 8/255"),
        ("pgd, seed 1", "linf 8/255"),
        ("pgd, seed 0", "l2 0.5"),
        ("pgd, seed 0", "l2 minimum"),
    ]


def test_an_attack_on_predicted_labels_is_not_robust_accuracy():
    report = make_report(
        make_row("base", "pgd", 4, "base", protocol="faithful", labels="predicted"),
        make_row("base", "pgd", 1, "base"),
        make_row("fixer", "pgd", 90, "base", protocol="faithful", labels="predicted"),
        make_row("fixer", "pgd", 2, "fixer"),
    )
    base, fixer = blocks(report)
    assert [(line.transfer[0]["all"]["accuracy"], line.robust["accuracy"]) for line in (*base.lines, *fixer.lines)] == [
        (0.04, 0.01),
        (0.9, 0.02),
    ]
    assert base.sources[0].heading == "Crafted on base (faithful, predicted labels)"
    assert fixer.sources[0].heading == "Transfer, crafted on base (faithful, predicted labels)"


def test_what_a_minimum_norm_attack_leaves_is_not_called_robust():
    found = {"norm": "l2", "epsilon": None, "median_distance": 0.58312}
    report = make_report(make_row("base", "pgd", 1, "base"), make_row("base", "cw", 0, "base", **found))
    (block,) = blocks(report)
    assert [line.robust and line.robust["accuracy"] for line in block.lines] == [0.01, None]
    assert not block.is_unmeasured
    text = printed(report)
    assert cells_of(text, "cw") == ["cw", "l2 minimum", "0.583"]
    assert cells_of(text, "pgd") == ["pgd", "linf 8/255", "1.0 [ 0.2,", "5.4]"]
    assert "Median distance: size of the perturbation" in text
    assert "edian" not in printed(full_report())


def test_attacks_on_fewer_images_say_so():
    report = make_report(
        make_row("fixer", "pgd", 90, "base"),
        make_row("fixer", "cw", 9, "base", n=20),
        make_row("fixer", "cw", 1, "fixer", n=10),
    )
    (block,) = blocks(report)
    assert [line.attack for line in block.lines] == ["pgd, 100 images", "cw, 20 and 10 images"]
    assert block.sources[0].sizes == {"all": "20–100"}


@pytest.mark.parametrize(
    "norm, epsilon, name",
    [
        ("linf", 8 / 255, "linf 8/255"),
        ("linf", 0.0313725508749485, "linf 8/255"),
        ("linf", 0.3, "linf 0.3"),
        ("linf", 0.2, "linf 0.2"),
        ("l2", 1.0, "l2 1"),
        ("l2", 0.0123456, "l2 0.0123456"),
        ("l2", None, "l2 minimum"),
        (None, None, ""),
    ],
)
def test_threat_names(norm, epsilon, name):
    assert threat_name(norm, epsilon) == name


def test_a_pipe_gets_the_whole_table_in_100_plain_columns():
    text = printed(full_report())
    assert "\x1b" not in text and "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert cells_of(text[text.index("fixer  test") :], "pgd") == [
        "pgd",
        "linf 8/255",
        "91.0 [83.8, 95.2] ±1.2",
        "95.0 [87.8, 98.0] ±1.2",
        "5.0 [ 2.2, 11.2]",
    ]
    assert "clean accuracy 96.0% [90.2, 98.4] ±1.2, 100 images" in text
    legend = " ".join(text.split())
    assert "crafted on the scored model itself with its defense in the loop" in legend
    assert "crafted on a different model, without access to the scored one; this is not robust accuracy" in legend
    assert "without its defense; this is not robust accuracy either" in legend
    assert "not across training seeds" in legend
    assert "Note: A note." in text


def test_the_widest_numbers_fit():
    rows = [make_row("fixer", "autopgd_16", 10_000, "base", n=10_000, subset=s) for s in ("all", "base_correct")]
    report = make_report(*rows, make_row("fixer", "autopgd_16", 10_000, "fixer", n=10_000))
    assert cells_of(printed(report), "autopgd_16") == [
        "autopgd_16",
        "linf 8/255",
        "100.0 [100.0,100.0] ±1.2",
        "100.0 [100.0,100.0] ±1.2",
        "100.0 [100.0,100.0]",
    ]


def test_a_narrow_terminal_wraps_and_loses_nothing():
    text = printed(full_report(), width=60, force_terminal=True, color_system=None)
    assert "…" not in text
    assert all(number in text for number in ("91.0", "83.8", "95.2", "95.0", "11.2"))


def test_printing_leaves_the_console_as_it_was():
    console = Console(file=io.StringIO(), width=70)
    terminal.print_report(full_report(), console)
    assert console.width == 70


def test_a_run_without_adaptive_attack_is_not_called_robust():
    text = printed(make_report(make_row("fixer"), make_row("fixer", "pgd", 91, "base")))
    assert cells_of(text, "pgd") == ["pgd", "linf 8/255", "91.0 [83.8, 95.2] ±1.2", "not measured"]
    assert "No attack was crafted on fixer itself: these results are no evidence of robustness." in text
    assert "no evidence" not in printed(full_report())


def test_names_with_markup_are_printed_as_they_are():
    text = printed(make_report(make_row("[red]run[/red]", "[bold]pgd", 5, "[red]run[/red]")))
    assert "[red]run[/red]" in text
    assert "[bold]pgd" in text


def test_empty_subset_and_clean_only_reports_are_printed():
    report = make_report(make_row("base"), make_row("fixer", "pgd", 0, "base", n=0))
    text = printed(report)
    assert "base  test split" in text
    assert cells_of(text, "pgd")[2].startswith("– [ 0.0,100.0]")
