import math

import numpy as np
import pytest

from advjax.evaluation.statistics import interval_over_seeds, mcnemar, spread_over_fifths, wilson_interval


@pytest.mark.parametrize("successes, n", [(0, 10), (3, 10), (10, 10), (950, 1000), (9999, 10_000)])
def test_wilson_interval_solves_the_score_equation(successes, n):
    z = 1.959963984540054
    p = successes / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(wilson_interval(successes, n), (center - half, center + half), atol=1e-12)


def test_wilson_interval_has_a_width_where_the_usual_interval_has_none():
    low, high = wilson_interval(0, 1000)
    assert low == 0.0
    assert 0.003 < high < 0.004
    assert wilson_interval(1000, 1000) == (pytest.approx(1 - high), 1.0)


def test_wilson_interval_widens_with_confidence_and_narrows_with_images():
    def width(*arguments):
        low, high = wilson_interval(*arguments)
        return high - low

    assert width(50, 100, 0.99) > width(50, 100, 0.95) > width(500, 1000, 0.95)


def test_wilson_interval_of_no_images_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("successes, n", [(-1, 10), (11, 10), (1, 0)])
def test_wilson_interval_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="is not in"):
        wilson_interval(successes, n)


def test_spread_is_the_sample_standard_deviation_of_contiguous_parts():
    correct = np.repeat([1, 1, 1, 1, 0], 20).astype(bool)
    assert spread_over_fifths(correct) == pytest.approx(math.sqrt((4 * 0.2**2 + 0.8**2) / 4))
    # The same images interleaved: every fifth has the same accuracy.
    assert spread_over_fifths(np.tile([1, 1, 1, 1, 0], 20).astype(bool)) == 0.0


def test_spread_uses_every_image_when_five_does_not_divide():
    assert spread_over_fifths(np.array([1, 1, 1, 1, 1, 1, 0], bool)) == pytest.approx(np.std([1, 1, 1, 1, 0], ddof=1))


def test_spread_needs_five_images_and_one_axis():
    assert spread_over_fifths(np.ones(4, bool)) is None
    assert spread_over_fifths(np.ones(5, bool)) == 0.0
    with pytest.raises(ValueError, match="shape"):
        spread_over_fifths(np.ones((5, 2), bool))


def test_mcnemar_is_a_sign_test_on_the_images_that_differ():
    first = np.array([1] * 9 + [0] * 1 + [1] * 50, dtype=bool)
    second = np.array([0] * 9 + [1] * 1 + [1] * 50, dtype=bool)
    # Of 10 images 9 or more fall on one side with probability 2 * (10 + 1) / 2**10.
    assert mcnemar(first, second) == pytest.approx(22 / 1024)
    assert mcnemar(first, second) == mcnemar(second, first)
    assert mcnemar(first, first) == 1
    with pytest.raises(ValueError, match="one entry per image"):
        mcnemar(first, second[1:])


def test_interval_over_seeds_by_hand():
    # t(0.975, 2) = 4.302653: half-width over seeds 4.302653 * 0.02 / sqrt(3).
    over_seeds = 4.302653 * 0.02 / 3**0.5
    low, high = wilson_interval(500, 1000)
    found = interval_over_seeds([0.48, 0.50, 0.52], 1000)
    assert found[0] == pytest.approx(0.5 - (over_seeds**2 + (0.5 - low) ** 2) ** 0.5, abs=1e-6)
    assert found[1] == pytest.approx(0.5 + (over_seeds**2 + (high - 0.5) ** 2) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 1.0])
def test_equal_seeds_leave_the_interval_over_images(accuracy):
    assert interval_over_seeds([accuracy] * 4, 200) == pytest.approx(wilson_interval(round(200 * accuracy), 200))


def test_an_interval_over_seeds_stays_inside_and_needs_two():
    assert interval_over_seeds([0.0, 1.0], 10) == (0.0, 1.0)
    with pytest.raises(ValueError, match="two at least, got 1"):
        interval_over_seeds([0.5], 10)
