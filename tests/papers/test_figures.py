"""The figures of the papers: marks that can be told apart, and a legend that covers none."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

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
    # The table and the text call the base differently.
    names = {f"{cell.published.model}, {cell.published.training}" for cell in found} - {
        "ResNet9:base, base: full train"
    }
    panels, legend = figure.split('<g id="points-wide-legend_1">')
    assert len(names) == 8 and all(f">{name}</text>" in legend for name in names)
    used = re.findall(r'<use xlink:href="#(\S+)" x="\S+" y="(\S+)" style="fill: ([^;]+)', legend)
    assert len({(shape, hue) for shape, _, hue in used}) == len(used) == 8
    marks = [float(y) for y in re.findall(r'<use xlink:href="#\S+" x="\S+" y="(\S+)" style="fill-opacity: 0', panels)]
    assert len(marks) >= 37 and max(float(y) for _, y, _ in used) < min(marks)


def test_networks_and_readings_of_noise_can_be_told_apart(tmp_path):
    figure, found = drawn("000_figure2", tmp_path)
    panels, legend = figure.split('<g id="points-wide-legend_1">')
    assert re.findall(r">([^<>]+)</text>", legend) == ["custom1, standard", "custom2, standard"]
    # Published numbers stand beside both candidates: two of clean accuracy, two under the worst noise.
    assert len(re.findall(r'style="fill-opacity: 0', panels)) == 4
    for network in ("custom1", "custom2"):
        measured = [cell.attack for cell in found if cell.model == network]
        levels = [f"gn{level}_{reading}" for level in ("01", "05", "08") for reading in ("std", "variance")]
        # The worst noise of the text is read as that of the largest variance, which is also there by its name.
        assert sorted(measured) == sorted(["clean", "gn08_variance", *levels])
        named = {cell.published.attack: cell.published.model for cell in found if cell.model == network}
        assert named["gaussian_noise:GN05"] == named["gaussian_noise:GN05,deviation"] == network
    columns = re.findall(r">([^<>]+)</text>", panels)
    assert columns[:1] == ["clean"] and [name for name in columns if name.startswith(("GN", "worst"))] == [
        *("GN01", "GN05", "GN08", "worst", "GN01", "GN05", "GN08")
    ]
    assert columns.count("deviation") == 3


@pytest.mark.parametrize("name, cells_of_a_network", [("000_figure2_imagenette", 7), ("000_table2", 7)])
def test_every_level_and_reading_is_shown(name, cells_of_a_network, tmp_path):
    _, found = drawn(name, tmp_path)
    networks = {cell.model: [other.attack for other in found if other.model == cell.model] for cell in found}
    assert all(len(set(attacks)) == len(attacks) == cells_of_a_network for attacks in networks.values())


def test_the_base_of_the_ablation_is_a_dashed_line(tmp_path):
    figure, _ = drawn("003_figure3", tmp_path)
    panels, legend = figure.split('<g id="points-wide-legend_1">')
    # One for each attack.
    assert panels.count("stroke-dasharray") == 6 and legend.count("stroke-dasharray") == 1
    names = re.findall(r">([^<>]+)</text>", legend)
    assert names[0] == "identity, delta 1, lambda 1" and names[-1] == "base, full train" and len(names) == 9


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
