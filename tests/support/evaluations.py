"""Complete evaluations made up for tests."""

import numpy as np

from advjax.evaluation import report
from advjax.evaluation.outcomes import Outcome
from advjax.reporting.comparison import Evaluation

LABELS = np.zeros(20, np.int32)
CONFIG = {
    "data": {"name": "digits", "test_split": "test", "image_size": 0},
    "evaluation": {"attacks": {"order": ["pgd"], "pgd": {"name": "pgd", "epsilon": "8/255"}}},
}


def outcome(wrong, run="base", attack="pgd", index=range(20), **changes):
    predictions = LABELS.copy()
    predictions[list(wrong)] = 1
    is_clean = attack == "clean"
    facts = {
        **dict(run=run, split="test", attack=attack, norm=None if is_clean else "linf", defense="none"),
        **dict(epsilon=None if is_clean else 8 / 255, made_on=None if is_clean else run, adaptive=not is_clean),
        **dict(knowledge="none" if is_clean else "everything", protocol="sound", label_use="true", seed=0),
        **dict(eot_samples=1, seconds=1.0, model_hash="00", index=np.array(list(index), np.int32), labels=LABELS),
        **dict(predictions=predictions, distances=np.zeros(20, np.float32), steps=np.zeros(20, np.int32)),
    }
    return Outcome(**{**facts, **changes})


def evaluation(*outcomes, config=CONFIG):
    found = report.Report(1, "t", config, {}, report.rows(outcomes), [], [], [], [])
    return Evaluation(found, list(outcomes))
