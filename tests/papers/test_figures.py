"""The figures of the papers: marks that can be told apart, and a legend that covers none."""

import base64
import io
import re

import numpy as np
import PIL.Image
import pytest

from advjax.experiment import defaults
from advjax.experiment.from_config import complete
from advjax.jobs.train import train
from advjax.papers.cells import cells
from advjax.papers.entries import ENTRIES
from advjax.papers.figures import draw
from advjax.papers.join import Accuracy
from advjax.papers.recipe import FigurePlan, Part, Scale
from advjax.papers.running import Job, jobs_of
from support.experiments import devices

EPSILON = 0.3


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


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """The figure of a network that is trained and of one that hardly is, before and after their evaluation."""
    optimizer = {"name": "adam", "schedule": {"name": "constant", "learning_rate": 0.002}}
    run = {"model": {"name": "lenet5"}, "optimizer": optimizer, "batch_size": 32, "select": "last"}
    described = {"trained": defaults.run(num_steps=120, **run), "fresh": defaults.run(num_steps=1, **run)}
    pgd = {"name": "pgd", "norm": "linf", "epsilon": EPSILON, "num_steps": 8, "step_size": 0.05, "random_start": False}
    config = defaults.experiment(
        data={"name": "digits", "image_size": 16},
        runs=tuple(described),
        run=described,
        evaluation={
            **{"attacks": {"order": ("pgd",), "pgd": pgd}, "made_on": "trained"},
            **{"num_examples": 64, "num_checked": 0},
        },
    )
    folder = tmp_path_factory.mktemp("papers") / "parts" / "images-0"
    job = Job(Part("images", ""), Scale(num_auto_attack=0), complete(config), folder)
    plan = FigurePlan("images", "", attacks=("pgd",), networks={"fresh": "the untrained network"})
    train(job.config, str(folder), devices(), print)
    before = draw(plan, [], [job])
    # All that is asked of the report is whether it is there.
    (folder / "report.json").write_text("{}")
    return before, draw(plan, [], [job])


def test_rows_of_images_are_drawn_after_the_evaluation(attacked):
    assert attacked[0] is None


def test_rows_of_images_name_the_networks_in_the_order_of_the_config(attacked):
    headings = re.findall(r'font-weight="bold">([^<]+)<', attacked[1])
    assert headings == ["as they are", "pgd on trained", "pgd on the untrained network"]
    classes = re.findall(r'font-size="9">([^<]+)<', attacked[1])
    assert len(classes) == 30 and classes[:10] == sorted(classes[:10])
    # The attack succeeds on each image of the trained network, which are all that it classifies correctly.
    assert all(seen != true for seen, true in zip(classes[10:20], classes[:10], strict=True))


def test_every_image_gets_the_whole_attack(attacked):
    """Also on a network that is wrong about most of them."""
    clean, trained, fresh = np.split(images_in(attacked[1]), 3)
    for row in (trained, fresh):
        reached = np.abs(row - clean).max(axis=(1, 2))
        np.testing.assert_allclose(reached, EPSILON, atol=1 / 255)


def images_in(figure):
    """The images of a figure: float [n, h, w], 0 to 1."""
    found = re.findall(r'href="data:image/png;base64,([^"]+)"', figure)
    return np.stack([np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(image))), float) / 255 for image in found])


def test_nothing_is_drawn_of_what_has_not_been_measured(tmp_path):
    entry = ENTRIES["003_table1"]
    jobs = jobs_of(entry, "small", tmp_path, seeds=1)
    assert draw(entry.figure, cells(jobs, entry.tables), jobs) is None
