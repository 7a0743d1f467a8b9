"""The order of examples: whole epochs, pure in (seed, epoch), fixed batch sizes."""

import numpy as np
import pytest

from advjax.data import batch_positions, eval_batches, steps_per_epoch
from advjax.data.order import seeded_permutation
from advjax.types import UserError

SHAPES = [(10, 5), (10, 3), (10, 1), (7, 10), (3, 10), (1, 4)]


def epoch_of(number: int, num_examples: int, batch_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    steps = steps_per_epoch(num_examples, batch_size)
    batches = [
        batch_positions(step, num_examples=num_examples, batch_size=batch_size, seed=seed)
        for step in range(number * steps, (number + 1) * steps)
    ]
    positions, masks = (np.stack(arrays) for arrays in zip(*batches, strict=True))
    assert positions.shape == masks.shape == (steps, batch_size)
    assert positions.dtype == np.int32 and masks.dtype == bool
    return positions.ravel(), masks.ravel()


@pytest.mark.parametrize(("num_examples", "batch_size"), SHAPES)
def test_every_epoch_visits_every_example_once(num_examples, batch_size):
    for number in (0, 1, 5):
        positions, mask = epoch_of(number, num_examples, batch_size)
        np.testing.assert_array_equal(np.sort(positions[mask]), np.arange(num_examples))
        # Filler comes last and repeats the epoch from its start.
        np.testing.assert_array_equal(mask, np.arange(len(mask)) < num_examples)
        np.testing.assert_array_equal(positions, np.resize(positions[mask], len(positions)))


@pytest.mark.parametrize(("num_extra", "extra_rows"), [(9, 4), (3, 5), (1, 1)])
def test_extra_examples_are_visited_without_regard_to_epochs(num_extra, extra_rows):
    """Each once before any is seen again, also where a batch ends one pass and begins the next."""
    extra = {"num_extra": num_extra, "extra_rows": extra_rows}
    known = {"num_examples": 10, "batch_size": 3 + extra_rows, "seed": 2, **extra}
    batches = [batch_positions(step, **known) for step in range(36)]
    positions, masks = (np.stack(arrays) for arrays in zip(*batches, strict=True))
    assert positions.dtype == np.int32 and positions.shape == masks.shape == (36, 3 + extra_rows)
    own = [batch_positions(step, num_examples=10, batch_size=3, seed=2) for step in range(36)]
    is_extra = positions >= 10
    # Spread evenly, and at the same places in every batch.
    assert (is_extra == is_extra[0]).all() and is_extra[0].sum() == extra_rows
    counts, size = np.cumsum(is_extra[0]), 3 + extra_rows
    assert np.abs(counts - np.arange(1, size + 1) * extra_rows / size).max() < 1
    np.testing.assert_array_equal(positions[:, ~is_extra[0]], [there for there, _ in own])
    np.testing.assert_array_equal(masks[:, ~is_extra[0]], [mask for _, mask in own])
    assert masks[is_extra].all()
    seen = positions[is_extra]
    passes = seen[: len(seen) // num_extra * num_extra].reshape(-1, num_extra)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(10, 10 + num_extra), (len(passes), 1)))
    assert num_extra < 4 or len({tuple(there) for there in passes}) > 1
    np.testing.assert_array_equal(batches[7][0], batch_positions(7, **known)[0])


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_of(number, 50, 8, seed)[0]) for number in (0, 1, 2) for seed in (0, 1, 2)}
    assert len(orders) == 9


def test_any_step_can_be_asked_for_in_any_order():
    def ask(step: int) -> list[int]:
        return batch_positions(step, num_examples=100, batch_size=8, seed=4)[0].tolist()

    forward = {step: ask(step) for step in range(60)}
    assert forward == {step: ask(step) for step in reversed(range(60))}


def test_callers_cannot_spoil_the_order():
    first = batch_positions(0, num_examples=9, batch_size=9, seed=0)[0]
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(batch_positions(0, num_examples=9, batch_size=9, seed=0)[0], expected)


def test_permutations_are_frozen_and_uniform():
    # A checkpoint of last year must go on with the same batches.
    np.testing.assert_array_equal(seeded_permutation(10, "frozen", 0), [5, 7, 3, 6, 8, 0, 1, 2, 4, 9])
    draws = np.stack([seeded_permutation(5, "uniform", i) for i in range(4000)])
    counts = np.stack([np.bincount(column, minlength=5) for column in draws.T])
    # 800 expected in each of 25 cells, standard deviation 25.
    assert np.abs(counts - 800).max() < 125


@pytest.mark.parametrize(("num_examples", "batch_size"), SHAPES)
def test_evaluation_goes_through_all_examples_in_order(num_examples, batch_size):
    batches = list(eval_batches(num_examples, batch_size))
    assert len(batches) == steps_per_epoch(num_examples, batch_size)
    for positions, mask in batches:
        assert positions.shape == mask.shape == (batch_size,) and positions.dtype == np.int32
        assert positions.min() >= 0 and positions.max() < num_examples
    visited = np.concatenate([positions[mask] for positions, mask in batches])
    np.testing.assert_array_equal(visited, np.arange(num_examples))


@pytest.mark.parametrize(("num_examples", "batch_size"), [(0, 4), (4, 0), (4, -1)])
def test_nothing_to_batch_is_refused_at_once(num_examples, batch_size):
    with pytest.raises(UserError, match="must be at least 1"):
        batch_positions(0, num_examples=num_examples, batch_size=batch_size, seed=0)
    with pytest.raises(UserError, match="must be at least 1"):
        eval_batches(num_examples, batch_size)


def test_negative_step_is_an_error():
    with pytest.raises(ValueError, match="at least 0"):
        batch_positions(-1, num_examples=4, batch_size=2, seed=0)
