"""Square attack: random search with squares, without gradients (Andriushchenko et al. 2020)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks.base import Attack, Problem
from advjax.attacks.candidate import Candidate, keep_rule, unobserved
from advjax.attacks.input_checks import require_count, require_number
from advjax.attacks.losses import margin
from advjax.attacks.model_queries import is_fooled
from advjax.attacks.threat_model import ThreatModel, require
from advjax.types import Array, Key

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of a budget of 10,000 after which the fraction of changed pixels is halved."""


class SquareState(NamedTuple):
    """State of the attack on one image."""

    index: Array
    """Number of the proposal at ``point``; 0 is the initial pattern."""
    point: Array
    best: Candidate


class Moves(NamedTuple):
    """Random search in one norm; the returned candidates still have to be projected."""

    begin: Callable[[ThreatModel, Key, Array], Array]
    """``(threat_model, rng, image) -> candidate``."""
    change: Callable[[ThreatModel, Key, Array, Array, Array], Array]
    """``(threat_model, rng, image, best, side of the window) -> candidate``."""
    window: Callable[[int], int]
    """``desired side -> side``: rounds to a side that the patterns allow."""


def square(
    threat_model: ThreatModel,
    *,
    num_queries: int = 5000,
    initial_share: float = 0.8,
    rescale_schedule: bool = False,
    targeted: bool = False,
) -> Attack:
    """Square attack for linf and l2 (Andriushchenko et al. 2020, algorithms 1 to 3).

    Starts with vertical stripes of +-epsilon (linf) or tiles of a bump pattern (l2).  Every query changes the best
    image so far in one randomly placed square window, to +-epsilon per channel (linf) or by moving the mass of a second
    window there (l2), and keeps the change if the margin increases.  The side of the window shrinks with the number of
    queries.

    Every image draws windows and signs from its own key, whereas the authors' implementation shares them within a
    batch; and a window may touch every edge of the image, whereas theirs excludes the last position.

    Args:
      threat_model: linf or l2 with a finite epsilon.
      num_queries: number of proposals after the first, each with one forward pass.
      initial_share: fraction of the pixels in the first windows, p in the paper.
      rescale_schedule: scale the schedule of the windows to a budget of ``num_queries`` instead of following the first
        ``num_queries`` of a budget of 10,000, as AutoAttack does.
      targeted: labels are the classes to reach.
    """
    require(threat_model, "square", *MOVES, finite_epsilon=True)
    require_count("num_queries", num_queries)
    require_number("initial_share", initial_share, 0, 1, open_low=True)
    moves, keep = MOVES[threat_model.norm.name], keep_rule("best")
    shares = initial_share * _shrinking(num_queries, rescale_schedule)

    def init(problem: Problem) -> SquareState:
        image = problem.image
        proposal = threat_model.project(image, moves.begin(threat_model, jax.random.fold_in(problem.rng, 0), image))
        proposal = proposal if problem.start is None else problem.start
        return SquareState(jnp.int32(0), proposal, unobserved(proposal, problem.clean_logits.dtype))

    def observe(problem: Problem, state: SquareState, logits: Array) -> SquareState:
        loss = margin(logits, problem.label)
        fooled = is_fooled(logits, problem.label, targeted)
        return state._replace(best=keep(state.best, Candidate(state.point, -loss if targeted else loss, fooled)))

    def move(problem: Problem, state: SquareState, logits: Array, gradient: None) -> SquareState:
        image, index = problem.image, state.index
        sides = [moves.window(round(math.sqrt(share * image.shape[0] * image.shape[1]))) for share in shares]
        sides = np.minimum(sides, min(image.shape[:2]))
        rng = jax.random.fold_in(problem.rng, index + 1)
        proposal = moves.change(threat_model, rng, image, state.best.image, jnp.asarray(sides, jnp.int32)[index])
        return state._replace(index=index + 1, point=threat_model.project(image, proposal))

    return Attack(threat_model, num_queries, init, None, observe, move, targeted=targeted)


def _shrinking(num_queries: int, rescale: bool) -> np.ndarray:
    """``1 / 2^(halvings so far)`` for the proposals that follow numbers 0..num_queries."""
    query = np.arange(num_queries + 1)
    if rescale:
        query = query * 10_000 // max(num_queries, 1)
    return 0.5 ** np.searchsorted(HALVINGS, query, side="left")


def _window(rng: Key, shape: tuple[int, ...], side: Array) -> tuple[Array, Array, Array]:
    """Rows and columns relative to a random window, and where they are inside it [h, w, 1]."""
    height, width = shape[:2]
    row, column = jax.random.split(rng)
    rows = jnp.arange(height) - jax.random.randint(row, (), 0, height - side + 1)
    columns = jnp.arange(width) - jax.random.randint(column, (), 0, width - side + 1)
    inside = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))[None]
    return rows, columns, inside[..., None]


def _signs(rng: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jax.random.rademacher(rng, shape).astype(dtype)


def _begin_linf(threat_model, rng, image):
    _, width, channels = image.shape
    return image + threat_model.epsilon * _signs(rng, (1, width, channels), image.dtype)


def _change_linf(threat_model, rng, image, best, side):
    place, sign = jax.random.split(rng)
    _, _, inside = _window(place, image.shape, side)
    # From any point of the ball, 2 epsilon reaches the face.
    return best + jnp.where(inside, 2 * threat_model.epsilon * _signs(sign, image.shape[2:], image.dtype), 0)


def _begin_l2(threat_model, rng, image):
    height, width, channels = image.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    signs, flip = jax.random.split(rng)
    tile = _bumps(jnp.arange(side), jnp.arange(side), jnp.int32(side), image.dtype)
    tile = jnp.where(jax.random.bernoulli(flip), tile, tile.T)
    tiles = tile[None, :, None, :, None] * _signs(signs, (rows, 1, columns, 1, channels), image.dtype)
    tiles = tiles.reshape(rows * side, columns * side, channels)
    above, left = (height - rows * side) // 2, (width - columns * side) // 2
    pattern = jnp.zeros_like(image).at[above : above + rows * side, left : left + columns * side].set(tiles)
    return image + _of_size(threat_model, pattern)


def _change_l2(threat_model, rng, image, best, side):
    """Window 1 takes the mass of window 2 and what is left of the budget."""
    first, second, signs, flip = jax.random.split(rng, 4)
    rows, columns, inside = _window(first, image.shape, side)
    inside_either = inside | _window(second, image.shape, side)[2]
    perturbation, epsilon, tiny = best - image, threat_model.epsilon, jnp.finfo(image.dtype).tiny

    def per_channel(x):
        return jnp.sqrt(jnp.sum(x * x, axis=(0, 1)))

    old = jnp.where(inside, perturbation, 0)
    bumps = _bumps(rows, columns, side, image.dtype)
    bumps = jnp.where(jax.random.bernoulli(flip), bumps, _bumps(columns, rows, side, image.dtype).T)
    pattern = bumps[..., None] * _signs(signs, image.shape[2:], image.dtype)
    new = jnp.where(inside, pattern + old / jnp.maximum(per_channel(old), tiny), 0)
    unused = jnp.maximum(epsilon**2 - jnp.sum(perturbation * perturbation), 0) / image.shape[2]
    moved = jnp.sum(jnp.where(inside_either, perturbation, 0) ** 2)
    new = new / jnp.maximum(per_channel(new), tiny) * jnp.sqrt(unused + moved)
    return image + _of_size(threat_model, jnp.where(inside, new, jnp.where(inside_either, 0, perturbation)))


def _of_size(threat_model, perturbation):
    size = threat_model.norm.size(perturbation)
    return threat_model.epsilon * perturbation / jnp.maximum(size, jnp.finfo(perturbation.dtype).tiny)


def _bumps(rows: Array, columns: Array, side: Array, dtype: jnp.dtype) -> Array:
    """The pattern of one window, of unit norm: a bump in the upper half and a dent in the lower half.

    ``rows`` and ``columns`` are relative to the window of size ``side``; the pattern is valid only inside it.
    """
    upper = side // 2

    def bump(height, rows):
        # Sum of 1 / (i + 1)^2 over the centered rectangles, each larger by a pixel on every side, that hold it.
        center_row, center_column = height // 2, side // 2
        ring = jnp.maximum(jnp.abs(rows - center_row)[:, None], jnp.abs(columns - center_column)[None])
        count = jnp.maximum(height // 2, side // 2) + 1
        levels = jnp.asarray(np.cumsum(1.0 / np.arange(1, 1 + max(rows.size, columns.size)) ** 2), dtype)
        last = levels[jnp.clip(count - 1, 0, levels.size - 1)]
        before = jnp.where(ring > 0, levels[jnp.clip(ring - 1, 0, levels.size - 1)], 0)
        return last - before

    inside = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))[None]
    is_upper = (rows < upper)[:, None]

    def unit(x, here):
        x = jnp.where(here & inside, x, 0)
        return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x)), jnp.finfo(dtype).tiny)

    pattern = unit(bump(upper, rows), is_upper) - unit(bump(side - upper, rows - upper), ~is_upper)
    return pattern / jnp.sqrt(jnp.sum(pattern * pattern))


def _odd(side: int) -> int:
    side = max(side, 3)
    return side + 1 - side % 2


MOVES = {
    "linf": Moves(_begin_linf, _change_linf, lambda side: max(side, 1)),
    "l2": Moves(_begin_l2, _change_l2, _odd),
}
