"""From reports to the cells, orderings and pages of an entry, by hand; and one entry from training to its page."""

import csv
import dataclasses
import html
import json
import re

import PIL.Image
import pytest

from advjax.evaluation import report
from advjax.evaluation.statistics import interval_over_seeds, wilson_interval
from advjax.jobs import workdir as workdirs
from advjax.papers import __main__ as command
from advjax.papers import commands, page
from advjax.papers.cells import cells, epochs_of
from advjax.papers.entries import ENTRIES
from advjax.papers.join import Accuracy
from advjax.papers.means import over_seeds
from advjax.papers.orderings import Ordering, orderings
from advjax.papers.recipe import Entry, Part, Scale
from advjax.papers.running import jobs_of, run_job
from advjax.runtime.preemption import PreemptedError
from advjax.types import UserError
from support.pages import Checker

N = 1024


def row(run, attack, correct, n=N, **changes):
    """A row of an attack on the model itself, or of clean images."""
    is_clean = attack == "clean"
    low, high = wilson_interval(correct, n)
    itself = {"made_on": None if is_clean else run, "adaptive": not is_clean}
    facts = {"knowledge": "none" if is_clean else "everything", "labels": "true", "protocol": "sound"}
    common = {"run": run, "attack": attack, "defense": "none", "subset": "all", "eot_samples": 1, "seed": 0}
    return {**common, **itself, **facts, "accuracy": correct / n, "low": low, "high": high, "n": n, **changes}


def faithful(run, attack, correct, **changes):
    """A row of the whole attack of a paper on the model itself."""
    return row(run, attack, correct, protocol="faithful", **changes)


def write_report(job, rows, folder="", notes=()):
    path = job.folder / folder / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = report.Report(report.SCHEMA_VERSION, "", job.config, {}, rows, list(notes), [], [], [])
    path.write_text(json.dumps(found._asdict()))


@pytest.fixture
def sweep(tmp_path):
    """The jobs of Figure 3 of 004 at a reduced size, measured for two weights."""
    jobs = jobs_of(ENTRIES["004_figure3"], "small", tmp_path, seeds=1)
    by_name = {job.part.name: job for job in jobs}
    write_report(
        by_name["fixed_mix_0.1"],
        [row("mixed", "clean", 300), faithful("mixed", "fgsm", 100), faithful("mixed", "pgd_40", 90)],
    )
    write_report(
        by_name["fixed_mix_1"],
        [row("mixed", "clean", 560), faithful("mixed", "fgsm", 104), faithful("mixed", "pgd_40", 0)],
    )
    write_report(by_name["fixed_mix_1"], [row("mixed", "auto_attack", 3, n=128)], "standard")
    return jobs


def test_cells_by_hand(sweep):
    found = cells(sweep, ENTRIES["004_figure3"].tables)
    assert len(found) == 18 and sum(cell.ours is not None for cell in found) == 6
    by_name = {(cell.published.training, cell.attack): cell for cell in found}
    clean = by_name["fixed_mix:lam1.0", "clean"]
    assert (clean.theirs.value, clean.kind, clean.sound) == (55.0, "clean", None)
    assert clean.ours.value == pytest.approx(100 * 560 / N) and clean.difference == pytest.approx(100 * 560 / N - 55)
    # A reduced run stands beside the number, and says that it is one.
    assert "run.mixed.train_fraction is 0.5" in clean.reduced
    attacked = by_name["fixed_mix:lam1.0", "fgsm"]
    assert attacked.sound == attacked.ours and attacked.auto_attack.value == pytest.approx(300 / 128)
    assert by_name["fixed_mix:lam0.1", "fgsm"].auto_attack is None


def test_cells_of_a_random_model_take_the_strongest_attack_and_name_its_draws(tmp_path):
    """Through one draw as published, through two, and on the same network without its noise."""
    entry = ENTRIES["004_table2"]
    jobs = jobs_of(entry, "small", tmp_path, seeds=1)
    (job,) = [job for job in jobs if job.part.name == "rse_one_draw"]
    random = {"defense": "ensemble"}
    rows = [
        row("noisy", "clean", 544, **random),
        faithful("noisy", "fgsm", 268, **random),
        faithful("noisy", "pgd_40", 217, **random),
        row("noisy", "pgd_40", 171, eot_samples=2, **random),
        row("noisy", "pgd_40", 144, adaptive=False, knowledge="oblivious", **random),
    ]
    write_report(job, rows)
    standard = row("noisy", "auto_attack", 46, n=256, eot_samples=2, **random)
    write_report(job, [standard], "standard")
    clean, fgsm, pgd = [cell for cell in cells(jobs, entry.tables) if cell.ours]
    assert (clean.ours.draws, clean.ours.attacked, clean.sound) == (None, "", None)
    assert (fgsm.ours.draws, fgsm.sound) == (1, fgsm.ours)
    assert (pgd.ours.value, pgd.ours.draws) == (pytest.approx(100 * 217 / N), 1)
    assert (pgd.sound.value, pgd.sound.attacked, pgd.sound.draws) == (pytest.approx(100 * 144 / N), "noisy", None)
    assert (pgd.auto_attack.draws, pgd.auto_attack.attacked) == (2, "")
    page.write_page(page.make_page(entry, "small", jobs), jobs, tmp_path / "pages")
    text = (tmp_path / "pages" / "004_table2.small.md").read_text()
    (line,) = [line for line in text.splitlines() if "rse (" in line and "(pgd_40 on" in line]
    assert "21.2 [18.8, 23.8], 1 draw |" in line and "14.1 [12.1, 16.3], made on noisy |" in line
    assert line.endswith("18.0 [13.8, 23.1], 256 images, 2 draws |")
    with (tmp_path / "pages" / "004_table2.small.csv").open(newline="") as file:
        (found,) = [line for line in csv.DictReader(file) if line["attack"] == "pgd_40" and line["ours"] == "21.19"]
    assert [found[key] for key in ("ours_draws", "sound_attacked", "sound_draws", "auto_attack_draws")] == [
        "1",
        "noisy",
        "",
        "2",
    ]
    # Attacks on other networks alone say nothing about the strongest.
    write_report(job, [entry for entry in rows if not entry["adaptive"] or entry["attack"] != "pgd_40"])
    assert all(cell.sound is None for cell in cells(jobs, entry.tables) if cell.attack == "pgd_40")


def test_cells_of_attacks_without_an_epsilon_show_their_mean_distance(tmp_path):
    """The grid of C&W attacks with two seeds, one point of which has been measured with both."""
    entry = ENTRIES["004_section3"]
    jobs = jobs_of(entry, "full", tmp_path, seeds=2)
    grids = [job for job in jobs if job.part.name == "cw_grid"]
    for job, distance in zip(grids, (0.25, 0.75), strict=True):
        unbounded = {"norm": "l2", "epsilon": None}
        measured = [faithful("plain", "cw_1_200", 185, mean_distance=distance, **unbounded)]
        # As reports were written before they had distances.
        write_report(job, [*measured, faithful("plain", "cw_10_200", 17, **unbounded)])
    found = {cell.attack: cell for cell in cells(jobs, entry.tables) if cell.ours}
    assert (found["cw_1_200"].ours.distance, found["cw_1_200"].ours.norm) == (pytest.approx(0.5), "l2")
    assert (found["cw_10_200"].ours.distance, found["cw_10_200"].ours.norm) == (None, "")
    page.write_page(page.make_page(entry, "full", jobs), jobs, tmp_path / "pages")
    stem = tmp_path / "pages" / "004_section3.full"
    lines = [line for line in stem.with_suffix(".full.md").read_text().splitlines() if "mean l2" in line]
    assert len(lines) == 1 and "(cw_1_200 on plain)" in lines[0] and lines[0].count(", mean l2 0.5") == 2
    assert stem.with_suffix(".full.html").read_text().count("mean l2 0.5<") == 2
    with stem.with_suffix(".full.csv").open(newline="") as file:
        given = {line["attack"]: line for line in csv.DictReader(file)}
    assert (given["cw_1_200"]["ours_distance"], given["cw_1_200"]["sound_norm"]) == ("0.5", "l2")
    assert (given["cw_10_200"]["ours_distance"], given["fgsm"]["ours_norm"]) == ("", "")
    stored = json.loads(stem.with_suffix(".full.json").read_text())
    (cell,) = [cell for cell in stored["cells"] if cell["attack"] == "cw_1_200"]
    assert (cell["ours"]["distance"], cell["ours"]["norm"]) == (0.5, "l2")


def test_what_stands_beside_one_published_number_has_no_order(sweep):
    (one, *_) = [cell for cell in cells(sweep, ("004_figure3",)) if cell.ours and cell.theirs]
    assert orderings([one, one._replace(ours=one.ours._replace(value=1.0, interval=(0.5, 2.0)))]) == []


def test_orderings_by_hand(sweep):
    found = {entry.attack: entry for entry in orderings(cells(sweep, ("004_figure3",)))}
    # Published: 23.6 and 55.0 clean; 12.2 and 9.8 under FGSM; 9.8 and 5.6 under PGD; two of six weights are measured.
    assert found["none"].verdict == "holds so far" and found["none"][3:] == (1, 0, 0, 11, 3)
    # The published numbers of these two do not tell them apart, [10.3, 14.4] and [8.1, 11.7], nor those of nine others.
    fgsm = found["FGSM:eps0.03"]
    assert fgsm.verdict == "has not been measured" and fgsm[3:] == (0, 0, 0, 5, 10)
    pgd = found["PGD40:eps0.03,alpha0.01"]
    assert pgd.verdict == "holds so far" and pgd[3:] == (1, 0, 0, 7, 7)


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((3, 0, 0, 0, 0), "holds"),
        ((3, 0, 0, 2, 9), "holds so far"),
        ((3, 0, 1, 0, 0), "holds where it can be told"),
        ((2, 1, 5, 0, 0), "holds in part"),
        ((1, 1, 0, 0, 0), "does not hold"),
        ((0, 0, 1, 4, 9), "cannot be told: our intervals overlap"),
        ((0, 0, 0, 1, 1), "has not been measured"),
        ((0, 0, 0, 0, 3), "is not shown by the paper: its intervals overlap"),
    ],
)
def test_verdicts_on_orderings(counts, verdict):
    assert Ordering("table", "images", "attack", *counts).verdict == verdict


def test_pairs_that_the_paper_does_not_tell_apart_have_no_order(sweep):
    """Whatever ours are."""
    clean = [cell for cell in cells(sweep, ("004_figure3",)) if cell.ours and cell.attack == "clean"]
    one, other = (cell._replace(theirs=accuracy(value)) for cell, value in zip(clean, (50.0, 51.0), strict=True))
    (found,) = orderings([one, other])
    assert found[3:] == (0, 0, 0, 0, 1)
    # Without a number of images, the paper's difference counts; without ours, it cannot be compared.
    exact = [cell._replace(theirs=cell.theirs._replace(interval=None)) for cell in (one, other)]
    (found,) = orderings(exact)
    assert sum(found[3:5]) == 1
    (found,) = orderings([exact[0], exact[1]._replace(ours=exact[1].ours._replace(interval=None))])
    assert found[3:] == (0, 0, 1, 0, 0)


def accuracy(value, n=N):
    low, high = wilson_interval(round(value / 100 * n), n)
    return Accuracy(value, (100 * low, 100 * high), n)


def test_single_epochs_of_adversarial_training_are_not_ordered(all_cells_of):
    found = orderings(all_cells_of("001_table4"))
    assert found and {entry.table for entry in found} == {"001_table4"}


def test_seeds_of_other_numbers_of_images_have_an_interval():
    """Of the images that the base has right, every seed has its own number."""
    mean = over_seeds([accuracy(50.0, 400), accuracy(52.0, 300)])
    assert mean.n == 300 and mean.interval == pytest.approx(
        [100 * end for end in interval_over_seeds([0.5, 0.52], 300)]
    )
    assert over_seeds([accuracy(50.0), accuracy(52.0)._replace(interval=None)]).interval is None


@pytest.mark.parametrize(
    ("fixers", "trained", "points", "verdict"),
    [
        (400, 300, "+20.0 [+14.4, +25.4]", "holds"),
        (350, 300, "+10.0 [+4.1, +15.8]", "another size, in the same direction"),
        (300, 400, "-20.0 [-25.4, -14.4]", "reversed"),
        (300, 290, "+2.0 [-4.1, +8.1]", "cannot be told: the interval contains 0"),
        (300, None, "", "not measured"),
    ],
)
def test_leads_that_the_text_names_by_hand(fixers, trained, points, verdict, tmp_path):
    """Intervals as of statsmodels' ``confint_proportions_2indep``, method "newcomb"."""
    jobs = jobs_of(ENTRIES["003_figure5_one_percent"], "mini", tmp_path, seeds=1)
    by_name = {job.part.name: job for job in jobs}
    for part, run, correct in (("fx_a", "fixer", fixers), ("transfer", "transfer", trained)):
        if correct is not None:
            write_report(by_name[f"{part}_0.01_auto_pgd"], [row(run, "clean", correct, n=500)])
    made = page.make_page(ENTRIES["003_figure5_one_percent"], "mini", jobs)
    (lead,) = made.leads
    assert (lead.published.leader, lead.published.points) == ("ResNet9: fx-a", 18.0)
    assert lead.verdict == verdict
    line = f"| cifar10/test, 1% of train | none | ResNet9: fx-a | ResNet9: adv train | +18 | {points} | {verdict} |"
    assert line in page.render(made, None, "md").splitlines()
    assert verdict in page.render(made, None, "html")
    (stored,) = page.as_json(made, jobs)["leads"]
    assert (stored["published"]["points"], stored["verdict"]) == (18.0, verdict)


def test_the_leads_of_every_entry_are_between_networks_that_it_has(tmp_path):
    for name, entry in ENTRIES.items():
        made = page.make_page(entry, "full", jobs_of(entry, "full", tmp_path, seeds=1))
        assert [found.verdict for found in made.leads] == ["not measured"] * len(entry.leads), name


def test_a_page_says_what_the_reports_say_about_their_images(sweep):
    few, chosen = "evaluated on 128 of 1,024 images, the first", "training was validated on the test images"
    for job, folder, note in ((sweep[0], "", chosen), (sweep[1], "", chosen), (sweep[1], "standard", few)):
        write_report(job, [], folder, [note])
    made = page.make_page(ENTRIES["004_figure3"], "small", sweep)
    names = [job.part.name for job in sweep[:2]]
    assert made.notes == [f"{', '.join(names)}: {chosen}", f"{names[1]} (AutoAttack): {few}"]
    lines = page.render(made, None, "md").splitlines()
    assert {f"* {note}" for note in made.notes} < set(lines)
    assert all(f"<li>{note}</li>" in page.render(made, None, "html") for note in made.notes)
    assert page.as_json(made, sweep)["notes"] == made.notes


def test_a_page_shows_what_there_is(sweep, tmp_path):
    entry = ENTRIES["004_figure3"]
    made = page.make_page(entry, "small", sweep)
    assert not made.is_complete
    path = page.write_page(made, sweep, tmp_path / "pages")
    text = path.read_text()
    assert "Reduced: not the paper's experiment." in text and "6 of 18 cells measured, not all parts" in text
    assert "10 epochs [10 epochs], width 1 [1], 50% of the training images [100%]; 512 test images [all]" in text
    assert "AutoAttack (linf 0.03) on 128; 1 seed" in text
    assert "<svg" in text and "holds" in text and "<script" not in text
    with (tmp_path / "pages" / "004_figure3.small.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == page.CSV_COLUMNS and len(lines) == 18
    (line,) = [line for line in lines if (line["published"], line["attack"]) == ("55.00", "clean")]
    assert (line["ours"], line["n"], line["reduced"][:21]) == ("54.69", "1024", "run.mixed.train_fract")
    stored = json.loads((tmp_path / "pages" / "004_figure3.small.json").read_text())
    assert stored["reduced"] and not stored["complete"] and len(stored["cells"]) == 18
    assert (tmp_path / "pages" / "004_figure3.small.svg").read_text().startswith("<svg")


def test_every_number_of_a_page_has_a_name_on_a_phone(sweep, tmp_path):
    """Where the heads of tables are not shown: those of orderings, leads and cells."""
    jobs = jobs_of(ENTRIES["003_figure5_one_percent"], "mini", tmp_path, seeds=1)
    pages = (
        page.make_page(ENTRIES["004_figure3"], "small", sweep),
        page.make_page(ENTRIES["003_figure5_one_percent"], "mini", jobs),
    )
    for made, tables in zip(pages, (2, 2), strict=True):
        text = page.render(made, None, "html")
        assert text.count("<table") == tables
        Checker().feed(text)
        for table in text.split("<table")[1:]:
            heads = [re.sub("<[^>]*>", "", head) for head in re.findall(r"<th scope=\"col\".*?</th>", table)]
            for line in table.split("<tr>")[2:]:
                assert re.findall(r"<td[^>]*?data-label=\"([^\"]*)\"", line) == heads[1:]
                assert line.count("<td") == len(heads) - 1


def test_the_page_in_markdown_says_the_same(sweep, tmp_path):
    entry = ENTRIES["004_figure3"]
    page.write_page(page.make_page(entry, "small", sweep), sweep, tmp_path)
    text = (tmp_path / "004_figure3.small.md").read_text()
    assert text.startswith(f"# {entry.title}\n\n") and "**Reduced: not the paper's experiment.**" in text
    assert "](004_figure3.small.svg)" in text and "\n\n\n" not in text
    (line,) = [line for line in text.splitlines() if "fixed_mix:lam1.0" in line and "(clean on mixed)" in line]
    cells_of_line = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells_of_line) == 8 and cells_of_line[2:5] == ["55.0 [51.9, 58.0]", "54.7 [51.6, 57.7]", "-0.3"]
    assert cells_of_line[7] == "2.3 [0.8, 6.7], 128 images"
    rows = [line for line in text.split("## All cells")[1].splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 18


def test_the_papers_size_is_not_called_reduced(tmp_path):
    entry = ENTRIES["004_figure3"]
    jobs = jobs_of(entry, "full", tmp_path, seeds=1)
    write_report(jobs[1], [row("mixed", "clean", 300)])
    assert "At the paper's size." in page.render(page.make_page(entry, "full", jobs), None, "html")


def test_seeds_are_averaged(tmp_path):
    entry = ENTRIES["004_figure3"]
    jobs = [job for job in jobs_of(entry, "full", tmp_path, seeds=3) if job.part.name == "fixed_mix_0.1"]
    for job, correct in zip(jobs, (200, 240, 280), strict=True):
        write_report(job, [row("mixed", "clean", correct)])
    (cell,) = [cell for cell in cells(jobs, entry.tables) if cell.ours]
    assert [round(value, 2) for value in cell.per_seed] == [19.53, 23.44, 27.34]
    assert cell.ours.value == pytest.approx(100 * 240 / N)
    expected = interval_over_seeds([200 / N, 240 / N, 280 / N], N)
    assert cell.ours.interval == pytest.approx((100 * expected[0], 100 * expected[1]))


def test_equal_seeds_leave_the_interval_over_images(tmp_path):
    entry = ENTRIES["004_figure3"]
    jobs = [job for job in jobs_of(entry, "full", tmp_path, seeds=2) if job.part.name == "fixed_mix_0.1"]
    for job in jobs:
        write_report(job, [row("mixed", "clean", 200), faithful("mixed", "fgsm", 50)])
        write_report(job, [row("mixed", "auto_attack", 3, n=128)], "standard")
    clean, fgsm = [cell for cell in cells(jobs, entry.tables) if cell.ours]
    for accuracy, correct, n in (
        (clean.ours, 200, N),
        (clean.auto_attack, 3, 128),
        (fgsm.ours, 50, N),
        (fgsm.sound, 50, N),
    ):
        assert accuracy.interval == pytest.approx([100 * end for end in wilson_interval(correct, n)])


def test_means_over_networks_and_budgets(tmp_path):
    entry = ENTRIES["002_table2"]
    (job, *_) = jobs_of(entry, "full", tmp_path, seeds=1)
    rows = []
    for number, run in enumerate(("resnet18", "resnet50", "resnet101")):
        rows.append(row(run, "clean", 900 + number))
        for budget in (1, 2, 3):
            rows.append(row(run, f"fgsm_{budget}", 0))
            rows.append(row(run, f"fgsm_{budget}", 100 * budget + number, protocol="faithful"))
    write_report(job, rows)
    clean, attacked = [cell for cell in cells([job], entry.tables) if cell.model == "mean"]
    assert clean.ours.value == pytest.approx(100 * 901 / N)
    assert attacked.theirs.value == 39.46 and attacked.ours.value == pytest.approx(100 * 201 / N)
    bounds = [wilson_interval(100 * budget + number, N) for budget in (1, 2, 3) for number in range(3)]
    assert attacked.ours.interval == pytest.approx([100 * sum(ends) / 9 for ends in zip(*bounds, strict=True)])
    assert attacked.sound.value == 0
    write_report(job, rows[:-2])
    assert [cell.ours for cell in cells([job], entry.tables)][1] is None


def test_epochs_come_from_one_run(tmp_path):
    entry = ENTRIES["001_table1"]
    (job,) = jobs_of(entry, "small", tmp_path, seeds=1)
    (job.folder / "vanilla").mkdir(parents=True)
    (job.folder / "config.json").write_text(json.dumps(job.config))
    facts = {"num_examples": dict.fromkeys(job.config["runs"], 50_000), "num_validation": 10_000}
    (job.folder / "data.json").write_text(json.dumps(facts))
    records = [{"step": 500 * epoch, "kind": "validation", "accuracy": epoch / 1000} for epoch in range(1, 101)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (job.folder / "vanilla" / "metrics.jsonl").write_text(text)
    found = {
        cell.published.training: cell for cell in cells([job], entry.tables) if cell.published.table == "001_epochs"
    }
    # The run is 100 epochs long: what the logs say of epoch 200 has no counterpart.
    assert "vanilla:200ep" not in found and "vanilla:100ep" in found
    twenty = found["vanilla:20ep"]
    assert (twenty.theirs.value, twenty.ours.value, twenty.ours.n) == (98.96, pytest.approx(2.0), 10_000)
    assert twenty.kind == "clean"
    # The same network as the report's after as many epochs.
    assert twenty.reduced == () and found["mixup:20ep"].ours is None
    path = page.write_page(page.make_page(entry, "small", [job]), [job], tmp_path / "pages")
    text = path.read_text()
    assert ">vanilla</text>" in text and ">mixup</text>" not in text and "training loss, cross-entropy" in text


@dataclasses.dataclass
class Calls:
    """What would have been trained and evaluated."""

    trained: list
    evaluated: list


@pytest.fixture
def calls(monkeypatch):
    """Training and evaluation that only leave the files behind which others look for."""
    made = Calls([], [])

    def train(config, folder, devices, notify, stop_requested, on_trained):
        made.trained.append({name: run["checkpoint"] for name, run in config["run"].items()})
        for name, run in config["run"].items():
            if not run["checkpoint"]:
                workdirs.pathlib.Path(folder, name).mkdir(parents=True, exist_ok=True)
                on_trained(name)
            if stop_requested():
                raise PreemptedError("stopped")

    def evaluate(config, folder, devices, notify, stop_requested, into=None):
        made.evaluated.append(tuple(config["evaluation"]["attacks"]["order"]))
        path = workdirs.pathlib.Path(into or folder, "report.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report.Report(report.SCHEMA_VERSION, "", config, {}, [], [], [], [], [])._asdict()))

    monkeypatch.setenv("ADVJAX_COMPILATION_CACHE", "")
    monkeypatch.setattr("advjax.papers.running.train", train)
    monkeypatch.setattr("advjax.papers.running.evaluate_experiment", evaluate)
    # There are no networks that could be attacked.
    monkeypatch.setattr("advjax.papers.figures.image_rows", lambda *arguments: None)
    return made


def refuse(monkeypatch, part):
    """Lets a part fail as one does whose data are not there."""
    run = commands.run_job

    def without_it(job, *arguments):
        if job.part.name == part:
            raise UserError("no data")
        run(job, *arguments)

    monkeypatch.setattr(commands, "run_job", without_it)


def test_a_base_is_trained_once(calls, tmp_path):
    jobs = {job.part.name: job for job in jobs_of(ENTRIES["003_table1"], "small", tmp_path, seeds=1)}
    first, second = jobs["fx_a_0.1_auto_pgd"], jobs["denoise_0.1_auto_pgd"]
    run_job(first, print)
    run_job(second, print)
    assert calls.trained[0] == {"base": "", "fixer": ""}
    assert calls.trained[1] == {"base": str(first.folder / "base"), "denoise": ""}
    assert calls.evaluated[1] == calls.evaluated[3] == ("auto_attack",) and "art_auto_pgd" in calls.evaluated[0]
    run_job(first, print)
    assert len(calls.trained) == 2
    other = Scale(width=0.5, num_auto_attack=0)
    entry = Entry("x", "", (), (first.part,), {"other": other}, {})
    run_job(jobs_of(entry, "other", tmp_path, 1)[0], print)
    assert calls.trained[2] == {"base": "", "fixer": ""}


def test_a_run_that_was_begun_is_not_taken_from_elsewhere(calls, tmp_path):
    jobs = {job.part.name: job for job in jobs_of(ENTRIES["003_table1"], "small", tmp_path, seeds=1)}
    second = jobs["denoise_0.1_auto_pgd"]
    (second.folder / "base").mkdir(parents=True)
    (second.folder / "base" / "run.json").write_text("{}")
    run_job(jobs["fx_a_0.1_auto_pgd"], print)
    run_job(second, print)
    assert calls.trained[1] == {"base": "", "denoise": ""}


def test_the_budget_stops_between_and_within_jobs(calls, tmp_path, capsys):
    arguments = ["run", "004_table1", f"--workdir={tmp_path}", "--budget=0s"]
    assert command.main(arguments) == 42
    assert calls.trained == [] and "stopped; repeat the command to go on" in capsys.readouterr().out
    job = jobs_of(ENTRIES["004_table1"], "small", tmp_path, seeds=1)[0]
    with pytest.raises(PreemptedError):
        run_job(job, print, lambda: True)
    assert not calls.evaluated and not job.is_done


def test_a_stop_within_an_entry_leaves_its_page_and_tells_a_scheduler(calls, tmp_path, monkeypatch, capsys):
    def stopped(job, *arguments):
        raise PreemptedError("stopped at step 3 of 9, state saved")

    monkeypatch.setattr(commands, "run_job", stopped)
    assert command.main(["run", "all", f"--workdir={tmp_path}"]) == 42
    assert "state saved; repeat the command to go on" in capsys.readouterr().out
    assert len(list((tmp_path / "pages").glob("*.html"))) == 1


@pytest.mark.slow
def test_all_entries_have_a_page_at_the_default_size(calls, tmp_path, capsys):
    assert command.main(["run", "all", f"--workdir={tmp_path}"]) == 0
    assert "not run" not in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "pages").glob("*.html")} == {f"{name}.small.html" for name in ENTRIES}


def test_of_several_entries_one_that_cannot_be_run_is_reported(calls, tmp_path, monkeypatch, capsys):
    refuse(monkeypatch, "two_updates")
    assert command.main(["run", "004_table1", "004_figures1_2", "004_table1", f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().out.count("004_table1: not run: no data") == 1
    assert (tmp_path / "pages" / "004_figures1_2.small.html").exists()


def test_a_moved_workdir_still_knows_its_runs(calls, tmp_path):
    jobs = {job.part.name: job for job in jobs_of(ENTRIES["003_table1"], "small", tmp_path / "old", seeds=1)}
    run_job(jobs["fx_a_0.1_auto_pgd"], print)
    (tmp_path / "old").rename(tmp_path / "new")
    jobs = {job.part.name: job for job in jobs_of(ENTRIES["003_table1"], "small", tmp_path / "new", seeds=1)}
    run_job(jobs["denoise_0.1_auto_pgd"], print)
    base = jobs["fx_a_0.1_auto_pgd"].folder / "base"
    assert calls.trained[1]["base"] == str(base)
    # What has been deleted is trained again.
    base.rmdir()
    run_job(jobs["transfer_0.1_auto_pgd"], print)
    assert calls.trained[2]["base"] == ""


def test_a_moved_workdir_still_has_the_epochs_of_runs_that_another_part_trained(calls, tmp_path):
    def mixups(workdir):
        first, second = (
            next(job for job in jobs_of(ENTRIES[name], "small", workdir, seeds=1) if job.part.name == part)
            for name, part in (("001_table4", "pretrained_mnist"), ("001_table8", "mixup_mnist"))
        )
        return first, second

    first, second = mixups(tmp_path / "old")
    run_job(first, print)
    run_job(second, print)
    (first.folder / "mixup" / "metrics.jsonl").write_text('{"step": 500, "kind": "validation", "accuracy": 0.5}\n')
    facts = {"num_examples": dict.fromkeys(second.config["runs"], 50_000), "num_validation": 10_000}
    (second.folder / "data.json").write_text(json.dumps(facts))
    assert calls.trained[1]["mixup"] == str(first.folder / "mixup")
    assert epochs_of(second, "mixup", "accuracy") == [(1.0, 0.5)]
    (tmp_path / "old").rename(tmp_path / "new")
    assert epochs_of(mixups(tmp_path / "new")[1], "mixup", "accuracy") == [(1.0, 0.5)]


def test_what_was_trained_before_a_stop_is_not_trained_again(calls, tmp_path):
    jobs = {job.part.name: job for job in jobs_of(ENTRIES["003_table1"], "small", tmp_path, seeds=1)}
    with pytest.raises(PreemptedError):
        run_job(jobs["fx_a_0.1_auto_pgd"], print, lambda: True)
    run_job(jobs["denoise_0.1_auto_pgd"], print)
    assert calls.trained[1] == {"base": str(jobs["fx_a_0.1_auto_pgd"].folder / "base"), "denoise": ""}


def test_a_part_that_cannot_be_run_does_not_keep_the_others_from_it(calls, tmp_path, monkeypatch, capsys):
    refuse(monkeypatch, "two_updates")
    assert command.main(["run", "004_table1", f"--workdir={tmp_path}", "--seeds=2"]) == 2
    said = capsys.readouterr()
    assert said.out.count("two_updates: not run: no data") == 1 and "no data" in said.err
    done = [job.part.name for job in jobs_of(ENTRIES["004_table1"], "small", tmp_path, seeds=2) if job.is_done]
    assert done == ["fixed_mix", "fixed_mix"]


def test_a_page_is_not_replaced_by_one_of_nothing(calls, tmp_path, monkeypatch):
    page_of = tmp_path / "pages" / "004_table1.small.html"
    page_of.parent.mkdir()
    page_of.write_text("of other images")

    def stopped(job, *arguments):
        raise PreemptedError("stopped")

    monkeypatch.setattr(commands, "run_job", stopped)
    assert command.main(["run", "004_table1", f"--workdir={tmp_path}"]) == 42
    assert page_of.read_text() == "of other images"


def test_a_page_says_where_published_numbers_come_from(tmp_path):
    def remarks(name):
        jobs = jobs_of(ENTRIES[name], "full", tmp_path, seeds=1)
        made = page.make_page(ENTRIES[name], "full", jobs)
        for kind in ("md", "html"):
            assert all(line in html.unescape(page.render(made, None, kind)) for line in made.remarks)
        return made.remarks

    assert remarks("004_figure3") == ["All published numbers: read off a figure"]
    assert "6 (ResNet9:base, full train, CW_linf:8/255): given in the text; about" in remarks("003_table1")
    assert "32 (Net62k, standard, CW_l2:unknown): constant, steps and rate not given" in remarks("004_section3")
    assert remarks("001_table1") == []


def test_a_page_names_the_machines_of_its_reports(tmp_path):
    jobs = jobs_of(ENTRIES["004_figure3"], "small", tmp_path, seeds=1)
    for job, kind in zip(jobs[:3], ("cpu", "H100", "cpu"), strict=True):
        path = job.folder / "report.json"
        path.parent.mkdir(parents=True)
        made = report.Report(report.SCHEMA_VERSION, "", job.config, {"device_kind": kind}, [], [], [], [], [])
        path.write_text(json.dumps(made._asdict()))
    assert page.as_json(page.make_page(ENTRIES["004_figure3"], "small", jobs), jobs)["environments"] == [
        {"device_kind": "cpu", "folders": [jobs[0].folder.name, jobs[2].folder.name]},
        {"device_kind": "H100", "folders": [jobs[1].folder.name]},
    ]


def test_fewer_networks_or_images_are_a_reduction(tmp_path):
    (job,) = jobs_of(ENTRIES["000_table2"], "custom", tmp_path, 1)
    assert "vgg" not in job.config["runs"] and page.is_reduced(job)
    entry = ENTRIES["003_table1"]
    (job,) = [job for job in jobs_of(entry, "full", tmp_path, 1) if job.part.name == "drn_0.1"]
    found = {cell.model: cell.reduced for cell in cells([job], entry.tables)}
    assert found["drn with copies"] == ("evaluation.num_examples is 1000",)


def test_the_more_images_of_a_network_that_several_parts_measure_count(tmp_path):
    entry = ENTRIES["003_table1"]
    jobs = [job for job in jobs_of(entry, "mini", tmp_path, 1) if job.part.name.startswith(("drn", "denoise"))]
    for job, n in zip(jobs, (500, 50), strict=True):
        write_report(job, [row("base", "clean", n // 2, n=n)])
    for order in (jobs, jobs[::-1]):
        assert {cell.ours.n for cell in cells(order, entry.tables) if cell.ours} == {500}


def test_another_folder_of_images_is_another_experiment(tmp_path):
    def folder(name, pixel):
        for split, label in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            path = tmp_path / name / split / label / "0.png"
            path.parent.mkdir(parents=True)
            PIL.Image.new("RGB", (8, 8 + pixel)).save(path)
        return {"folder": str(tmp_path / name)}

    entry = ENTRIES["003_figure7"]
    one, same, other = folder("one", 0), folder("same", 0), folder("other", 60)
    found = [
        {job.folder.name for job in jobs_of(entry, "small", "nowhere", 1, where)} for where in (one, same, other, {})
    ]
    assert found[0] == found[1] and not found[0] & found[2] and not found[0] & found[3]


def test_seeds_that_are_not_measured_yet_are_not_counted(tmp_path):
    entry = ENTRIES["004_figure3"]
    jobs = jobs_of(entry, "full", tmp_path, seeds=3)
    first = [job for job in jobs if job.part.name == "fixed_mix_0.1"]
    write_report(first[0], [row("mixed", "clean", 200)])
    words = {line.split(":")[0]: line for line in page.make_page(entry, "full", jobs).words}
    assert words["fixed_mix_0.1"].endswith("1 of 3 seeds")
    # Parts of the same size share a line.
    alike = "fixed_mix_0.2, fixed_mix_0.4, fixed_mix_0.8, fixed_mix_1"
    assert words[alike].endswith("0 of 3 seeds") and len(words) == 3
    for job in first[1:]:
        write_report(job, [row("mixed", "clean", 200)])
    words = {line.split(":")[0]: line for line in page.make_page(entry, "full", jobs).words}
    assert words["fixed_mix_0.1"].endswith("; 3 seeds")


def test_epochs_are_compared_with_the_same_epoch_of_other_networks(all_cells_of):
    entries = [entry for entry in orderings(all_cells_of("001_table1")) if entry.table == "001_epochs"]
    assert entries and all(entry.holds + entry.undecided <= 3 and not entry.reversed for entry in entries)
    assert {"mnist/test, after 1 epoch", "mnist/test, after 20 epochs"} <= {entry.dataset for entry in entries}


def test_rows_of_one_network_have_no_order(all_cells_of):
    assert not [entry for entry in orderings(all_cells_of("001_table1")) if entry.table == "001_table3"]


def test_the_networks_before_and_after_retraining_are_compared(all_cells_of):
    found = [entry for entry in orderings(all_cells_of("002_table4")) if entry.table != "002_table1"]
    assert [(entry.table, entry.dataset, entry.holds) for entry in found] == [
        ("002_table2 and 4", "mnist/test20", 1),
        ("002_table2 and 4", "cats_vs_dogs/test20", 1),
    ]


@pytest.fixture
def all_cells_of():
    """The cells of an entry as if ours were the published ones."""

    def of(name):
        found = cells(jobs_of(ENTRIES[name], "full", "nowhere", 1), ENTRIES[name].tables)
        return [cell._replace(ours=cell.theirs and with_interval(cell.theirs)) for cell in found]

    def with_interval(theirs):
        """What the paper may not say, ours would have."""
        return theirs._replace(interval=theirs.interval or (theirs.value, theirs.value))

    return of


def test_the_sound_column_keeps_to_the_radius_of_the_text(tmp_path):
    """The mixup report's own attack starts from noise and reaches twice as far as its text says, and is weaker."""
    entry = ENTRIES["001_table1"]
    (job,) = jobs_of(entry, "small", tmp_path, seeds=1)
    own = row("vanilla", "own_pgd", 870, protocol="faithful")
    write_report(job, [own, row("vanilla", "pgd_40", 717)])
    found = cells([job], entry.tables)
    (cell,) = [cell for cell in found if cell.attack == "own_pgd" and cell.ours]
    assert (cell.sound_attack, cell.sound.value) == ("pgd_40", pytest.approx(100 * 717 / N))
    assert {cell.sound_attack for cell in found if cell.attack == "clean"} == {""}
    page.write_page(page.make_page(entry, "small", [job]), [job], tmp_path)
    for kind in ("md", "html"):
        assert "pgd_40" in (tmp_path / f"001_table1.small.{kind}").read_text()
    with (tmp_path / "001_table1.small.csv").open(newline="") as file:
        assert {line["sound_attack"] for line in csv.DictReader(file)} == {"", "pgd_40"}


def test_auto_attack_stands_beside_attacks_of_its_budget_only(tmp_path):
    entry = ENTRIES["003_table1"]
    jobs = jobs_of(entry, "small", tmp_path, seeds=1)
    (job,) = [job for job in jobs if job.part.name == "honest"]
    measured = [row("adversarial", attack, 100, n=N) for attack in ("clean", "art_auto_pgd", "art_auto_pgd_16")]
    transfers = [{**entry, "made_on": "base", "adaptive": False, "protocol": "faithful"} for entry in measured[1:]]
    write_report(job, [*measured, *transfers])
    write_report(job, [row("adversarial", "auto_attack", 6, n=128)], "standard")
    found = {cell.attack: cell.auto_attack for cell in cells([job], entry.tables) if cell.ours}
    assert found["clean"] == found["art_auto_pgd"] is not None and found["art_auto_pgd_16"] is None
    page.write_page(page.make_page(entry, "small", jobs), jobs, tmp_path)
    assert "4.7 [2.2, 9.8], 128 images |" in (tmp_path / "003_table1.small.md").read_text()
    assert '<span class="interval">128 images</span>' in (tmp_path / "003_table1.small.html").read_text()


def test_a_size_names_every_number_that_a_scale_has_changed():
    jobs = jobs_of(ENTRIES["003_table1"], "mini", "nowhere", 1)
    words = {job.part.name: page.in_words([[job]])[0] for job in jobs}
    assert words["drn_0.1"].endswith(
        "1 seed; run.drn.model.num_copies 10 [50]; defenses.copies.num_votes 1 [3]; defenses.copies.num_samples 4 [20]"
        "; not evaluated yet"
    )
    assert words["fx_a_0.1_auto_pgd"].endswith("1 seed; not evaluated yet")


def test_a_size_says_what_has_not_been_run(tmp_path):
    (job,) = [job for job in jobs_of(ENTRIES["003_table1"], "small", tmp_path, 1) if job.part.name == "honest"]
    assert page.in_words([[job]])[0].endswith("1 seed; not evaluated yet")
    write_report(job, [row("adversarial", "clean", 400)])
    assert page.in_words([[job]])[0].endswith("1 seed; AutoAttack has not been run yet")
    write_report(job, [row("adversarial", "auto_attack", 6, n=128)], "standard")
    assert page.in_words([[job]])[0].endswith("1 seed")


def test_a_size_names_the_images_of_single_epochs():
    (job,) = jobs_of(ENTRIES["001_table1"], "small", "nowhere", 1)
    assert "; 1,000 test images [all] (all after single epochs), AutoAttack" in page.in_words([[job]])[0]


def test_every_attack_of_a_sound_column_will_be_run():
    for entry in ENTRIES.values():
        for job in jobs_of(entry, "full", "nowhere", 1):
            specs = job.part.specs if job.part.specs is not None else job.config["published"]
            named = {spec["sound_attack"] for spec in specs if "sound_attack" in spec}
            assert named <= set(job.config["evaluation"]["attacks"]["order"])


def test_what_is_done_has_a_page_although_the_next_part_cannot_be_run(calls, tmp_path, monkeypatch, capsys):
    refuse(monkeypatch, "two_updates")
    assert command.main(["run", "004_table1", f"--workdir={tmp_path}"]) == 2
    assert "no data" in capsys.readouterr().err
    assert (tmp_path / "pages" / "004_table1.small.html").exists()


def test_the_commands_list_and_tell_the_state(calls, tmp_path, capsys):
    assert command.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ENTRIES)
    assert "full 0.5, small 0.3, tiny" in listed
    assert command.main(["run", "004_table1", f"--workdir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "004_table1 (small, reduced): 0 of 4 cells measured: " in said
    assert command.main(["status", "004_table1", f"--workdir={tmp_path}"]) == 0
    assert "2 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run"], "run what? Name entries"),
        (["run", "003_table9"], "no entry is named '003_table9'"),
        (["run", "004_table1", "--scale=huge"], "004_table1 has no scale 'huge'; it has full, small, tiny"),
        (
            ["run", "004_table1", "--budget=soon"],
            "--budget must be a number with a unit, such as 90m or 5h, got 'soon'",
        ),
        (["run", "004_table1", "--seeds=0"], "--seeds must be at least 1"),
        (
            ["run", "all", "--folder=x"],
            "--folder holds the images of one entry, and 003_figure7, 000_figure2_imagenette",
        ),
        (["run", "004_table1", "--folder=x"], "--folder holds the images of one entry, and none of these needs one"),
        (["run", "all", "--scale=huge"], "no entry has a scale 'huge'; there are full, small, tiny, "),
        (["walk"], "invalid choice: 'walk'"),
    ],
)
def test_errors_of_the_commands_are_one_line(arguments, message, capsys, tmp_path):
    assert command.main([*arguments, f"--workdir={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and message in captured.err


def test_budgets():
    assert [commands._seconds(text) for text in ("90m", "5h", "30s", "1.5h")] == [5400, 18000, 30, 5400]


def test_a_config_without_an_entry_is_refused(tmp_path):
    entry = Entry("x", "", (), (Part("x", "nowhere"),), {"small": Scale()}, {})
    with pytest.raises(UserError, match="no installed config nowhere"):
        jobs_of(entry, "small", tmp_path, 1)


@pytest.mark.slow
def test_an_entry_from_training_to_its_page(tmp_path, shared, monkeypatch, capsys):
    """Clean MNIST at the smallest size: two steps, sixteen images; then again, when there is nothing left to do."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared / "data" / "tensorflow_datasets"))
    arguments = ["run", "001_table1", "--scale=tiny", f"--workdir={tmp_path}"]
    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    assert "001_table1 (tiny, reduced): 6 of 36 cells measured" in said
    stored = json.loads((tmp_path / "pages" / "001_table1.tiny.json").read_text())
    assert stored["complete"] and stored["reduced"]
    assert sum(cell["ours"] is not None for cell in stored["cells"]) == 6
    assert command.main(arguments) == 0
    assert "done in" not in capsys.readouterr().out
