import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from advjax.evaluation import report as report_lib
from advjax.evaluation.outcomes import correct_index
from advjax.evaluation.report import Report, Row
from advjax.runtime.environment import describe_environment
from advjax.types import UserError
from support.outcomes import N, base_and_fixer, make_outcome


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
        "median_distance": None,
        "mean_distance": None,
        "no_progress": 0,
    }


def test_subsets_are_positions_in_the_split():
    outcomes = base_and_fixer()
    base_correct = correct_index(outcomes[0])
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


def test_minimum_norm_attacks_have_a_median_distance_and_no_robust_accuracy():
    distances = np.arange(10) / 10
    outcome = make_outcome("base", "cw", made_on="base", epsilon=None, wrong=range(8))._replace(distances=distances)
    whole, few = report_lib.rows([outcome], {"few": np.array([0, 1, 2, 9])})
    # Eight at 0 to 0.7, two infinitely far away.
    assert whole["median_distance"] == pytest.approx(0.45)
    assert few["median_distance"] == pytest.approx(0.15)
    assert report_lib.is_on_itself(whole) and not report_lib.is_robust_accuracy(whole)
    mostly_right = outcome._replace(predictions=make_outcome("base", wrong=[0, 1]).predictions)
    assert report_lib.rows([mostly_right])[0]["median_distance"] is None
    bounded = make_outcome("base", "pgd", made_on="base", wrong=range(10))
    assert report_lib.rows([bounded])[0]["median_distance"] is None


def test_attacks_without_an_epsilon_have_a_mean_distance_over_the_images_that_they_changed():
    distances = np.arange(10) / 10
    outcome = make_outcome("base", "cw", made_on="base", epsilon=None, wrong=range(5))._replace(distances=distances)
    whole, few, unchanged = report_lib.rows([outcome], {"few": np.array([0, 1, 2, 9]), "unchanged": np.array([0])})
    # Whether or not an image is misclassified now: the first is as it was.
    assert whole["mean_distance"] == pytest.approx(0.5)
    assert few["mean_distance"] == pytest.approx(0.4)
    assert unchanged["mean_distance"] is None
    assert report_lib.rows([outcome._replace(epsilon=math.inf)])[0]["mean_distance"] == whole["mean_distance"]
    assert report_lib.rows([outcome._replace(epsilon=0.5)])[0]["mean_distance"] is None


def test_only_an_attack_on_the_scored_run_is_robust_accuracy():
    clean, transfer, adaptive = report_lib.rows(base_and_fixer())
    assert [report_lib.is_robust_accuracy(row) for row in (clean, transfer, adaptive)] == [False, False, True]
    assert not report_lib.is_robust_accuracy(Row(**(transfer | {"adaptive": True})))


def test_report_survives_the_disk(tmp_path):
    outcomes = base_and_fixer()
    report = make_report(outcomes, environment=describe_environment())
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


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no report at"),
        ("not json", "not a readable JSON file"),
        ("[]", "schema_version None"),
        ('{"schema_version": 99}', "99"),
        ('{"schema_version": 1, "title": ""}', "not a complete report"),
    ],
)
def test_reading_something_else_is_a_user_error(tmp_path, content, message):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        report_lib.read_report(path)
    assert "\n" not in str(error.value)
