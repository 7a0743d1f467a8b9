"""The verdict and the head of a report: what is said of which numbers, on the page and in the terminal."""

from rich.console import Console

from advjax.attacks import auto_attack_stages, linf, pgd
from advjax.evaluation.attack_facts import attack_facts
from advjax.evaluation.given_attack import given_attack
from advjax.evaluation.report import CheckRow, Report, Summary, SummaryCell
from advjax.reporting import html_page, terminal, verdict
from support.pages import make_item, make_row


def cell(accuracy, half=0.02, n=100):
    return SummaryCell(n=n, accuracy=accuracy, low=max(0.0, accuracy - half), high=accuracy + half)


def entry(run="fixer", **cells):
    kinds = dict.fromkeys(("clean", "oblivious", "transfer", "white_box", "queries", "robust"))
    return Summary(run=run, defense="none", norm="linf", epsilon=8 / 255, **{**kinds, **cells})


def report_of(*summary, checks=()):
    rows = [make_row("fixer"), make_row("fixer", "pgd", 3, "fixer"), make_row("fixer", "square", 9, "fixer")]
    facts = [attack_facts(given_attack("pgd", pgd(linf(8 / 255), num_steps=50, step_size=0.01), None, (4, 4, 1), 3), 3)]
    data = {"name": "digits", "split": "test", "num_examples": 100, "precision": "float32"}
    found = Report(1, "Title", {}, {"device_kind": "cpu", "device_count": 2}, rows, [], list(summary), list(checks), [])
    found = found._replace(attacks=facts, data=data, date="2026-12-01")
    return found._replace(verdict=verdict.verdicts(found))


def test_the_verdict_names_accuracies_threat_model_attacks_and_data():
    (sentence,) = report_of(entry(clean=cell(0.9), robust=cell(0.03))).verdict
    assert sentence == "fixer: 90.0 % clean, 3.0 % robust (linf 8/255; worst of pgd, square on 100 images of digits)"


def test_transfer_that_does_not_last_is_named_but_not_where_it_may_be_chance():
    found = report_of(
        entry(clean=cell(0.9), robust=cell(0.03), transfer=cell(0.7)),
        entry(clean=cell(0.9), robust=cell(0.03), transfer=cell(0.06)),
    )
    ends = ["of the 70.0 % under transfer attacks, " in sentence for sentence in found.verdict]
    assert ends == [True, False]


def test_a_model_that_nobody_attacked_is_not_called_robust():
    (sentence,) = report_of(entry(clean=cell(0.9), transfer=cell(0.7))).verdict
    assert "no evidence of robustness" in sentence and "% robust" not in sentence


def test_failed_checks_are_part_of_the_verdict():
    check = CheckRow(run="fixer", defense="none", name="gradients", passed=False, finding="", numbers={})
    other = CheckRow(**{**check, "run": "base", "name": "more steps"})
    (sentence,) = report_of(entry(clean=cell(0.9), robust=cell(0.8)), checks=[check, other]).verdict
    assert sentence.endswith("this may be too high: the report card fails on gradients")


def test_attacks_are_described_by_steps_and_rounds():
    stages = given_attack("aa", auto_attack_stages(linf(8 / 255)), linf(8 / 255), (4, 4, 1), 10)
    text = verdict.attack_text(attack_facts(stages, 10))
    assert text == "aa (apgd-ce 100 steps, apgd-t 100 steps × 9, fab-t 100 steps × 9, square 5000 queries)"
    assert verdict.attack_text(report_of().attacks[0]) == "pgd (50 steps)"


def test_page_and_terminal_begin_with_the_verdict():
    found = report_of(entry(clean=cell(0.9), robust=cell(0.03)))
    page = html_page.render_page(found, training={}, gallery=[])
    console = Console(width=120)
    with console.capture() as captured:
        terminal.print_report(found, console)
    for text in (page, captured.get()):
        assert text.index("3.0 % robust") < text.index("pgd (50 steps)") < text.index("2026-12-01")
        assert text.index("2 × cpu") < text.index("Summary")


def test_images_of_one_kind_share_a_caption():
    items = [make_item(), make_item(given="given its predicted labels"), make_item()]
    page = html_page.render_page(report_of(), training={}, gallery=items)
    assert page.count("<h3>pgd crafted on base</h3>") == 1
    assert page.count("<h3>pgd crafted on base, given its predicted labels</h3>") == 1
