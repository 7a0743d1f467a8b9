"""What every image did: contradictions are refused, and the file gives back what was written."""

import json

import numpy as np
import pytest

from advjax.evaluation.outcomes import check, read_outcomes, write_outcomes
from advjax.evaluation.report import rows
from support.outcomes import N, base_and_fixer, make_outcome


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
        check([make_outcome("fixer", "pgd", made_on="base")._replace(**changes)])


def test_repeated_outcomes_and_several_splits_are_refused():
    with pytest.raises(ValueError, match="given twice"):
        check([make_outcome(), make_outcome(seconds=9.0)])
    with pytest.raises(ValueError, match="several splits"):
        check([make_outcome(), make_outcome(split="validation")])


def test_outcomes_are_read_back_in_data_set_order_without_pickle(tmp_path):
    outcome = base_and_fixer()[1]
    arrays = {
        field: getattr(outcome, field)[::-1] for field in ("index", "labels", "predictions", "distances", "steps")
    }
    arrays["distances"] = np.arange(N, dtype=np.float32)[::-1]
    write_outcomes([make_outcome(), outcome._replace(**arrays)], tmp_path / "outcomes.npz")
    with np.load(tmp_path / "outcomes.npz", allow_pickle=False) as entries:
        assert json.loads(entries["outcomes"].item())[1]["made_on"] == "base"
        np.testing.assert_array_equal(entries["1/predictions"], outcome.predictions)
    clean, read = read_outcomes(tmp_path / "outcomes.npz")
    assert clean.attack == "clean"
    np.testing.assert_array_equal(read.distances, np.arange(N, dtype=np.float32))
    assert read.distances.dtype == np.float32
    assert rows([read]) == rows([outcome])


def test_outcomes_stay_small(tmp_path):
    n = 10_000
    predictions = np.random.default_rng(0).integers(0, 10, n)
    arrays = {"index": np.arange(n), "labels": predictions, "distances": np.zeros(n, np.float32), "steps": np.zeros(n)}
    write_outcomes([make_outcome(predictions=predictions, **arrays)], tmp_path / "outcomes.npz")
    assert (tmp_path / "outcomes.npz").stat().st_size < 60_000
