"""``compute_dtype``: models compute in bfloat16, all that is kept or compared is float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.models import blocks
from advjax.models.compute_dtype import computing_in
from advjax.models.fixer import with_fixers
from advjax.models.resnet9 import ResNet9
from advjax.training import losses, mixing, objectives, optimizers, transforms
from advjax.training.step import Method, init_state
from advjax.training.two_updates import two_updates
from support import tiny_models

SHAPE = (8, 8, 2)
MODEL = ResNet9(width=0.0625, num_classes=tiny_models.CLASSES, head="average")
PGD = attacks.pgd(attacks.linf(0.05), num_steps=2, step_size=0.03, loss="dlr")


def data(count=8):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, tiny_models.CLASSES, count).astype(np.int32)
    images = (rng.integers(0, 150, (count, *SHAPE)) + 50 * labels[:, None, None, None]).astype(np.uint8)
    return tiny_models.DeviceData(jnp.asarray(images), jnp.asarray(labels), jnp.arange(count, dtype=jnp.int32))


def make(model, objective, steps=(), **options):
    variables = blocks.init(model, jax.random.key(0), SHAPE)
    trainable = jax.tree.map(lambda _: True, variables.params)
    method = Method(model, objective, steps, optimizers.sgd(0.05, 0.9), trainable, {}, **options)
    return method, init_state(method, variables, jax.random.key(1))


def supervised(model=MODEL):
    return objectives.supervised(model, losses.cross_entropy)


TINY = tiny_models.Tiny()
METHODS = {
    "tiny": lambda **options: make(TINY, supervised(TINY), **options),
    "adversarial": lambda **options: make(MODEL, supervised(), (transforms.perturb(PGD),), **options),
    "manifold mixup": lambda **options: make(MODEL, mixing.manifold_mixup(MODEL, losses.cross_entropy), **options),
    "fixers": lambda **options: make(with_fixers(MODEL), supervised(with_fixers(MODEL)), **options),
    "two updates": lambda **options: make(MODEL, supervised(), step=two_updates(PGD), **options),
}


def traced(name, **options):
    method, state = METHODS[name](**options)

    @jax.jit
    def call(state, positions, mask):
        return method.step(state, {}, data(), positions, mask, axis_name=None, method=method, num_classes=3)

    return call, (state, np.arange(8, dtype=np.int32), np.ones(8, bool))


@pytest.mark.parametrize("name", ["adversarial", "manifold mixup", "fixers", "two updates"])
def test_no_convolution_and_product_of_a_training_step_is_float32(name):
    """As an accelerator gets it."""
    call, arguments = traced(name, compute_dtype="bfloat16")
    text = call.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    products = re.findall(r"stablehlo\.(?:convolution|dot_general)\b.*", text)
    assert len(products) > 10
    for product in products:
        assert "xf32" not in product.rsplit(" : ", 1)[1], product
    out = jax.eval_shape(call, *arguments)
    assert {leaf.dtype for leaf in jax.tree.leaves(out) if jnp.issubdtype(leaf.dtype, jnp.floating)} == {
        jnp.dtype("float32")
    }


def test_a_step_in_bfloat16_is_a_step_in_float32_up_to_its_precision():
    found = {}
    for dtype in ("float32", "bfloat16"):
        call, arguments = traced("tiny", compute_dtype=dtype)
        state, metrics = call(*arguments)
        found[dtype] = jax.tree.map(lambda new, old: new - old, state.params, arguments[0].params), metrics["loss"]
    exact, low = found["float32"], found["bfloat16"]
    assert low[1] != exact[1] and abs(low[1] - exact[1]) < 0.05 * exact[1]
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(change)]) for change, _ in (exact, low)]
    assert np.dot(*flat) > 0.95 * np.linalg.norm(flat[0]) * np.linalg.norm(flat[1])


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, got 'float8'"):
        computing_in("float8").__enter__()
