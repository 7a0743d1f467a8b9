"""The whole job, small: two runs on digits, their report, repetition, and folders that hold something else."""

import json
import os
import re

import chex
import numpy as np
import pytest

from advjax import attacks, data
from advjax.attacks.combine import restarts
from advjax.evaluation import report
from advjax.evaluation.outcomes import read_outcomes
from advjax.evaluation.scored_model import variables_hash
from advjax.experiment import build_data, registry
from advjax.experiment.from_config import complete, from_config
from advjax.jobs import evaluate, load, train
from advjax.jobs import workdir as folders
from advjax.runtime.preemption import PreemptedError
from advjax.types import UserError
from support.configs import changed
from support.experiments import devices
from support.paths import REPOSITORY

# The contract as written down for those who read report.json, not as the code has it.
ROW_KEYS = {
    *("run", "split", "subset", "attack", "norm", "epsilon", "made_on", "adaptive", "knowledge", "defense", "protocol"),
    *("labels", "seed", "eot_samples", "n", "accuracy", "low", "high", "sd_fifths", "median_distance", "seconds"),
    *("model_hash", "mean_distance", "no_progress"),
}

RUNS = ("base", "fixer")


def small(**changes):
    """A network that is traced and compiled quickly, since these tests do little else."""
    return complete(
        changed(
            **{
                "data__num_validation": 20,
                "data__image_size": 16,
                "run__base__num_steps": 150,
                "run__base__model": {"name": "lenet5", "width": 1.0},
                "run__base__optimizer": {
                    "name": "adam",
                    "schedule": {"name": "one_cycle", "peak_learning_rate": 0.005},
                },
                "run__fixer__model__after": ("conv1",),
                "run__fixer__num_steps": 4,
                "run__fixer__train_fraction": 0.1,
                "run__fixer__attack__num_steps": 2,
                "evaluation__num_examples": 36,
                # One size of batches, or each attack would be compiled three times.
                "evaluation__batch_size": 4,
                "evaluation__num_checked": 0,
                "evaluation__attacks__order": ("fgsm", "auto_pgd"),
                "evaluation__attacks__auto_pgd__num_steps": 3,
                **changes,
            }
        )
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("work"))
    train.train(small(), workdir, devices(), print)
    return workdir, evaluate.evaluate_experiment(small(), workdir, devices(), print)


def without_seconds(found):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found.rows]


def test_the_report_has_the_rows_of_the_contract(finished):
    workdir, _ = finished
    with open(f"{workdir}/report.json") as file:
        content = json.load(file)
    assert content["schema_version"] == 1
    assert all(set(row) == ROW_KEYS for row in content["rows"])
    combinations = {
        (row["run"], row["attack"], row["made_on"], row["labels"], row["subset"]) for row in content["rows"]
    }
    # Of each run two subsets: clean, two attacks made twice, and the worst case of those on itself.
    assert len(combinations) == len(content["rows"]) == 2 * 2 * (1 + 2 * 2 + 1)
    for run in ("base", "fixer"):
        for attack in ("fgsm", "auto_pgd"):
            assert (run, attack, "base", "predicted", "base_correct") in combinations
            assert (run, attack, run, "true", "all") in combinations
    transfer = [row for row in content["rows"] if row["run"] == "fixer" and row["made_on"] == "base"]
    assert transfer and not any(row["adaptive"] or report.is_robust_accuracy(row) for row in transfer)
    assert {row["knowledge"] for row in transfer} == {"source model"}
    assert {row["n"] for row in content["rows"] if row["subset"] == "all"} == {36}


def test_a_folder_says_which_examples_it_has_learnt_from(finished):
    workdir, _ = finished
    parts = data.read_index(f"{workdir}/split.json", data.load("digits", "train"))
    splits = from_config(small()).load_data()
    assert parts.keys() == {"train", "validation"}
    np.testing.assert_array_equal(parts["train"], splits.train.index)
    np.testing.assert_array_equal(parts["validation"], splits.validation.index)


def test_a_trained_network_can_be_had_for_own_code(finished):
    workdir, found = finished
    network = load.load(workdir, "fixer")
    few = network.test.take(np.arange(36))
    logits = network.logits_fn(data.pixels(few.images))
    (clean,) = (row for row in found.rows if (row["run"], row["attack"], row["subset"]) == ("fixer", "clean", "all"))
    assert np.mean(np.argmax(logits, axis=-1) == few.labels) == pytest.approx(clean["accuracy"])
    assert variables_hash(network.variables) == clean["model_hash"]
    page = (REPOSITORY / "docs" / "training.md").read_text()
    (snippet,) = re.findall(r"```python\n(import numpy as np\n\nimport advjax\n.*?)```", page, re.DOTALL)
    there = {}
    exec(snippet.replace("workdirs/digits_fixer", workdir), there)
    assert variables_hash(there["network"].variables) == variables_hash(network.variables)
    with pytest.raises(UserError, match="is named 'x'; there are base, fixer"):
        load.load(workdir, "x")
    with pytest.raises(UserError, match="holds no experiment"):
        load.load(f"{workdir}/fixer", "fixer")


def test_a_network_is_loaded_where_its_data_are_not(finished, monkeypatch):
    workdir, _ = finished

    def gone(*arguments, **options):
        raise UserError("no data here")

    monkeypatch.setattr(data, "load", gone)
    build_data._read.cache_clear()
    network = load.load(workdir, "fixer")
    assert variables_hash(network.variables) == variables_hash(load.load(workdir, "fixer").variables)
    with pytest.raises(UserError, match="no data here"):
        network.test  # noqa: B018
    facts = folders._stored_facts(small(), workdir)
    assert (facts.name, facts.image_shape, facts.num_classes) == ("digits", (16, 16, 1), 10)
    # Facts of other data or shares are not those of this config.
    assert folders._stored_facts(small(data__num_validation=30), workdir) is None
    assert folders._stored_facts(small(run__fixer__train_fraction=0.2), workdir) is None


def test_outcomes_agree_with_the_rows_and_attacks_stay_in_bounds(finished):
    workdir, found = finished
    outcomes = read_outcomes(f"{workdir}/outcomes.npz")
    assert report.rows(outcomes, None) == [row for row in found.rows if row["subset"] == "all"]
    attacked = [outcome for outcome in outcomes if outcome.attack != "clean"]
    assert all((outcome.distances <= np.float32(0.15)).all() for outcome in attacked)
    assert any(outcome.distances.max() > 0.149 for outcome in attacked)


def test_the_page_shows_tables_curves_and_images(finished):
    with open(f"{finished[0]}/report.html") as file:
        text = file.read()
    for part in ("Robust accuracy", "Transfer, crafted on base", "<svg", "data:image/png", "Wilson"):
        assert part in text


def test_evaluating_again_from_the_folder_alone_gives_identical_verdicts(finished):
    workdir, found = finished
    before = read_outcomes(f"{workdir}/outcomes.npz")
    with open(f"{workdir}/config.json") as file:
        again = json.load(file)
    repeated = evaluate.evaluate_experiment(again, workdir, devices(), print)
    assert without_seconds(repeated) == without_seconds(found)
    for old, new in zip(before, read_outcomes(f"{workdir}/outcomes.npz"), strict=True):
        np.testing.assert_array_equal(old.predictions, new.predictions)
        np.testing.assert_array_equal(old.distances, new.distances)


def test_fixing_leaves_the_base_bit_identical(finished):
    workdir, _ = finished
    built = from_config(small())
    base, fixer = (folders.restore(run, workdir, built.facts.image_shape, print) for run in built.runs)
    for part in ("params", "model_state"):
        there = getattr(fixer, part)
        there = there["base"] if part == "params" else {name: tree["base"] for name, tree in there.items()}
        chex.assert_trees_all_equal(there, dict(getattr(base, part)))
    row = next(row for row in finished[1].rows if row["run"] == "base")
    assert row["model_hash"] == variables_hash(base)


def test_repeating_the_command_trains_nothing(finished):
    workdir, _ = finished
    with open(f"{workdir}/fixer/metrics.jsonl", "rb") as file:
        before = file.read()
    train.train(small(), workdir, devices(), print)
    with open(f"{workdir}/fixer/metrics.jsonl", "rb") as file:
        assert file.read() == before


def test_a_folder_with_another_configuration_is_refused(finished):
    with pytest.raises(
        UserError, match=r"another configuration \(run.batch_size is 64 there, 32 here\): choose another"
    ):
        train.train(small(run__base__batch_size=32), finished[0], devices(), print)


def test_a_run_may_be_an_existing_checkpoint(finished, tmp_path):
    workdir, _ = finished
    again = small(run__base__checkpoint=f"{workdir}/base", runs=("base",))
    train.train(again, str(tmp_path), devices(), print)
    found = evaluate.evaluate_experiment(again, str(tmp_path), devices(), print)
    expected = [row for row in without_seconds(finished[1]) if row["run"] == "base" and row["attack"] == "clean"]
    assert [row for row in without_seconds(found) if row["attack"] == "clean"] == expected
    assert not (tmp_path / "base" / "checkpoints").exists()


def test_a_checkpoint_of_another_model_is_refused(finished, tmp_path):
    other = small(run__base__checkpoint=f"{finished[0]}/base", run__base__model__width=0.5, runs=("base",))
    with pytest.raises(
        UserError, match=r"holds another model than run 'base' describes: .* is \(6,\) there and \(3,\) here"
    ):
        train.train(other, str(tmp_path), devices(), print)


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"run__base__model__mean": (0.5,)}, r"run.model.mean is None there, \[0.5\] here"),
        ({"run__base__checkpoint": "base", "run__base__model__mean": (0.5,)}, "run.model.mean is None there"),
        ({"run__fixer__model__delta": 2.0}, "run.model.delta is 1.0 there, 2.0 here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"data__num_validation": 30}, "data.num_validation is 20 there, 30 here"),
        ({"run__base__checkpoint": "base", "data__fractions": (0.8, 0.1, 0.1)}, "data.fractions is"),
        ({"run__base__checkpoint": "base", "data__num_folds": 5}, "data.num_folds is 0 there, 5 here"),
    ],
)
def test_an_evaluation_of_other_runs_than_the_folder_holds_is_refused(finished, changes, key):
    workdir, _ = finished
    if "run__base__checkpoint" in changes:
        changes = changes | {"run__base__checkpoint": f"{workdir}/base"}
    if "data__fractions" in changes:
        changes = changes | {"data__num_validation": 0}
    built = from_config(small(**changes))
    with pytest.raises(UserError, match=key) as caught:
        for run in built.runs:
            folders.restore(run, workdir, built.facts.image_shape, print)
    assert "\n" not in str(caught.value) and "holds a run of another configuration" in str(caught.value)


def test_a_checkpoint_is_not_evaluated_on_what_it_was_trained_on(finished):
    splits = {"data__train_split": "train[:1000]", "data__test_split": "train[1000:]", "runs": ("base",)}
    built = from_config(small(run__base__checkpoint=f"{finished[0]}/base", **splits))
    with pytest.raises(
        UserError, match=r"base was trained on 'train', which has images of data\.test_split 'train\[1000"
    ):
        folders.restore(built.runs[0], finished[0], built.facts.image_shape, print)


def test_another_evaluation_of_the_same_runs_is_welcome(finished):
    workdir, _ = finished
    built = from_config(
        small(evaluation__num_examples=10, evaluation__attacks__order=("fgsm",), evaluation__pictured="")
    )
    assert [bool(folders.restore(run, workdir, built.facts.image_shape, print).params) for run in built.runs] == [
        True
    ] * 2


def test_a_folder_from_before_a_key_existed_is_still_the_same_run(finished, tmp_path):
    run = from_config(small()).runs[0]
    old = json.loads(json.dumps(run.identity))
    del old["run"]["copies"], old["run"]["validation_attack"], old["data"]["stream"]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "run.json").write_text(json.dumps(old))
    folders.claim(run, str(tmp_path))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        evaluate.evaluate_experiment(small(), str(tmp_path), devices(), print)


def test_every_mapping_gives_the_same_verdicts(finished):
    workdir, found = finished
    kept = ("clean", "auto_pgd")
    expected = [row for row in without_seconds(found) if row["attack"] in kept]
    for mapping in ("pmap", "jit"):
        config = small(evaluation__attacks__order=("auto_pgd",), evaluation__pictured="auto_pgd")
        repeated = evaluate.evaluate_experiment(config, workdir, devices(mapping), print)
        assert [row for row in without_seconds(repeated) if row["attack"] in kept] == expected


class Asked:
    """Says stop at one of the questions."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def __call__(self):
        self.count += 1
        return self.count == self.at


@pytest.fixture(scope="module")
def staged():
    """AutoAttack is too long for here."""

    def stages(threat_model):
        weak = attacks.bim(threat_model, num_steps=1, step_size=0.01)
        strong = attacks.auto_pgd(threat_model, num_steps=3)
        return restarts("weak", weak, 2), restarts("strong", strong, 1)

    short = {"name": "auto_attack", "epsilon": 0.15}
    changes = {"evaluation__attacks__order": ("fgsm", "short"), "evaluation__attacks__short": short}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ATTACK_ENSEMBLES, "auto_attack", stages)
        yield small(**changes, evaluation__pictured="fgsm")


@pytest.fixture(scope="module")
def undisturbed(staged, finished):
    """The report, and how often it was asked whether to stop."""
    asked = Asked(None)
    return evaluate.evaluate_experiment(staged, finished[0], devices(), print, asked), asked.count


def test_stages_are_an_attack_like_any_other(undisturbed, finished):
    workdir, found = finished[0], undisturbed[0]
    rows = {(row["run"], row["made_on"], row["labels"]): row for row in found.rows if row["attack"] == "short"}
    assert set(rows) == {("base", "base", "predicted"), ("fixer", "base", "predicted"), *((r, r, "true") for r in RUNS)}
    before = next(row for row in found.rows if (row["run"], row["attack"]) == ("base", "clean"))
    assert rows["base", "base", "true"]["accuracy"] < before["accuracy"]
    outcome = next(o for o in read_outcomes(f"{workdir}/outcomes.npz") if o.attack == "short" and o.adaptive)
    assert 0 < outcome.distances.max() <= np.float32(0.15)


@pytest.mark.parametrize("at", [pytest.param(2, marks=pytest.mark.slow), 9])
def test_an_interrupted_evaluation_goes_on_to_the_same_verdicts(staged, finished, undisturbed, at):
    workdir, (expected, count) = finished[0], undisturbed
    with pytest.raises(PreemptedError, match=r"stopped .* state saved"):
        evaluate.evaluate_experiment(staged, workdir, devices(), print, Asked(at))
    rest = Asked(None)
    found = evaluate.evaluate_experiment(staged, workdir, devices(), print, rest)
    assert without_seconds(found) == without_seconds(expected)
    # One question before each attack and one after each batch; a batch that was done is not attacked again.
    assert rest.count < count
    assert not os.path.exists(f"{workdir}/unfinished")
