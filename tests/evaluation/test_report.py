import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from advjax.evaluation import report as report_lib
from advjax.evaluation.report import Outcome, Report, Row
from advjax.types import UserError

N = 10


def make_outcome(run="base", attack="clean", made_on=None, wrong=(), **changes) -> Outcome:
    labels = np.arange(N) % 3
    predictions = np.where(np.isin(np.arange(N), list(wrong)), (labels + 1) % 3, labels)
    adaptive = made_on == run
    knowledge = "none" if made_on is None else "everything" if adaptive else "source model"
    outcome = Outcome(
        run=run,
        split="test",
        attack=attack,
        norm=None if made_on is None else "linf",
        epsilon=None if made_on is None else 8 / 255,
        made_on=made_on,
        adaptive=adaptive,
        knowledge=knowledge,
        defense="none",
        protocol="sound",
        label_use="true",
        seed=0,
        eot_samples=1,
        seconds=1.23456,
        model_hash=f"hash of {run}",
        index=np.arange(N),
        labels=labels,
        predictions=predictions,
        distances=np.full(N, 0.03, np.float32),
        steps=np.full(N, 7),
    )
    return outcome._replace(**changes)


def make_report(outcomes, **changes) -> Report:
    report = Report(
        report_lib.SCHEMA_VERSION,
        "Title",
        {"seed": 0},
        {"versions": {}},
        report_lib.rows(outcomes),
        ["note"],
        [],
        [],
        [],
    )
    return report._replace(**changes)


def base_and_fixer() -> list[Outcome]:
    return [
        make_outcome(wrong=[0, 1]),
        make_outcome("fixer", "pgd", made_on="base", wrong=[0, 9]),
        make_outcome("fixer", "pgd", made_on="fixer", wrong=range(1, N)),
    ]


def test_rows_hold_exactly_the_contract():
    row = report_lib.rows([make_outcome("fixer", "pgd", made_on="base", wrong=[0, 9])])[0]
    assert set(row) == set(Row.__annotations__)
    assert row == {
        "run": "fixer",
        "split": "test",
        "subset": "all",
        "attack": "pgd",
        "norm": "linf",
        "epsilon": 8 / 255,
        "made_on": "base",
        "adaptive": False,
        "knowledge": "source model",
        "defense": "none",
        "protocol": "sound",
        "labels": "true",
        "seed": 0,
        "eot_samples": 1,
        "n": 10,
        "accuracy": 0.8,
        "low": pytest.approx(0.490162, abs=1e-6),
        "high": pytest.approx(0.943318, abs=1e-6),
        "sd_fifths": pytest.approx(np.std([0.5, 1, 1, 1, 0.5], ddof=1)),
        "seconds": 1.235,
        "model_hash": "hash of fixer",
    }


def test_subsets_are_positions_in_the_split():
    outcomes = base_and_fixer()
    base_correct = report_lib.correct_index(outcomes[0])
    np.testing.assert_array_equal(base_correct, np.arange(2, N))
    rows = report_lib.rows(outcomes, {"base_correct": base_correct})
    found = {(row["run"], row["adaptive"], row["subset"]): (row["n"], row["accuracy"]) for row in rows}
    assert found == {
        ("base", False, "all"): (10, 0.8),
        ("base", False, "base_correct"): (8, 1.0),
        ("fixer", False, "all"): (10, 0.8),
        ("fixer", False, "base_correct"): (8, 0.875),
        ("fixer", True, "all"): (10, 0.1),
        ("fixer", True, "base_correct"): (8, 0.0),
    }


def test_rows_do_not_depend_on_the_order_of_the_images():
    outcome = base_and_fixer()[1]
    order = np.random.default_rng(0).permutation(N)
    arrays = {
        field: getattr(outcome, field)[order] for field in ("index", "labels", "predictions", "distances", "steps")
    }
    subsets = {"some": np.array([9, 3, 0, 4, 5, 6])}
    assert report_lib.rows([outcome._replace(**arrays)], subsets) == report_lib.rows([outcome], subsets)


def test_empty_subset_has_no_accuracy():
    row = report_lib.rows([make_outcome()], {"none": np.array([], int)})[1]
    assert (row["n"], row["accuracy"], row["low"], row["high"], row["sd_fifths"]) == (0, None, 0.0, 1.0, None)


def test_minimum_norm_attacks_have_no_epsilon():
    for epsilon in (None, math.inf):
        assert report_lib.rows([make_outcome("base", "cw", made_on="base", epsilon=epsilon)])[0]["epsilon"] is None


def test_only_an_attack_on_the_scored_run_is_robust_accuracy():
    clean, transfer, adaptive = report_lib.rows(base_and_fixer())
    assert [report_lib.is_robust_accuracy(row) for row in (clean, transfer, adaptive)] == [False, False, True]
    assert not report_lib.is_robust_accuracy(Row(**(transfer | {"adaptive": True})))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"adaptive": True, "knowledge": "everything"}, "made on the run that is scored"),
        ({"made_on": "fixer"}, "made on the undefended run itself is adaptive"),
        ({"knowledge": "everything"}, "exactly for adaptive"),
        ({"knowledge": "none"}, "exactly for clean"),
        ({"made_on": None}, "made_on must be None exactly for clean"),
        ({"attack": "clean"}, "made_on must be None exactly for clean"),
        ({"protocol": "paper"}, "protocol"),
        ({"label_use": "guessed"}, "label_use"),
        ({"steps": np.zeros(N - 1)}, "one entry per image"),
        ({"index": np.zeros(N, int)}, "only once"),
    ],
)
def test_outcomes_that_would_mislead_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"outcome fixer/.*{message}"):
        report_lib.rows([make_outcome("fixer", "pgd", made_on="base")._replace(**changes)])


def test_repeated_outcomes_and_several_splits_are_refused():
    with pytest.raises(ValueError, match="given twice"):
        report_lib.rows([make_outcome(), make_outcome(seconds=9.0)])
    with pytest.raises(ValueError, match="several splits"):
        report_lib.rows([make_outcome(), make_outcome(split="validation")])


def test_report_survives_the_disk(tmp_path):
    outcomes = base_and_fixer()
    report = make_report(outcomes, environment=report_lib.describe_environment())
    report_lib.write(report, outcomes, tmp_path / "new" / "folder")
    assert report_lib.read_report(tmp_path / "new" / "folder" / "report.json") == report
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["outcomes.npz", "report.json"]


def test_json_is_strict_and_starts_with_its_version(tmp_path):
    config = {
        "epsilon": math.inf,
        "nan": jnp.float32(math.nan),
        "shape": (np.int64(2), 3),
        "weights": np.eye(2),
        1: True,
    }
    outcomes = base_and_fixer()
    report_lib.write(make_report(outcomes, config=config), outcomes, tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert next(iter(content)) == "schema_version"
    assert content["config"] == {"epsilon": None, "nan": None, "shape": [2, 3], "weights": [[1, 0], [0, 1]], "1": True}


def test_a_config_json_cannot_say_is_refused_and_leaves_nothing(tmp_path):
    outcomes = base_and_fixer()
    with pytest.raises(TypeError, match=r"report\.config\.runs\[1\] is a builtin_function_or_method"):
        report_lib.write(make_report(outcomes, config={"runs": [0, print]}), outcomes, tmp_path)
    assert not os.listdir(tmp_path)


def test_equal_evaluations_give_equal_bytes(tmp_path):
    for name in ("first", "second"):
        outcomes = base_and_fixer()
        report_lib.write(make_report(outcomes), outcomes, tmp_path / name)
    for file in ("report.json", "outcomes.npz"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_outcomes_are_read_back_in_data_set_order_without_pickle(tmp_path):
    outcome = base_and_fixer()[1]
    arrays = {
        field: getattr(outcome, field)[::-1] for field in ("index", "labels", "predictions", "distances", "steps")
    }
    arrays["distances"] = np.arange(N, dtype=np.float32)[::-1]
    report_lib.write_outcomes([make_outcome(), outcome._replace(**arrays)], tmp_path / "outcomes.npz")
    with np.load(tmp_path / "outcomes.npz", allow_pickle=False) as entries:
        assert json.loads(entries["outcomes"].item())[1]["made_on"] == "base"
        np.testing.assert_array_equal(entries["1/predictions"], outcome.predictions)
    clean, read = report_lib.read_outcomes(tmp_path / "outcomes.npz")
    assert clean.attack == "clean"
    np.testing.assert_array_equal(read.distances, np.arange(N, dtype=np.float32))
    assert read.distances.dtype == np.float32
    assert report_lib.rows([read]) == report_lib.rows([outcome])


def test_outcomes_stay_small(tmp_path):
    n = 10_000
    predictions = np.random.default_rng(0).integers(0, 10, n)
    arrays = {"index": np.arange(n), "labels": predictions, "distances": np.zeros(n, np.float32), "steps": np.zeros(n)}
    report_lib.write_outcomes([make_outcome(predictions=predictions, **arrays)], tmp_path / "outcomes.npz")
    assert (tmp_path / "outcomes.npz").stat().st_size < 60_000


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    report_lib.write_atomically(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report_lib.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no report at"),
        ("not json", "no JSON file"),
        ("[]", "schema_version None"),
        ('{"schema_version": 99}', "99"),
    ],
)
def test_reading_something_else_is_a_user_error(tmp_path, content, message):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        report_lib.read_report(path)
    assert "\n" not in str(error.value)


def test_environment_names_versions_and_devices():
    environment = report_lib.describe_environment()
    assert {"python", "jax", "flax"} <= set(environment["versions"])
    assert environment["device_count"] >= 1
    assert environment["device_kind"]
    assert environment == report_lib.describe_environment()
