"""Verdicts of stochastic models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.defenses.majority_vote import majority
from advjax.evaluation.scored_model import ScoredModel, predict


@pytest.mark.parametrize(
    "votes, expected",
    [
        ([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.0, 0.0, 1.0]], 0),
        ([[0.5, 0.3, 0.2], [0.1, 0.0, 0.9]], 2),
        ([[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4]], 0),
        ([[0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.4, 0.3, 0.3], [0.1, 0.5, 0.4]], 1),
        # The most probable class of all has no vote, so it is not among those that are tied.
        ([[0.50, 0.01, 0.49], [0.01, 0.51, 0.48]], 1),
    ],
    ids=["majority", "tie of two", "tie of three", "tie after four", "the tied alone"],
)
def test_the_majority_wins_and_of_tied_classes_the_more_probable(votes, expected):
    logits = jnp.log(jnp.array(votes))[:, None] + 7
    np.testing.assert_array_equal(majority(logits), [expected])


def test_a_verdict_of_two_votes_is_no_more_for_the_first_class_than_for_another():
    def draw(images, rng):
        return 2 * jax.random.normal(rng, (len(images), 3))

    model = ScoredModel("run", "defense", lambda variables: draw, {}, "", num_draws=1, num_votes=2)
    verdicts = predict(model, {}, jnp.zeros((3000, 1, 1, 1)), jax.random.split(jax.random.key(0), 3000))
    # The standard deviation of a share is 0.009; were ties for the first class, it would have 5/9.
    np.testing.assert_allclose(np.bincount(verdicts, minlength=3) / 3000, 1 / 3, atol=0.03)


def test_a_prediction_may_be_the_mean_of_log_probabilities():
    """Two draws: 0.90, 0.06, 0.04 and 0.001, 0.5, 0.499; the mean of the logarithms prefers the second class."""
    draws = jnp.log(jnp.array([[0.90, 0.06, 0.04], [0.001, 0.5, 0.499]]))

    def draw(images, rng):
        return jnp.broadcast_to(draws[jax.random.randint(rng, (), 0, 2)], (len(images), 3))

    keys = jax.random.split(jax.random.key(0), 50)
    found = {}
    for over in ("probabilities", "log_probabilities"):
        model = ScoredModel("run", "defense", lambda variables: draw, {}, "", num_draws=64, mean_over=over)
        found[over] = predict(model, {}, jnp.zeros((50, 1, 1, 1)), keys)
    np.testing.assert_array_equal(found["probabilities"], np.zeros(50))
    np.testing.assert_array_equal(found["log_probabilities"], np.ones(50))
