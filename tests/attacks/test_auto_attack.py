"""What AutoAttack consists of, and its verdicts beside those of the original."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import attacks
from advjax.cpu.fast_on_cpu import fast_on_cpu
from support import attack_models as am
from support.attack_rows import QUICK
from support.reference import reference_networks

pytestmark = pytest.mark.optimized

EPSILON = {"mnist_cnn_at": 0.25, "cifar_cnn_at": 8 / 255}


def described(version, num_classes):
    stages = attacks.auto_attack_stages(attacks.linf(0.1), version=version)
    return [(stage.name, stage.num_rounds(num_classes)) for stage in stages]


def test_versions():
    assert described("standard", 10) == [("apgd-ce", 1), ("apgd-t", 9), ("fab-t", 9), ("square", 1)]
    assert described("rand", 10) == [("apgd-ce", 1), ("apgd-dlr", 1)]
    assert described("plus", 10) == [
        ("apgd-ce", 5),
        ("apgd-dlr", 5),
        ("fab", 1),
        ("fab-restarts", 4),
        ("square", 1),
        ("apgd-t", 9),
        ("fab-t", 9),
    ]


@pytest.mark.parametrize(("num_classes", "targets"), [(2, 1), (3, 2), (4, 3), (100, 9)])
def test_few_classes_have_few_targets(num_classes, targets):
    assert described("standard", num_classes)[1:3] == [("apgd-t", targets), ("fab-t", targets)]


def test_parameters_are_those_of_the_original():
    stages = {stage.name: stage.attack(0) for stage in attacks.auto_attack_stages(attacks.linf(0.1), version="plus")}
    assert {name: attack.num_steps for name, attack in stages.items()} == {
        "apgd-ce": 100,
        "apgd-dlr": 100,
        "fab": 100,
        "fab-restarts": 100,
        "square": 5000,
        "apgd-t": 100,
        "fab-t": 100,
    }


@pytest.mark.parametrize(
    ("norm", "num_classes"), [("l2", 3), *(pytest.param("linf", count, marks=pytest.mark.slow) for count in (2, 4))]
)
def test_verdicts_of_linear_models(norm, num_classes):
    """Robust exactly where the closed form says so, which no rounding changes."""
    images = am.gray_images(12)
    model = am.random_linear(images, num_classes)
    labels = np.argmax(np.asarray(model(images)), axis=-1)
    labels[-1] = (labels[-1] + 1) % num_classes
    bounds = am.lower_bounds(model, images, labels, norm)
    middle = np.sort(bounds)
    epsilon = float((middle[6] + middle[7]) / 2)
    attack = attacks.auto_attack({"linf": attacks.linf, "l2": attacks.l2}[norm](epsilon))
    result = jax.jit(functools.partial(attack, model), compiler_options=QUICK)(images, labels, jax.random.key(0))
    np.testing.assert_array_equal(result.success, bounds < epsilon)
    assert np.all(np.asarray(result.distance) <= np.float32(epsilon))
    np.testing.assert_array_equal(result.images[-1], images[-1])


@pytest.mark.parametrize(
    ("threat_model", "version", "message"),
    [
        (attacks.linf(0.1), "fast", "version must be one of standard, plus, rand, got 'fast'"),
        (attacks.l1(12.0), "standard", "auto_attack needs linf or l2 with a finite epsilon, got l1 12.0"),
        (attacks.linf(np.inf), "standard", "finite epsilon"),
    ],
)
def test_mistakes(threat_model, version, message):
    with pytest.raises(ValueError, match=message):
        attacks.auto_attack(threat_model, version=version)


def network(shared, name):
    """The recorded network."""
    networks = reference_networks(shared)
    return networks.NETWORKS[name], networks.load(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", EPSILON)
def test_robust_images_after_each_stage_of_the_original(shared, name):
    data = np.load(shared / "reference" / f"{name}_images.npz")
    images, labels = data["images"][:128].astype(np.float32) / 255, data["labels"][:128].astype(np.int32)
    logits_fn, params = network(shared, name)
    fast = fast_on_cpu(logits_fn)
    np.testing.assert_allclose(fast(params, images), logits_fn(params, jnp.asarray(images)), atol=2e-5)
    theirs = np.load(shared / "reference" / f"{name}_autoattack.npz")["linf_seed0_robust_after_stage"][:, :128]
    threat_model = attacks.linf(EPSILON[name])
    stages = attacks.auto_attack_stages(threat_model)
    bind = lambda params: functools.partial(logits_fn, params)  # noqa: E731
    found = attacks.run_stages(stages, threat_model, bind, images, labels, variables=params, batch_size=128)
    ours = np.stack([found.robust_after(stage) for stage in range(-1, 4)])
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert np.all(np.abs(ours.sum(axis=1) - theirs.sum(axis=1)) <= 1)


@pytest.mark.slow
def test_auto_pgd_towards_the_next_likely_class(shared):
    """APGD-T towards its first target, from the recorded start: the verdicts and best losses of the original."""
    name = "mnist_cnn_at"
    data, recorded = (np.load(shared / "reference" / f"{name}_{kind}.npz") for kind in ("images", "apgd"))
    images, labels = data["images"].astype(np.float32) / 255, data["labels"].astype(np.int32)
    noise = recorded["linf_start_noise_int8"].astype(np.float32) / 127
    start = np.clip(images + np.float32(EPSILON[name]) * noise, 0, 1)
    logits_fn, params = network(shared, name)
    attack = attacks.auto_pgd(attacks.linf(EPSILON[name]), loss="dlr", aim=attacks.next_likely_class(1))
    run = jax.jit(lambda params, *batch: attack(functools.partial(logits_fn, params), *batch))
    result = run(params, images, labels, jax.random.key(0), start)
    assert np.sum(np.asarray(result.success) == recorded["t_linf_100_robust"]) <= 1
