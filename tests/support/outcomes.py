"""Outcomes made up for tests."""

import numpy as np

from advjax.evaluation.outcomes import Outcome

N = 10
"""Number of images in each outcome."""


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


def base_and_fixer() -> list[Outcome]:
    return [
        make_outcome(wrong=[0, 1]),
        make_outcome("fixer", "pgd", made_on="base", wrong=[0, 9]),
        make_outcome("fixer", "pgd", made_on="fixer", wrong=range(1, N)),
    ]
