"""The published numbers are complete, plausible, and those that were published."""

import csv
import itertools

import pytest

from advjax.papers import published
from advjax.types import UserError
from support.paths import REPOSITORY

FOLDER = REPOSITORY / "advjax" / "papers" / "tables"


def value(table, **fields):
    fields = {"metric": "accuracy", **fields}
    (found,) = (
        entry.value for entry in published.read(table) if all(getattr(entry, key) == fields[key] for key in fields)
    )
    return found


def test_every_file_is_a_table_and_every_table_a_file():
    assert sorted(path.stem for path in FOLDER.glob("*.csv")) == sorted(published.TABLES)
    assert {name.split("_")[0] for name in published.TABLES} == set(published.PAPERS)


@pytest.mark.parametrize("table", published.TABLES)
def test_a_table_says_what_its_numbers_are(table):
    found = published.read(table)
    assert found
    for entry in found:
        assert (entry.paper, entry.table) == (table[:3], table)
        assert all((entry.model, entry.dataset, entry.training, entry.attack, entry.metric))
        assert entry.provenance in published.PROVENANCES
        assert entry.metric == "cross_entropy" or 0 <= entry.value <= 100
        assert entry.metric != "binary_cross_entropy" or entry.dataset.endswith("/train")
        assert entry.std is None or 0 <= entry.std < 10
        assert entry.n is None or entry.n in (1024, 2000, 9120, 10000, 14000, 50000)
    identities = [(entry.model, entry.dataset, entry.training, entry.attack, entry.metric) for entry in found]
    assert len(set(identities)) == len(identities), "two numbers for the same thing"


@pytest.mark.parametrize("table", [name for name in published.TABLES if name[:3] in ("000", "001")])
def test_accuracies_with_two_decimals_are_counts_of_images(table):
    for entry in published.read(table):
        # Elsewhere one decimal was printed, or the accuracy is of one epoch in many.
        if entry.metric == "accuracy" and entry.n is not None:
            assert entry.value * entry.n / 100 == pytest.approx(round(entry.value * entry.n / 100), abs=1e-6)


def test_numbers_are_those_of_the_papers():
    base = {"model": "ResNet9:base", "dataset": "cifar10/test"}
    assert value("003_table1", **base, attack="none") == 91.2
    assert value("003_table1", **base, attack="AutoPGD:8/255") == 4.6
    assert value("003_table1", model="ResNet9+fx-a", dataset="cifar10/test[base_correct]", attack="none") == 93.8
    assert value("000_table3", training="intelligent_mixup:GN08", attack="CW_l2") == 71.6
    assert value("001_table6", training="adv_vanilla:from_pretrained", attack="own_pgd:cifar10:v1") == 22.89
    assert value("002_table1", model="ResNet101", dataset="cifar10/test20", training="standard") == 81.69
    assert value("004_table1", training="adv_PGD") == 24.02
    epochs = [value("001_epochs", model="LeNet5", training=f"mixup:{epoch}ep") for epoch in (1, 2, 5, 200)]
    assert epochs == [96.14, 97.29, 98.3, 98.99]
    attacked = {"model": "PreActResNet18", "training": "adv_mixup:from_pretrained:soft0.01:100ep"}
    assert value("001_adversarial_epochs", **attacked, attack="own_pgd:cifar10:v2") == 57.03


@pytest.mark.parametrize("table", ["001_epochs", "001_adversarial_epochs"])
def test_every_epoch_of_the_logs_has_its_losses(table):
    found = {}
    for entry in published.read(table):
        found.setdefault((entry.model, entry.training), []).append((entry.metric, entry.attack == "none"))
    attacks = (True,) if table == "001_epochs" else (True, False)
    measured = [(metric, is_clean) for metric in ("accuracy", "cross_entropy") for is_clean in attacks]
    # The loss of training is that on the images that were trained on.
    expected = sorted([*measured, ("binary_cross_entropy", table == "001_epochs")])
    assert all(sorted(metrics) == expected for metrics in found.values())


def test_losses_are_those_of_the_same_epoch_of_the_same_log(shared):
    with (shared / "spec" / "paper_results" / "001_curves.csv").open(newline="") as file:
        epochs = {name_in_tables(line): line for line in csv.DictReader(file)}
    columns = {
        ("accuracy", True): "clean_test_acc",
        ("accuracy", False): "pgd_test_acc_whitebox",
        ("cross_entropy", True): "clean_test_ce",
        ("cross_entropy", False): "pgd_test_ce_whitebox",
    }
    for entry in (*published.read("001_epochs"), *published.read("001_adversarial_epochs")):
        line = epochs[entry.dataset.partition("/")[0], entry.training]
        column = columns.get((entry.metric, entry.attack == "none"), "train_bce_running_mean")
        assert entry.value == float(line[column])


def name_in_tables(line):
    """Data set and training of a line of the collected logs, as the tables call them."""
    training = line["method"]
    if line["phase"] == "adversarial":
        training = f"adv_{training}:from_{'untrained' if line['start'] == 'untrained' else 'pretrained'}"
    if line["soft_sigma"] != "0":
        training += f":soft{line['soft_sigma']}"
    if line["run"].endswith("_lr_drops_200_400"):
        training += ":lr_drops_200_400"
    return line["dataset"], f"{training}:{line['epochs_done']}ep"


def test_tables_agree_where_they_repeat_each_other():
    def accuracies(*tables):
        rows = [entry for table in tables for entry in published.read(table) if entry.model == "LeNet5"]
        return {(entry.training, entry.attack): entry.value for entry in rows if entry.metric == "accuracy"}

    known = accuracies("001_table1", "001_table3", "001_table4")
    assert accuracies("001_table5").items() <= known.items()


def test_no_number_was_made_up(shared):
    collected = set()
    for path in (shared / "spec" / "paper_results").glob("*.csv"):
        with path.open(newline="") as file:
            cells = itertools.chain.from_iterable(csv.reader(file))
            collected |= {part for cell in cells for part in cell.split("..")}
    numbers = {float(text) for text in collected if text.replace(".", "", 1).isdigit()}
    for table in published.TABLES:
        assert {entry.value for entry in published.read(table)} <= numbers


def test_an_unknown_table_is_rejected():
    with pytest.raises(UserError, match=r"unknown published table '003_table2'; known are 000_figure2, .*003_table1"):
        published.read("003_table2")
