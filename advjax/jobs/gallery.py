"""The adversarial images that a report shows, with what each model predicts for them."""

from collections.abc import Mapping, Sequence

import numpy as np

from advjax.data import Dataset, pixels
from advjax.evaluation.attacker_knowledge import OBLIVIOUS, TRANSFER
from advjax.evaluation.few_images import ranked
from advjax.evaluation.outcomes import Outcome, correct_index
from advjax.evaluation.scored_model import ScoredModel
from advjax.experiment.spec import EvaluationPlan
from advjax.jobs.attack_matrix import Measured
from advjax.reporting.html_page import GalleryItem, Prediction


def gallery(
    plan: EvaluationPlan,
    measured: Measured,
    models: Sequence[ScoredModel],
    clean: Mapping[str, Outcome],
    test: Dataset,
    seed: int,
) -> list[GalleryItem]:
    """Some images that the base classifies correctly, under the pictured attack, with the predictions on them.

    Empty for images that are neither gray nor in color.
    """
    if test.image_shape[-1] not in (1, 3):
        return []
    is_right = np.isin(test.index, correct_index(clean[plan.made_on[0]]))
    order = ranked(test.labels, test.name, seed)
    chosen = np.sort(order[is_right[order]][: plan.num_pictures])
    # The prediction -1, of logits that are NaN, takes the last name.
    originals, names = pixels(test.images), (*test.class_names, "none (NaN)")
    by_name = {(model.run, model.defense): model.name for model in models}
    items = []
    for run, seen in measured.shown:
        if run.attack.name != plan.pictured:
            continue
        for i in chosen:
            predictions = []
            for outcome in seen:
                name = by_name[outcome.run, outcome.defense]
                before, after = names[clean[name].predictions[i]], names[outcome.predictions[i]]
                predictions.append(Prediction(name, before, after, _relation(outcome)))
            items.append(
                GalleryItem(
                    caption=run.attack.name,
                    made_on=run.source.name,
                    given="" if run.labels == "true" else "given its predicted labels",
                    original=originals[i],
                    adversarial=run.result.images[i],
                    label=names[test.labels[i]],
                    predictions=predictions,
                )
            )
    return items


def _relation(outcome: Outcome) -> str:
    """What the attack was to the model whose prediction is shown."""
    if outcome.adaptive:
        return "adaptive" if outcome.label_use == "true" else "predicted labels"
    return {OBLIVIOUS: "oblivious", TRANSFER: "transfer"}.get(outcome.knowledge, outcome.knowledge)
