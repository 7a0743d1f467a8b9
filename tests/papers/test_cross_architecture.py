"""The tables of paper 002: rows of its evaluation, measured on linear networks in place of ResNets, and their cells."""

import json

import numpy as np
import pytest

from advjax.data import Dataset
from advjax.evaluation import report
from advjax.evaluation.attack_runs import Resources
from advjax.evaluation.scored_model import undefended, variables_hash
from advjax.evaluation.scoring import clean_outcome
from advjax.evaluation.summaries import WORST_CASE
from advjax.experiment.build_evaluation import build_evaluation
from advjax.experiment.presets import with_preset
from advjax.jobs.attack_matrix import measure
from advjax.models import adapter
from advjax.papers.cells import cells
from advjax.papers.entries import ENTRIES
from advjax.papers.recipe import full_config
from advjax.papers.running import jobs_of
from advjax.runtime.files import plain
from support.experiments import devices

NETWORKS = ("resnet18", "resnet50", "resnet101")
THEIR_NETWORKS = ("ResNet18", "ResNet50", "ResNet101")
BUDGETS = {f"fgsm_{i}": f"FGSM:eps0.0{i}" for i in (1, 2, 3)}
MEAN = "FGSM:mean_eps0.01_0.02_0.03"
SUFFIXES = {"002_table2": "", "002_table3": "_augmented", "002_table4": "_retrained"}
"""Entry -> what follows the network in the names of its runs."""
TRAININGS = {"": "standard", "_augmented": "conventional_augmentation_only", "_retrained": "cross_arch_adv_aug"}
SHAPE, CLASSES, COUNT = (4, 4, 1), 3, 24


def linear_models(runs):
    """Linear networks, similar but with weights of their own; they share a function, for which attacks are compiled."""
    made = [adapter.from_functions({"linear": _linear}, {"linear": _weights(seed)}) for seed in range(len(runs))]
    first = undefended(runs[0], *made[0])
    return [
        first._replace(run=run, variables=variables, hash=variables_hash(variables))
        for run, (_, variables) in zip(runs, made, strict=True)
    ]


def _linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def _weights(seed):
    shared, own = (np.random.default_rng(number).normal(size=(16, CLASSES)) for number in (100, seed))
    return (shared + 0.3 * own).astype(np.float32)


def images_of(model):
    """Images that the model classifies correctly."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE)).astype(np.uint8)
    labels = np.argmax(model.bind(model.variables)(images / np.float32(255)), axis=-1).astype(np.int32)
    return Dataset("toy", images, labels, np.arange(COUNT, dtype=np.int32), ("a", "b", "c"))


@pytest.fixture(scope="module")
def part():
    return ENTRIES["002_table4"].parts[0]


@pytest.fixture(scope="module")
def rows(part):
    """The rows of the shipped evaluation."""
    config = full_config(part)
    models = linear_models(config["runs"])
    # One image a batch: each attack is compiled for one size.
    test, resources = images_of(models[0]), Resources(devices("jit"), 1, 0, None)
    clean = {model.name: clean_outcome(model, test, resources) for model in models}
    plan = build_evaluation(config["evaluation"], dict.fromkeys(config["runs"]), config["run"])
    return report.rows(measure(plan, models, clean, test, resources).outcomes)


@pytest.fixture
def measured(rows, tmp_path):
    """``(name of an entry, rows) -> its cells`` on MNIST, with AutoAttack on each network itself."""

    def of(name, rows=rows):
        entry = ENTRIES[name]
        job = jobs_of(entry, "full", tmp_path, seeds=1)[0]
        verdicts = [row for row in rows if is_verdict(row) and row["attack"] == "pgd_10"]
        standard = [{**row, "attack": "auto_attack", "accuracy": 0.0} for row in verdicts]
        for folder, found in (("", rows), ("standard", standard)):
            path = job.folder / folder / "report.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            made = report.Report(report.SCHEMA_VERSION, "", job.config, {}, found, [], [], [], [])
            path.write_text(json.dumps(plain(made._asdict(), "report")))
        return cells([job], entry.tables)

    return of


def is_verdict(row):
    return report.is_on_itself(row) and row["protocol"] == "sound"


def accuracy(rows, **wanted):
    """In percent, of the one row that is wanted."""
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return 100 * found["accuracy"]


def test_every_network_meets_fgsm_as_the_paper_runs_it_and_as_a_verdict(part, rows):
    for run in full_config(part)["runs"]:
        for attack in (*BUDGETS, "pgd_10"):
            protocols = ["sound"] if attack == "pgd_10" else ["faithful", "sound"]
            found = [row for row in rows if (row["run"], row["attack"]) == (run, attack)]
            own = [row for row in found if row["adaptive"]]
            assert sorted(row["protocol"] for row in own) == protocols
            assert {(row["made_on"], row["labels"], row["knowledge"]) for row in own} == {(run, "true", "everything")}
            transfers = [row for row in found if not row["adaptive"]]
            assert {row["made_on"] for row in transfers} >= {*NETWORKS} - {run}
            assert {row["protocol"] for row in transfers} == {protocols[0]}
    # Over attacks of the paper and of ours: it belongs to no protocol of the paper.
    assert {row["protocol"] for row in rows if row["attack"] == WORST_CASE} == {"sound"}


@pytest.mark.parametrize("name", SUFFIXES)
def test_every_cell_is_measured(name, measured):
    found = measured(name)
    assert found and all(cell.ours for cell in found)
    for cell in found:
        is_old = cell.published.attack.endswith("old images")
        assert cell.kind == ("clean" if cell.published.attack == "none" else "transfer" if is_old else "adaptive")
        assert bool(cell.sound) == (cell.kind != "clean")


@pytest.mark.parametrize("name, suffix", SUFFIXES.items())
def test_the_column_of_the_paper_has_its_own_attack(name, suffix, rows, measured):
    """Halved, our verdicts would show if they stood there."""
    halved = [{**row, "accuracy": row["accuracy"] / 2} if is_verdict(row) else row for row in rows]
    found = {(cell.published.training, cell.model, cell.published.attack): cell for cell in measured(name, halved)}
    training, single = TRAININGS[suffix], []
    for run in (f"{network}{suffix}" for network in NETWORKS):
        for attack, theirs in BUDGETS.items():
            cell, own = found[training, run, theirs], {"run": run, "attack": attack, "adaptive": True}
            assert cell.ours.value == pytest.approx(accuracy(halved, **own, protocol="faithful"))
            assert cell.sound.value <= accuracy(halved, **own, protocol="sound") + 1e-9
            single.append(cell)
    assert single[0].sound.value == pytest.approx(single[0].ours.value / 2) and single[0].ours.value > 0
    mean = found[training, "mean", MEAN]
    assert mean.ours.value == pytest.approx(np.mean([cell.ours.value for cell in single]))
    assert mean.sound.value == pytest.approx(np.mean([cell.sound.value for cell in single]))


@pytest.mark.parametrize("name", ["002_table3", "002_table4"])
def test_a_network_sees_the_old_images_of_its_architecture(name, rows, measured):
    found, single = {(cell.model, cell.published.attack): cell for cell in measured(name)}, []
    for network in NETWORKS:
        run = f"{network}{SUFFIXES[name]}"
        for attack, theirs in BUDGETS.items():
            cell = found[run, f"{theirs}, old images"]
            assert cell.ours.value == pytest.approx(accuracy(rows, run=run, attack=attack, made_on=network))
            assert cell.ours.attacked == network
            single.append(cell.ours.value)
    assert found["mean", f"{MEAN}, old images"].ours.value == pytest.approx(np.mean(single))


@pytest.mark.parametrize("name", SUFFIXES)
def test_auto_attack_stands_beside_single_cells_of_its_epsilon(name, part, measured):
    config = full_config(part)
    assert with_preset(config, "standard")["evaluation"]["attacks"]["auto_attack"]["epsilon"] == "0.03"
    found = [cell for cell in measured(name) if cell.kind != "clean"]
    for cell in found:
        assert bool(cell.auto_attack) == (cell.model != "mean" and cell.attack == "fgsm_3")
    assert len([cell for cell in found if cell.auto_attack]) == (3 if name == "002_table2" else 6)


@pytest.mark.parametrize("data", ["mnist", "cifar10", "cats_vs_dogs"])
@pytest.mark.parametrize("name", SUFFIXES)
def test_every_network_and_epsilon_has_a_cell(name, data):
    entry = ENTRIES[name]
    found = [
        cell
        for cell in cells(jobs_of(entry, "full", "nowhere", 1), entry.tables)
        if (cell.published.dataset, cell.published.training) == (f"{data}/test20", TRAININGS[SUFFIXES[name]])
    ]
    single = [cell for cell in found if cell.model != "mean"]
    fresh = list(BUDGETS.values())
    old = [] if name == "002_table2" else [f"{attack}, old images" for attack in fresh]
    expected = {(network, attack) for network in THEIR_NETWORKS for attack in ("none", *fresh, *old)}
    assert {(cell.published.model, cell.published.attack) for cell in single} == expected
    assert len(single) == len(expected)
    # Of single networks, the paper has numbers on clean images alone, and none of the control.
    in_table_1 = [cell for cell in single if cell.theirs]
    assert {cell.published.attack for cell in in_table_1} == (set() if name == "002_table3" else {"none"})
    means = {cell.published.attack: cell.theirs for cell in found if cell.model == "mean"}
    assert {*means} == {MEAN, *(["none"] if name == "002_table2" else [f"{MEAN}, old images"])}
    # On CIFAR-10, the text bounds the mean, and has its gain: neither is an accuracy.
    assert bool(means[MEAN]) == (name != "002_table3" and data != "cifar10")
    assert means.get(f"{MEAN}, old images") is None
