"""Gradients in microbatches, of trainable parameters alone, and with rematerialized blocks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.cpu import convolution
from advjax.models import blocks
from advjax.models.adapter import from_module
from advjax.models.fixer import with_fixers
from advjax.models.layers import ConvNormRelu, Hidden
from advjax.models.remat import rematerializing
from advjax.models.resnet9 import ResNet9
from advjax.runtime import devices as sharding
from advjax.runtime.devices import Devices
from advjax.training import losses, mixing, objectives, optimizers, partition, trades, transforms
from advjax.training.gradients import gradients
from advjax.training.microbatches import from_parts, in_parts
from advjax.training.step import Method, init_state
from advjax.training.two_updates import two_updates
from advjax.types import UserError, Variables
from support import tiny_models as tiny

KEY = jax.random.key(3)
PGD = attacks.pgd(attacks.linf(0.05), num_steps=2, step_size=0.03, returns="last")


class Plain(blocks.Classifier):
    """Without BatchNorm: no example depends on the others."""

    def make_blocks(self):
        return {"first": Hidden(6), "second": Hidden(5), "head": Hidden(tiny.CLASSES, relu=False)}


PLAIN, TINY = Plain(), tiny.Tiny()
PATCHED = with_fixers(TINY, after=("conv",), reduction=1)
OBJECTIVES = {
    "supervised": (PLAIN, objectives.supervised(PLAIN, losses.focal())),
    "pairs": (PLAIN, objectives.supervised(PLAIN, losses.cross_entropy, on="both")),
    "trades": (PLAIN, trades.trades(PLAIN, losses.cross_entropy)),
    "fixers": (PATCHED, objectives.fixers(PATCHED, losses.cross_entropy)),
}


def everything(params):
    return jax.tree.map(lambda _: True, params)


def found_gradients(name, microbatches, batch, **options):
    model, objective = OBJECTIVES[name]
    variables = blocks.init(model, jax.random.key(0), tiny.SHAPE)
    options = {"trainable": everything(variables.params), "microbatches": microbatches, **options}
    return jax.jit(lambda *args: gradients(objective, *args, None, **options))(variables, batch, KEY)


@pytest.mark.parametrize("masked", [1, 7])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_microbatches_have_the_gradient_of_the_whole_batch(name, masked):
    """Loss, metrics, and gradients of parameters and images; with one unmasked row, three of four parts are empty."""
    batch = tiny.make_batch(8, masked, clean=True)
    whole = found_gradients(name, 1, batch, of_images=True)
    parts = found_gradients(name, 4, batch, of_images=True)
    tiny.assert_close(parts, whole, rtol=1e-4, atol=1e-7)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole.params)) > 1e-3
    assert float(jnp.abs(whole.images).max()) > 1e-5


def test_batch_statistics_move_once_by_the_mean_over_the_microbatches():
    variables, batch = tiny.fresh(TINY), tiny.make_batch(8, 0)
    objective = objectives.supervised(TINY, losses.cross_entropy)
    options = {"trainable": everything(variables.params), "microbatches": 2}
    found = gradients(objective, variables, batch, KEY, None, **options).model_state
    halves = [blocks.apply(TINY, variables, batch.images[i::2], train=True)[1] for i in range(2)]
    tiny.assert_close(found, jax.tree.map(lambda a, b: (a + b) / 2, *halves))
    whole = blocks.apply(TINY, variables, batch.images, train=True)[1]["batch_stats"]["block_conv"]["norm"]
    tiny.assert_close(found["batch_stats"]["block_conv"]["norm"]["mean"], whole["mean"])
    assert np.all(found["batch_stats"]["block_conv"]["norm"]["var"] < whole["var"])


def test_parts_are_interleaved_and_come_back_in_order():
    rows = jnp.arange(12).reshape(6, 2)
    parts = in_parts(rows, 3)
    np.testing.assert_array_equal(parts[1], rows[1::3])
    np.testing.assert_array_equal(from_parts(parts), rows)
    with pytest.raises(UserError, match="gradient_accumulation is 4, but the 6 images of a batch on each device"):
        in_parts(rows, 4)


def make_method(microbatches, step="one", **options):
    """Adversarial training with mixup; with ``two``, in two updates."""
    variables = tiny.fresh(PLAIN)
    attack = transforms.perturb(PGD, parts=microbatches)
    steps = (attack, mixing.mixup()) if step == "one" else ()
    options |= {"step": two_updates(PGD)} if step == "two" else {}
    objective = objectives.supervised(PLAIN, losses.cross_entropy)
    method = Method(PLAIN, objective, steps, optimizers.sgd(0.1, 0.9), everything(variables.params), {}, **options)
    return method._replace(microbatches=microbatches), variables


def after_two_steps(method, variables, mapping, num_devices):
    devices = Devices(jax.sharding.Mesh(np.asarray(jax.devices()[:num_devices]), ("data",)), mapping)
    step = devices.parallelize(
        lambda *args, axis_name: method.step(*args, axis_name=axis_name, method=method, num_classes=tiny.CLASSES),
        in_sharded=(False, False, False, True, True),
        out_sharded=False,
    )
    state = devices.replicate(init_state(method, variables, jax.random.key(5)))
    for number in range(2):
        positions = (np.arange(8) + 8 * number).astype(np.int32)
        state, metrics = step(state, {}, devices.replicate(tiny.make_data()), positions, np.arange(8) < 7)
    return sharding.fetch((state.params, state.opt_state, metrics))


@pytest.mark.parametrize(
    ("mapping", "step"),
    [
        ("shard_map", "one"),
        ("jit", "two"),
        ("pmap", "two"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("shard_map", "two"), ("jit", "one"), ("pmap", "one"))
        ),
    ],
)
def test_adversarial_training_in_microbatches_on_several_devices(mapping, step):
    """The same as in one batch, mixup included, which mixes before the batch is split."""
    expected = after_two_steps(*make_method(1, step), mapping, 2)
    found = after_two_steps(*make_method(2, step, remat=True), mapping, 2)
    tiny.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def residual_bytes(remat, model=TINY, batch=8):
    """What a gradient keeps of the forward pass, beside parameters."""
    variables = blocks.init(model, jax.random.key(0), (8, 8, 2))

    def pullback(params, images):
        with rematerializing(remat):
            apply = lambda params: blocks.apply(model, Variables(params, variables.model_state), images, train=True)  # noqa: E731
            return jax.vjp(apply, params)[1]

    kept = jax.eval_shape(pullback, variables.params, jax.ShapeDtypeStruct((batch, 8, 8, 2), jnp.float32))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def test_rematerialized_blocks_keep_only_their_inputs():
    """What grows with the batch is less than a third."""
    model = ResNet9(width=0.125, head="average")
    growth = [residual_bytes(remat, model, 16) - residual_bytes(remat, model, 8) for remat in (False, True)]
    assert growth[1] < growth[0] / 3


@pytest.mark.parametrize("name", ["noise", "fixers"])
def test_rematerialization_changes_no_number(name):
    """Loss, gradients and batch statistics, with noise layers and patches."""
    model = tiny.Tiny(noise=0.5) if name == "noise" else PATCHED
    objective = objectives.supervised(model, losses.cross_entropy) if name == "noise" else OBJECTIVES["fixers"][1]
    variables, batch = blocks.init(model, jax.random.key(0), tiny.SHAPE), tiny.make_batch(clean=True)

    def found(remat):
        with rematerializing(remat):
            return gradients(objective, variables, batch, KEY, None, trainable=everything(variables.params))

    jax.tree.map(np.testing.assert_array_equal, found(True), found(False))


class Own(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(tiny.CLASSES, name="head")(images.reshape(len(images), -1))


def test_what_cannot_be_rematerialized_is_refused():
    given = Own().init(KEY, jnp.zeros((1, *tiny.SHAPE)))
    cut, variables = from_module(Own(), ("head",), given)
    for model in (Own(), cut):
        refused = pytest.raises(UserError, match="remat needs a network that calls its blocks one by one")
        with refused, rematerializing(True):
            blocks.apply(model, variables, jnp.zeros((1, *tiny.SHAPE)))


# --- gradients that nobody needs ----


class Wide(blocks.Classifier):
    """The gradients of images, and of the weights of the middle, are a large part of all work."""

    def make_blocks(self):
        norm = {"axis_name": self.axis_name}
        return {"first": ConvNormRelu(32, **norm), "middle": ConvNormRelu(32, **norm), "head": Hidden(3, relu=False)}


WIDE = Wide()


def flops(function, *args):
    """Of the compiled program, in which convolutions are single instructions and the body of a loop counts once."""
    with convolution.exact():
        return jax.jit(lambda *args: function(*args)).lower(*args).compile().cost_analysis()["flops"]


@pytest.fixture(scope="module")
def layer_flops():
    """Of the two convolutions of a forward pass; each gradient of one costs about as much."""
    images = jnp.zeros((8, 8, 8, 16)), jnp.zeros((8, 8, 8, 32))
    kernels = jnp.zeros((3, 3, 16, 32)), jnp.zeros((3, 3, 32, 32))
    return [flops(convolve, *both) for both in zip(images, kernels, strict=True)]


def convolve(images, kernel):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def step_flops(trainable=".", steps=(), **options):
    """Of one training step, for parameters that a rule selects."""
    variables = blocks.init(WIDE, jax.random.key(0), (8, 8, 16))
    labels = partition.label_params(variables.params, ((trainable, "trained"),), "frozen")
    by_label = {"trained": optimizers.sgd(0.1), "frozen": partition.FROZEN}
    flags, optimizer = partition.trainable_mask(labels, by_label), partition.partitioned(by_label, labels)
    method = Method(WIDE, objectives.supervised(WIDE, losses.cross_entropy), steps, optimizer, flags, {}, **options)
    data = tiny.DeviceData(jnp.zeros((8, 8, 8, 16), jnp.uint8), jnp.zeros(8, jnp.int32), jnp.arange(8))
    return flops(
        lambda state, rows: method.step(
            state, {}, data, rows, rows >= 0, axis_name=None, method=method, num_classes=tiny.CLASSES
        ),
        init_state(method, variables, KEY),
        jnp.arange(8),
    )


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize(
    ("trainable", "first", "second"),
    [(".", 2, 3), ("head|middle", 1, 2), ("first", 2, 2)],
    ids=["all", "upper", "lower"],
)
def test_only_gradients_of_trainable_parameters_are_computed(layer_flops, trainable, first, second, microbatches):
    """Forward, weights, and the features between them; one more gradient would be an eighth more."""
    expected = first * layer_flops[0] + second * layer_flops[1]
    found = microbatches * step_flops(trainable, microbatches=microbatches)
    assert expected < found < 1.07 * expected


def test_the_image_gradient_is_there_when_it_is_used(layer_flops):
    """Two updates with one image gradient between them."""
    step = two_updates(attacks.fgsm(attacks.linf(0.1)), reuse_gradient=True)
    expected = 5 * layer_flops[0] + 6 * layer_flops[1]
    assert expected < step_flops(step=step) < 1.07 * expected


@pytest.mark.parametrize("microbatches", [1, 2])
def test_attacks_compute_no_weight_gradient(layer_flops, microbatches):
    """A step of PGD and a forward pass at the end: three times the network, and elementwise work."""
    attack = transforms.perturb(PGD, parts=microbatches)
    added = step_flops(steps=(attack,), microbatches=microbatches) - step_flops(microbatches=microbatches)
    assert 3 < microbatches * added / sum(layer_flops) < 3.5
