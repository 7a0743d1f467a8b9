"""Comparison of models: which differ by more than chance, and which cannot be compared."""

import io

import numpy as np
import pytest
from rich.console import Console

from advjax.evaluation import report
from advjax.evaluation.outcomes import write_outcomes
from advjax.reporting import comparison
from advjax.types import UserError
from support.evaluations import CONFIG, evaluation, outcome


def clean_and_attacked(wrong, **changes):
    return evaluation(outcome([0], attack="clean", **changes), outcome(wrong, **changes))


def test_a_pair_is_compared_image_by_image():
    found = comparison.correctness({"a": clean_and_attacked(range(12)), "b": clean_and_attacked([0, 1, 15])})
    pairs = comparison.pairs(found)
    assert [(pair.threat, pair.first, pair.second) for pair in pairs] == [
        ("clean", "a: base", "b: base"),
        ("linf 8/255", "a: base", "b: base"),
    ]
    # Image 15 is correct for the first alone, ten images for the second alone: 2 * (1 + 11) / 2 ** 11.
    assert (pairs[1].only_first, pairs[1].only_second) == (1, 10)
    np.testing.assert_allclose(pairs[1].p_value, 24 / 2048)
    assert pairs[0].p_value == 1


def test_an_image_counts_as_correct_only_under_all_attacks():
    other = {**CONFIG["evaluation"]["attacks"], "fab": {"name": "fab"}}
    config = {**CONFIG, "evaluation": {"attacks": other}}
    found = evaluation(outcome([0], attack="clean"), outcome([1, 2]), outcome([2, 3], attack="fab"), config=config)
    (clean, robust) = comparison.correctness({"": found})
    assert (clean.model, robust.model) == ("base", "base")
    assert robust.accuracy["accuracy"] == 17 / 20 and clean.accuracy["accuracy"] == 19 / 20
    transfer = outcome(range(20), run="other", made_on="base", adaptive=False, knowledge="source model")
    found = evaluation(outcome([0], attack="clean", run="other"), transfer)
    assert [entry.threat for entry in comparison.correctness({"": found})] == ["clean"]


@pytest.mark.parametrize(
    "changes, obstacle",
    [
        ({"index": range(20, 40)}, "different images"),
        ({"labels": np.arange(20, dtype=np.int32) % 2}, "different labels"),
    ],
)
def test_different_images_are_not_compared(changes, obstacle):
    pairs = comparison.pairs(
        comparison.correctness({"a": clean_and_attacked([1]), "b": clean_and_attacked([1], **changes)})
    )
    assert [(pair.p_value, pair.obstacle) for pair in pairs] == [(None, obstacle)] * 2


@pytest.mark.parametrize("one, other", [({"fingerprint": "a"}, {"fingerprint": "b"}), ({"dir": "a"}, {"dir": "b"})])
def test_images_of_equal_names_and_labels_are_not_compared(one, other):
    configs = [{**CONFIG, "data": {**CONFIG["data"], "name": "npz", **data}} for data in (one, other, one)]
    outcomes = clean_and_attacked([1]).outcomes
    first, second, third = (evaluation(*outcomes, config=config) for config in configs)
    assert {pair.obstacle for pair in comparison.pairs(comparison.correctness({"a": first, "b": second}))} == {
        "different data"
    }
    assert {pair.obstacle for pair in comparison.pairs(comparison.correctness({"a": first, "b": third}))} == {""}


def test_different_data_and_different_attacks_are_not_compared():
    first = clean_and_attacked([1])
    data = {**CONFIG, "data": {**CONFIG["data"], "name": "mnist"}}
    stronger = {**CONFIG, "evaluation": {"attacks": {"pgd": {"name": "pgd", "epsilon": "8/255", "num_steps": 9}}}}
    for config, expected in [(data, ["different data", "different data"]), (stronger, ["", "different attacks"])]:
        second = evaluation(*first.outcomes, config=config)
        pairs = comparison.pairs(comparison.correctness({"a": first, "b": second}))
        assert [pair.obstacle for pair in pairs] == expected


def test_the_printed_comparison():
    text = io.StringIO()
    evaluations = {"a": clean_and_attacked(range(12)), "b": clean_and_attacked([0], index=range(20, 40))}
    comparison.print_comparison(evaluations, Console(file=text))
    lines = text.getvalue().splitlines()
    assert "robust accuracy" in text.getvalue() and "McNemar" in text.getvalue()
    assert any("a: base" in line and "95.0 [" in line and "40.0 [" in line for line in lines)
    assert any("linf 8/255" in line and "not comparable: different images" in line for line in lines)


def test_files_of_different_evaluations_are_rejected(tmp_path):
    with pytest.raises(UserError, match="no report at"):
        comparison.read_evaluation(tmp_path)
    found = clean_and_attacked([1])
    report.write(found.report, found.outcomes, tmp_path)
    again = comparison.read_evaluation(tmp_path)
    assert again.report == found.report and len(again.outcomes) == 2
    write_outcomes(clean_and_attacked([1, 2]).outcomes, tmp_path / "outcomes.npz")
    with pytest.raises(UserError, match="are from different evaluations: evaluate again"):
        comparison.read_evaluation(tmp_path)
    (tmp_path / "outcomes.npz").unlink()
    with pytest.raises(UserError, match=r"has report\.json but no outcomes\.npz"):
        comparison.read_evaluation(tmp_path)
