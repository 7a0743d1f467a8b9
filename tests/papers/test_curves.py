"""Curves of the mixup report: one pair of panels for each run that a figure is about, with its own log."""

import json

import pytest

from advjax.papers import published
from advjax.papers.cells import cells, epoch_of, specs_of
from advjax.papers.curves import TRAINING_LOSS
from advjax.papers.entries import ENTRIES
from advjax.papers.figures import draw
from advjax.papers.running import jobs_of

STEPS = 100
"""Steps of an epoch."""
EPOCHS = (1, 2, 5, 10, 20)
"""Those of the logs that runs of 20 epochs reach."""


def write_metrics(job, run, accuracy, records_per_epoch=2):
    """Metrics of a run as training writes them, with an accuracy that tells runs apart."""
    facts = {name: STEPS * one["batch_size"] for name, one in job.config["run"].items()}
    epochs, steps = job.config["run"][run]["epochs"], STEPS // records_per_epoch
    (job.folder / run).mkdir(parents=True, exist_ok=True)
    (job.folder / "config.json").write_text(json.dumps(job.config))
    (job.folder / "data.json").write_text(json.dumps({"num_examples": facts, "num_validation": 10_000}))
    measured = {"accuracy": accuracy, "cross_entropy": 1.0, "attacked_accuracy": accuracy / 2}
    records = []
    for step in range(steps, STEPS * epochs + 1, steps):
        # The loss is 0.2 in the first half of each epoch, and 0.4 in the second.
        records.append({"step": step, "kind": "train", "accuracy": accuracy, "loss": 0.4 if step % STEPS == 0 else 0.2})
        if step % STEPS == 0:
            records.append({"step": step, "kind": "validation", **measured, "attacked_cross_entropy": 2.0})
    text = "".join(json.dumps(record) + "\n" for record in records)
    (job.folder / run / "metrics.jsonl").write_text(text)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws the curves of an entry whose parts are all trained; the accuracy of the nth part is n/10.

    Returns heading -> the two panels of a run.
    """

    def draw_entry(name):
        entry = ENTRIES[name]
        jobs = jobs_of(entry, "small", tmp_path, seeds=1)
        for number, job in enumerate(jobs, 1):
            for run in job.config["runs"]:
                write_metrics(job, run, number / 10)
        monkeypatch.setattr("advjax.papers.curves.to_svg", lambda figure, *_: figure)
        panels = draw(entry.figure, cells(jobs, entry.tables), jobs).axes
        pairs = zip(panels[::2], panels[1::2], strict=True)
        return {accuracies.get_title(loc="left"): (accuracies, losses) for accuracies, losses in pairs}

    return draw_entry


def curves_of(axes):
    """The values of each curve: on training, clean test and attacked test images."""
    return [[float(value) for value in line.get_ydata()] for line in axes.lines if line.get_marker() == "None"]


def marks_of(axes):
    """Epoch and published value of each mark."""
    points = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert all(line.get_markerfacecolor() == "none" for line in axes.lines if line.get_marker() == "o")
    return {(int(epoch), float(value)) for epoch, value in points}


def logged(model, training, *metrics):
    """The same, from the packaged logs."""
    return {
        (epoch, row.value)
        for epoch in EPOCHS
        for row in published.read("001_adversarial_epochs")
        if (row.model, row.training) == (model, f"{training}:{epoch}ep") and row.metric in metrics
    }


def assert_panels(panels, accuracy, model, training):
    """The panels show the run with an accuracy, and the log of a training."""
    accuracies, losses = panels
    assert curves_of(accuracies) == [pytest.approx([100 * share] * 20) for share in (accuracy, accuracy, accuracy / 2)]
    assert marks_of(accuracies) == logged(model, training, "accuracy") and len(marks_of(accuracies)) == 10
    assert marks_of(losses) == logged(model, training, "cross_entropy", TRAINING_LOSS)


def test_figure_10_shows_adversarial_training_and_not_the_clean_networks_before_it(drawn):
    found = drawn("001_table6")
    assert list(found) == ["vanilla", "mixup", "manifold"]
    for run, method in {"vanilla": "vanilla", "mixup": "mixup", "manifold": "manifold_mixup"}.items():
        # The clean networks of the same names are the first part.
        assert_panels(found[run], 0.2, "PreActResNet18", f"adv_{method}:from_pretrained")


def test_every_soft_label_has_its_own_panels_and_marks(drawn):
    found = drawn("001_table7")
    values = ("0.001", "0.002", "0.003", "0.005", "0.01")
    assert list(found) == ["mixup", *(f"soft_{value}_mnist: soft_labels" for value in values)]
    assert_panels(found["mixup"], 0.1, "LeNet5", "adv_mixup:from_pretrained")
    for number, value in enumerate(values, 2):
        training = f"adv_mixup:from_pretrained:soft{value}"
        assert_panels(found[f"soft_{value}_mnist: soft_labels"], number / 10, "LeNet5", training)


def test_both_runs_of_partial_pgd_have_panels(drawn):
    found = drawn("001_table8_cifar10")
    assert list(found) == ["mixup", "partial_cifar10: partial", "partial_drops_cifar10: partial"]
    partial = "adv_partial_pgd:from_pretrained"
    assert_panels(found["partial_cifar10: partial"], 0.2, "PreActResNet18", partial)
    assert_panels(found["partial_drops_cifar10: partial"], 0.3, "PreActResNet18", f"{partial}:lr_drops_200_400")
    assert list(drawn("001_table8")) == ["mixup", "partial"]


def test_training_losses_are_means_over_epochs_as_in_the_logs(drawn):
    _, losses = drawn("001_table8")["partial"]
    training, clean, attacked = curves_of(losses)
    assert training == pytest.approx([0.3] * 20) and (clean, attacked) == ([1.0] * 20, [2.0] * 20)
    # The logs of partial PGD begin with a cross-entropy of 500, beside losses below 1.
    assert losses.get_yscale() == "log" and max(value for _, value in marks_of(losses)) > 500


def test_marks_have_the_color_of_their_curve(drawn):
    accuracies, losses = drawn("001_table6")["vanilla"]
    colors = [line.get_color() for line in accuracies.lines if line.get_marker() == "None"]
    by_mark = {
        float(line.get_ydata()[0]): line.get_color()
        for axes in (accuracies, losses)
        for line in axes.lines
        if line.get_marker() == "o"
    }
    rows = [row for row in published.read("001_adversarial_epochs") if row.model == "PreActResNet18"]
    rows = [row for row in rows if row.training == "adv_vanilla:from_pretrained:5ep"]
    assert len(rows) == 5
    for row in rows:
        series = 0 if row.metric == TRAINING_LOSS else 1 if row.attack == "none" else 2
        assert by_mark[row.value] == colors[series]


def test_one_legend_names_the_curves_that_are_there(drawn):
    (accuracies, _) = drawn("001_table6")["vanilla"]
    (legend,) = accuracies.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "training images",
        "clean test images",
        "attacked test images",
    ]
    assert all(axes.get_legend() is None for axes in accuracies.figure.axes)


def test_published_training_losses_are_the_quantity_that_is_trained_here():
    runs = []
    for entry in ENTRIES.values():
        if entry.figure is None or entry.figure.kind != "curves":
            continue
        for job in jobs_of(entry, "full", "nowhere", seeds=1):
            names = {spec["run"] for spec in specs_of(job.part) if epoch_of(spec) is not None}
            runs += [job.config["run"][name] for name in names]
    assert len(runs) > 20 and {run["objective"]["loss"]["name"] for run in runs} == {"bce_on_softmax"}


def test_nothing_is_drawn_of_runs_that_were_not_trained(tmp_path):
    entry = ENTRIES["001_table6"]
    jobs = jobs_of(entry, "small", tmp_path, seeds=1)
    for run in jobs[0].config["runs"]:
        write_metrics(jobs[0], run, 0.9)
    assert draw(entry.figure, cells(jobs, entry.tables), jobs) is None
