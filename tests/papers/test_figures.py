"""The figures of the papers: marks that can be told apart, and a legend that covers none."""

import re
from types import SimpleNamespace

import numpy as np

from advjax.evaluation import adversarial_sets
from advjax.papers.cells import cells
from advjax.papers.entries import ENTRIES
from advjax.papers.figures import draw
from advjax.papers.join import Accuracy
from advjax.papers.running import jobs_of
from support.tiny_data import tiny_dataset


def drawn(name, tmp_path):
    """The figure of an entry, as if each published number had been measured exactly; and its cells."""
    entry = ENTRIES[name]
    found = cells(jobs_of(entry, "small", tmp_path, seeds=1), entry.tables)
    measured = [cell._replace(ours=cell.theirs or Accuracy(50.0, (45.0, 55.0), 1000)) for cell in found]
    return draw(entry.figure, measured, []), measured


def test_networks_have_marks_of_their_own_and_one_legend_above_all_panels(tmp_path):
    figure, found = drawn("003_table1", tmp_path)
    names = {f"{cell.published.model}, {cell.published.training}" for cell in found}
    panels, legend = figure.split('<g id="points-wide-legend_1">')
    assert len(names) == 9 and all(f">{name}</text>" in legend for name in names)
    used = re.findall(r'<use xlink:href="#(\S+)" x="\S+" y="(\S+)" style="fill: ([^;]+)', legend)
    assert len({(shape, hue) for shape, _, hue in used}) == len(used) == 9
    marks = [float(y) for y in re.findall(r'<use xlink:href="#\S+" x="\S+" y="(\S+)" style="fill-opacity: 0', panels)]
    assert len(marks) >= 37 and max(float(y) for _, y, _ in used) < min(marks)


def test_rows_of_images_name_the_networks_that_were_attacked(tmp_path, monkeypatch):
    entry = ENTRIES["001_figure7"]
    jobs = jobs_of(entry, "small", tmp_path, seeds=1)
    test = tiny_dataset()
    for run in jobs[0].config["runs"]:
        provenance = {
            "attack": "own_pgd",
            "made_on": run,
            "data": adversarial_sets.describe_data(test, "test"),
            "bounds": [0.0, 1.0],
        }
        kept = adversarial_sets.AdversarialSet(
            test.images, test.labels, test.index, test.labels, np.zeros(len(test.labels), np.float32), provenance
        )
        adversarial_sets.save(kept, jobs[0].folder / "adversarial" / f"own_pgd.{run}.npz")
    experiment = SimpleNamespace(load_data=lambda: SimpleNamespace(test=test))
    monkeypatch.setattr("advjax.papers.image_rows.from_config", lambda config: experiment)
    figure = draw(entry.figure, [], jobs)
    headings = re.findall(r'font-weight="bold">([^<]+)<', figure)
    assert headings == ["as they are", "own_pgd on the untrained network", "own_pgd on the trained network"]
    assert figure.count("<image ") == 30


def test_nothing_is_drawn_of_what_has_not_been_measured(tmp_path):
    entry = ENTRIES["003_table1"]
    jobs = jobs_of(entry, "small", tmp_path, seeds=1)
    assert draw(entry.figure, cells(jobs, entry.tables), jobs) is None
