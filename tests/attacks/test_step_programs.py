"""What the steps of attacks compile to: nothing that an accelerator is slow at."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from support import attack_models as am

BALL = attacks.linf(0.1)
ATTACKS = {
    "pgd": attacks.pgd(BALL, num_steps=3, step_size=0.05),
    "pgd-dlr": attacks.pgd(BALL, num_steps=3, step_size=0.05, loss="dlr"),
    "apgd": attacks.auto_pgd(BALL, num_steps=5),
    "apgd-t": attacks.auto_pgd(BALL, num_steps=5, loss="dlr", aim=attacks.next_likely_class(1)),
    "fab-t": attacks.fab(BALL, num_steps=3, aim=attacks.next_likely_class(1)),
    "fab": attacks.fab(BALL, num_steps=3),
    "deepfool": attacks.deepfool(attacks.l2(np.inf), num_steps=3),
    "square": attacks.square(BALL, num_queries=3),
}


def lowered(attack, count=6):
    def run(weights, images, labels, key):
        return attack(lambda images: jnp.tensordot(images, weights, 3), images, labels, key)

    images = am.gray_images(count)
    return jax.jit(run).lower(
        np.zeros((*am.SHAPE, 5), np.float32), images, np.zeros(count, np.int32), jax.random.key(0)
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_steps_have_no_branches_and_no_scatters(name):
    """A GPU waits for the host at a branch, and a TPU scatters into a batch one image at a time."""
    text = lowered(ATTACKS[name]).as_text()
    assert not re.findall(r"stablehlo\.(case|if|scatter)\b", text)


def test_the_trip_count_of_a_fixed_number_of_steps_is_known():
    compiled = lowered(ATTACKS["pgd"]).compile().as_text()
    assert '"known_trip_count":{"n":"3"}' in compiled


@pytest.mark.optimized
def test_no_constant_of_deepfool_grows_with_the_batch():
    """Constants are folded when the program is compiled, which took longer the larger the batch was."""

    def largest(count):
        text = lowered(ATTACKS["deepfool"], count).compile().as_text()
        shapes = re.findall(r"\w+\[([\d,]*)\]\S* constant\(", text)
        return max(np.prod([int(size) for size in shape.split(",") if size]) for shape in shapes)

    assert largest(64) == largest(4)
