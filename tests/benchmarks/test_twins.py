"""The networks of the benchmark in other libraries: the same weights, logits, attacks and training steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.benchmarks import networks
from advjax.benchmarks.contenders import CONTENDERS
from advjax.benchmarks.foreign import foreign_logits_fn, foreign_variables
from advjax.benchmarks.run import LOSS_TOLERANCE
from advjax.benchmarks.tasks import TRAINING
from advjax.benchmarks.training_contenders import classifier, optimizer_of
from advjax.types import UserError

WIDTH = 0.1


def narrow(name, count=4):
    """Four images, one for each device of the tests."""
    return networks.make_network(name, count, width=WIDTH)


def test_the_foreign_network_has_the_same_logits():
    network = narrow("resnet9")
    found = foreign_logits_fn(WIDTH)(foreign_variables(network.variables))(network.images)
    np.testing.assert_allclose(found, network.forward(network.variables, network.images), rtol=1e-5, atol=1e-5)


def test_only_one_network_has_a_foreign_twin():
    assert CONTENDERS["flax"].missing(narrow("resnet9")) is None
    assert CONTENDERS["flax-exact"].missing(narrow("lenet5")) == "only resnet9 has a foreign twin in flax"


def test_statistics_are_not_those_of_a_fresh_network():
    statistics = narrow("resnet9").variables.model_state["batch_stats"]["block_conv2"]["norm"]
    assert np.all(statistics["mean"] != 0) and np.all(statistics["var"] != 1)


@pytest.mark.parametrize("task", TRAINING)
def test_training_steps_of_our_network_and_the_foreign_one(task):
    """Both go on from step to step, from the same loss."""
    network = narrow("resnet9")
    losses = {}
    for name in ("advjax", "flax"):
        call = CONTENDERS[name].prepare(task, network, 4)
        losses[name] = [call().loss for _ in range(3)]
        assert losses[name][2] < losses[name][0]
    np.testing.assert_allclose(losses["advjax"], losses["flax"], rtol=LOSS_TOLERANCE)


def test_the_normalization_of_a_small_network_is_not_trained():
    network = narrow("cifar_cnn")
    _, variables = classifier(network)
    _, trainable = optimizer_of(variables.params)
    frozen = {path[-1].key for path, is_trained in jax.tree.leaves_with_path(trainable) if not is_trained}
    assert frozen == {"input_mean", "input_std"}


@pytest.mark.parametrize("name", [*networks.SMALL, *networks.LARGE])
def test_torch_has_the_same_networks(name):
    pytest.importorskip("torch", reason="torch is not installed")
    from advjax.benchmarks import torch_twins

    network = narrow(name)
    module = torch_twins.torch_network(network)
    found = module(torch_twins.nchw(network.images)).cpu().numpy()
    np.testing.assert_allclose(found, network.forward(network.variables, network.images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", networks.SMALL)
def test_torch_takes_small_networks_of_other_sizes(name, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    from advjax.benchmarks import torch_twins

    rng, kept = np.random.default_rng(0), (1, 3, 10, 1568)
    half = {
        key: rng.normal(size=[n if n in kept or n < 8 else n // 2 for n in value.shape]).astype(np.float32)
        for key, value in networks.random_weights(name).items()
    }
    if name == "mnist_cnn":
        half["fc1_kernel"] = half["fc1_kernel"][:784]
    np.savez(tmp_path / "half.npz", **half)
    network = networks.make_network(name, 2, weights=str(tmp_path / "half.npz"))
    torch_twins.torch_network(network)


def test_a_twin_with_other_logits_or_weights_is_refused():
    pytest.importorskip("torch", reason="torch is not installed")
    from advjax.benchmarks import torch_twins

    network = narrow("lenet5")
    twice = network._replace(forward=lambda variables, images: 2 * network.forward(variables, images))
    with pytest.raises(UserError, match="lenet5 in torch has other logits"):
        torch_twins.torch_network(twice)
    module = torch_twins.torch_network(network)
    module.fc3.bias.data[0] += 1
    with pytest.raises(UserError, match=r"block_head.*bias.* has another value in torch"):
        torch_twins._check_weights(network, networks.large_model("lenet5", WIDTH), module)


@pytest.mark.parametrize("name", ["cifar_cnn", "preact_resnet18"])
@pytest.mark.parametrize("task", TRAINING)
def test_training_steps_of_torch(name, task):
    """The losses of the first steps agree, which they do only if gradients and optimizer do."""
    pytest.importorskip("torch", reason="torch is not installed")
    network = narrow(name)
    calls = {contender: CONTENDERS[contender].prepare(task, network, 4) for contender in ("advjax", "torch")}
    losses = {contender: [call().loss for _ in range(3)] for contender, call in calls.items()}
    np.testing.assert_allclose(losses["torch"], losses["advjax"], rtol=LOSS_TOLERANCE)
    assert losses["advjax"][2] < losses["advjax"][0]


@pytest.mark.parametrize("library", ["torch", "torchattacks", "foolbox"])
def test_a_library_does_the_same_attack(library):
    """PGD with a budget that breaks every image leaves each as far away as allowed."""
    pytest.importorskip("torch" if library == "torch" else library, reason=f"{library} is not installed")
    network = networks.make_network("cifar_cnn", 2, epsilon=0.2)
    for contender in ("advjax", library):
        output = CONTENDERS[contender].prepare("pgd-20", network, 2)()
        assert np.max(np.abs(output.adversarial - network.images)) == pytest.approx(0.2, abs=1e-6)
        logits = networks.cifar_cnn(network.variables, jnp.asarray(output.adversarial))
        assert not np.any(np.argmax(logits, axis=-1) == network.labels)
