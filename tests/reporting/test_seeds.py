"""Mean and standard deviation over training seeds."""

import numpy as np
import pytest
from rich.console import Console

from advjax.evaluation.report import Report, Summary, SummaryCell
from advjax.reporting.seeds import Evaluation, over_seeds, seed_table


def evaluation(seed, robust, **changes):
    def cell(accuracy):
        return SummaryCell(n=10, accuracy=accuracy, low=0.0, high=1.0)

    kinds = dict.fromkeys(("oblivious", "transfer", "white_box", "queries"))
    entry = Summary(run="net", defense="none", norm="linf", epsilon=0.1, clean=cell(0.9), robust=cell(robust), **kinds)
    config = {"seed": seed, "title": f"seed {seed}", "data": {"name": "digits", "dir": f"/data/{seed}"}, **changes}
    return Evaluation(Report(1, "", config, {}, [], [], [entry], [], []), [])


def test_mean_and_standard_deviation_are_over_seeds():
    sweep = {str(seed): evaluation(seed, robust) for seed, robust in ((3, 0.5), (1, 0.4), (2, 0.3))}
    clean, robust = over_seeds(sweep)
    assert (clean.model, clean.threat, clean.mean, clean.std) == ("net", "clean", 0.9, 0)
    assert robust.seeds == (1, 2, 3) and robust.accuracies == (0.4, 0.3, 0.5)
    assert (robust.mean, robust.std) == pytest.approx((0.4, np.std([0.3, 0.4, 0.5], ddof=1)))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(seed_table([clean, robust]))
    assert "40.0 ± 10.0" in captured.get() and "1, 2, 3" in captured.get()


def test_what_differs_in_more_than_the_seed_is_no_sweep():
    assert over_seeds({"a": evaluation(0, 0.5), "b": evaluation(1, 0.4, runs=["net"])}) == []
    assert over_seeds({"a": evaluation(0, 0.5), "again": evaluation(0, 0.5)}) == []
