"""The line search by hand, and Carlini and Wagner's attacks that use it against closed forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks.carlini_wagner import line_search
from support import attack_models as am

pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)
MAKE = {"l2": attacks.carlini_wagner_l2_line_search, "linf": attacks.carlini_wagner_linf_line_search}


def run(attack, model, images, labels):
    return jax.device_get(jax.jit(functools.partial(attack, model))(images, labels, KEY))


def search_on(loss, rate=1.0, max_halvings=5, max_doublings=5):
    """``(rates tried, search that comes next, whether it has moved)`` from 0 along the gradient -1."""
    search = line_search.begin(line_search.Seen(jnp.float32(0), jnp.float32(-1), jnp.float32(loss(0.0))), rate)
    search = search._replace(rate=jnp.float32(rate))
    tried = []
    while True:
        variable = line_search.trial(search)
        tried.append(float(variable))
        seen = line_search.Seen(variable, jnp.float32(7), jnp.float32(loss(tried[-1])))
        search, ended, moved = line_search.advance(search, seen, max_halvings, max_doublings)
        if ended:
            return tried, search, bool(moved)


def test_halves_until_the_loss_falls():
    tried, search, moved = search_on(lambda x: (x - 0.1) ** 2)
    assert tried == [1, 0.5, 0.25, 0.125]
    assert moved and float(search.current.variable) == 0.125
    assert float(search.rate) == 0.125 and int(search.trials) == 0
    assert float(search.current.gradient) == 7


def test_doubles_while_the_loss_keeps_falling_and_goes_back_to_the_best():
    tried, search, moved = search_on(lambda x: (x - 5) ** 2)
    assert tried == [1, 2, 4, 8]
    assert moved and float(search.current.variable) == 4
    assert float(search.rate) == 4


def test_doubles_at_most_so_often():
    tried, search, moved = search_on(lambda x: -x)
    assert tried == [1, 2, 4, 8, 16, 32]
    assert moved and float(search.current.variable) == 32
    assert float(search.rate) == 16


def test_stays_where_nothing_helps_and_asks_for_less_then():
    tried, search, moved = search_on(lambda x: x, max_halvings=3)
    assert tried == [1, 0.5, 0.25]
    assert not moved and float(search.current.variable) == 0
    assert float(search.rate) == 0.25 and float(search.current.loss) == 0.25
    assert float(search.current.gradient) == -1


@pytest.mark.parametrize(("halvings", "doublings"), [(5, 5), (8, 2), (1, 1)])
def test_most_trials(halvings, doublings):
    losses = (lambda x: x, lambda x: -x, lambda x: (x - 0.01) ** 2, lambda x: 0 * x)
    most = max(len(search_on(loss, 1.0, halvings, doublings)[0]) for loss in losses)
    assert most == line_search.most_trials(halvings, doublings)


@pytest.mark.parametrize("targeted", [False, True])
def test_l2_within_a_tenth_of_the_closed_form(targeted):
    known = am.known_distance("l2")
    labels = known.other_labels if targeted else known.labels
    result = run(MAKE["l2"](attacks.l2(math.inf), targeted=targeted), known.model, known.images, labels)
    assert np.all(result.success)
    assert np.all(result.distance >= known.epsilon * (1 - 1e-3))
    assert np.all(result.distance <= 1.1 * known.epsilon)


@pytest.mark.parametrize("targeted", [False, True])
def test_linf_fails_below_the_closed_form_and_returns_the_image(targeted):
    known = am.known_distance("linf", margin=1.5)
    labels = known.other_labels if targeted else known.labels

    def attacked(share):
        attack = MAKE["linf"](attacks.linf(share * known.epsilon), num_steps=25, targeted=targeted)
        return run(attack, known.model, known.images, labels)

    failed, found = attacked(0.98), attacked(1.2)
    assert not np.any(failed.success)
    np.testing.assert_array_equal(failed.images, known.images)
    assert np.all(failed.distance == 0)
    assert np.all(found.success)
    assert np.all((found.distance >= known.epsilon * (1 - 1e-3)) & (found.distance <= 1.2 * known.epsilon))


def test_linf_stops_at_its_first_success():
    known = am.known_distance("linf", margin=1.5)
    attack = MAKE["linf"](attacks.linf(3 * known.epsilon), num_steps=25)
    result = run(attack, known.model, known.images, known.labels)
    assert np.all(result.success)
    assert np.all(result.steps < attack.num_steps / 3)


@pytest.mark.parametrize("norm", MAKE)
def test_misclassified_images_stay_as_they_are(norm):
    known = am.known_distance(norm)
    threat_model = {"l2": attacks.l2, "linf": attacks.linf}[norm](0.1)
    result = run(MAKE[norm](threat_model), known.model, known.images, known.other_labels)
    np.testing.assert_array_equal(result.images, known.images)
    assert np.all(result.success)
    assert np.all(result.steps == 1)


def constants(works, **options):
    """The values of c tried on a model of one pixel that is fooled wherever it is asked while ``works(c)``."""
    attack = MAKE["l2"](attacks.l2(math.inf), num_steps=1, max_halvings=1, max_doublings=1, **options)
    image = jnp.full((1, 1, 1), 0.5)
    problem = attacks.Problem(image, jnp.int32(0), KEY, jnp.float32([1, 0]), None)
    state, tried, ones = attack.init(problem), [], jnp.ones(image.shape)
    step = jax.jit(lambda state, logits: attack.move(problem, attack.observe(problem, state, logits), logits, ones))
    clean = True
    while not attack.done(state):
        fooled = not clean and works(float(state.const))
        logits = jnp.float32([0, 1] if fooled else [1, 0])
        before = int(state.num_consts)
        const = float(state.const)
        state = step(state, logits)
        clean = False
        if int(state.num_consts) > before:
            tried.append(const)
    return tried


def test_constants_as_in_the_toolbox():
    """Doubled until one works, then between c and a lower bound that is the last c to come after a failure."""
    np.testing.assert_allclose(
        constants(lambda c: False, binary_search_steps=4, initial_const=0.1), [0.1, 0.2, 0.4, 0.8], rtol=1e-5
    )
    np.testing.assert_allclose(
        constants(lambda c: True, binary_search_steps=4, initial_const=0.8), [0.8, 0.4, 0.2, 0.1], rtol=1e-5
    )
    np.testing.assert_allclose(
        constants(lambda c: c >= 0.3, binary_search_steps=5, initial_const=0.1), [0.1, 0.2, 0.4, 0.4, 0.4], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MAKE["l2"](attacks.linf(0.1)), "carlini_wagner_l2_line_search needs l2, got linf"),
        (lambda: MAKE["linf"](attacks.linf(math.inf)), "needs linf with a finite epsilon, got linf inf"),
        (lambda: MAKE["linf"](attacks.l2(0.1)), "needs linf with a finite epsilon, got l2 0.1"),
        (lambda: MAKE["l2"](attacks.l2(0.1), binary_search_steps=0), "binary_search_steps must be at least 1, got 0"),
        (lambda: MAKE["linf"](attacks.linf(0.1), max_halvings=0), "max_halvings must be at least 1, got 0"),
    ],
)
def test_mistakes(build, message):
    with pytest.raises(ValueError, match=message):
        build()
