"""Means of accuracies: over networks of several seeds, and over rows of one report."""

import statistics
from collections.abc import Iterable, Sequence

from advjax.evaluation.statistics import interval_over_seeds
from advjax.papers.join import Accuracy


def over_seeds(known: Sequence[Accuracy]) -> Accuracy | None:
    """The mean over seeds, with an interval over seeds and images where both can be told; None of none."""
    if len(known) < 2:
        return known[0] if known else None
    mean, counts = _mean(known), [accuracy.n for accuracy in known if accuracy.interval and accuracy.n]
    if len(counts) < len(known):
        return mean
    # Networks may be scored on other images each, such as those that the base has right: the fewest say the least.
    n = min(counts)
    low, high = interval_over_seeds([accuracy.value / 100 for accuracy in known], n)
    return mean._replace(n=n, interval=(100 * low, 100 * high))


def over_rows(asked: Iterable[Accuracy | None]) -> Accuracy | None:
    """The mean of rows, with that of their intervals: the rows are of the same images and err together.

    None if one of them is missing.
    """
    found = list(asked)
    known = [accuracy for accuracy in found if accuracy is not None]
    if not known or len(known) < len(found):
        return None
    mean, intervals = _mean(known), [accuracy.interval for accuracy in known if accuracy.interval]
    if len(intervals) < len(known):
        return mean
    lows, highs = zip(*intervals, strict=True)
    return mean._replace(interval=(statistics.mean(lows), statistics.mean(highs)))


def _mean(known: Sequence[Accuracy]) -> Accuracy:
    """The mean of several, without an interval."""
    distances = [accuracy.distance for accuracy in known if accuracy.distance is not None]
    return Accuracy(
        statistics.mean(accuracy.value for accuracy in known),
        None,
        known[0].n,
        attacked=" or ".join(sorted({accuracy.attacked for accuracy in known} - {""})),
        draws=min((accuracy.draws for accuracy in known if accuracy.draws), default=None),
        distance=statistics.mean(distances) if len(distances) == len(known) else None,
        norm=known[0].norm if len(distances) == len(known) else "",
    )
