"""The sentences that tell readers of a report what its numbers mean.

Terminal, page and plots take them from here, so that all say the same about what is robust accuracy and what is not.
"""

from collections.abc import Collection

ROBUST_ACCURACY = (
    "Robust accuracy: accuracy under an adaptive attack, one crafted on the scored model itself with its defense in "
    "the loop, using true labels and bounded perturbations. It is an upper bound: a stronger attack can only lower it."
)
NOT_ROBUST_ACCURACY = (
    "Transfer: crafted on a different model, without access to the scored one; this is not robust accuracy. "
    "Oblivious: crafted on the same model without its defense; this is not robust accuracy either."
)
INTERVALS = (
    "[low, high]: 95% Wilson interval. ±: standard deviation over five equal parts of the test images. Both capture "
    "variability across test images, not across training seeds."
)
BASE_CORRECT = "Base-correct: only the images that the base run classifies correctly without any attack."
MEDIAN_DISTANCE = (
    "Median distance: size of the perturbation that fools the scored model on half of the images, found by a "
    "minimum-norm attack on the model itself; images misclassified without any perturbation count as 0."
)
TERMS = {
    "faithful": "Faithful: follows a paper's own protocol, flaws included, for comparison with its published numbers.",
    "predicted labels": "Predicted labels: the attack is given the model's own predictions as labels, so it may push "
    "misclassified images into the correct class.",
}
"""Explanations of ``AttackSource.terms``."""
_SUMMARY = "Robust accuracy: the per-image worst case over all attacks crafted on the scored model itself."
_COLUMNS = {
    "white_box": "White-box: those of them that use gradients through the model and its defense.",
    "queries": "Query: those of them that use its outputs alone.",
    "transfer": "Transfer: worst case over attacks crafted on a different model; not robust accuracy.",
    "oblivious": "Oblivious: the same, crafted on the same model without its defense; not robust accuracy either.",
}
"""Key of a column of the summary -> its explanation."""
REPORT_CARD = (
    "Checks that the evaluation itself is sound. A failed check is not a property of the model: it means that the "
    "accuracies measured on it may be too high."
)
NOISE = (
    "Accuracy on images with random noise, the same noise for every model. The noise is not optimized against any "
    "model, so this says nothing about adversarial robustness."
)


def summary(columns: Collection[str]) -> str:
    """What the columns of the summary mean, as far as it has them."""
    return " ".join([_SUMMARY, *(text for key, text in _COLUMNS.items() if key in columns)])


def no_adaptive_attack(model: str) -> str:
    """Warning below the results of a model that only other models' adversarial examples were tried on."""
    return f"No attack was crafted on {model} itself: these results are no evidence of robustness."
