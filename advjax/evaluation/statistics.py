"""How far a measured accuracy can be trusted: over the test images and, if it was trained several times, over seeds."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

FIFTHS = 5


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    The proportions p that a score test does not reject: ``|successes/n - p| <= z * sqrt(p * (1 - p) / n)`` with z the
    two-sided normal quantile.  Unlike the usual ``p ± z * sd`` it stays inside [0, 1] and keeps a width at 0 % and at
    100 %, which is where robust and clean accuracies live.  It covers the choice of test images only.

    Args:
      successes: how many of the ``n`` images count, 0..n.
      n: number of images; 0 says nothing and gives (0, 1).
      confidence: probability of covering the true proportion, strictly between 0 and 1.

    Returns:
      ``(low, high)``, fractions in [0, 1].

    Raises:
      ValueError: counts outside 0..n.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} is not in 0..n={n}")
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def interval_over_seeds(accuracies: Sequence[float], n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean accuracy of a model that was trained several times, over seeds and test images.

    The images are the same for every seed, so more seeds do not make their choice matter less.  The distance to an end
    is ``sqrt(t^2 + w^2)``: t the half-width of Student's interval of the mean over seeds, w the distance of that end of
    the Wilson interval of the mean over the images.  With two seeds t is nine times their standard deviation; if they
    are equal, the interval over images is left.

    Args:
      accuracies: of each seed, fractions in [0, 1]; at least two.
      n: number of test images.
      confidence: probability of covering the true accuracy, strictly between 0 and 1.

    Returns:
      ``(low, high)``, fractions in [0, 1].

    Raises:
      ValueError: fewer than two seeds.
    """
    count = len(accuracies)
    if count < 2:
        raise ValueError(f"an interval over seeds needs two at least, got {count}")
    mean = float(np.mean(accuracies))
    over_seeds = stats.t.ppf((1 + confidence) / 2, count - 1) * np.std(accuracies, ddof=1) / np.sqrt(count)
    low, high = wilson_interval(round(mean * n), n, confidence)
    below, above = np.hypot(over_seeds, (mean - low, high - mean))
    return max(0.0, mean - float(below)), min(1.0, mean + float(above))


def spread_over_fifths(correct: np.ndarray) -> float | None:
    """Standard deviation of the accuracy over five contiguous parts of the test images.

    The sample standard deviation (divisor 4, as papers print it) of the five accuracies.  The parts are as equal as
    ``n`` allows: their sizes differ by one image at most.  This is a spread over test images of ONE trained model; it
    says nothing about training again with another seed and must be labelled so wherever it is printed.

    Args:
      correct: bool [n], in data set order.

    Returns:
      A fraction, or None for fewer than five images.
    """
    correct = np.asarray(correct, dtype=bool)
    if correct.ndim != 1:
        raise ValueError(f"correct has shape {correct.shape}; expected one entry per image, [n]")
    if correct.size < FIFTHS:
        return None
    return float(np.std([part.mean() for part in np.array_split(correct, FIFTHS)], ddof=1))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact McNemar test of two accuracies on the same images.

    Of the images that only one of two models (or the same model under one of two attacks) has right, each is as likely
    to be the first's as the second's if the two are equally accurate: a two-sided sign test on those images.

    Args:
      first: bool [n], correct images.
      second: bool [n], of the same images in the same order.

    Returns:
      The p-value; 1 if they agree on every image.

    Raises:
      ValueError: the shapes differ.

    McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"both need one entry per image, got shapes {first.shape} and {second.shape}")
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)
