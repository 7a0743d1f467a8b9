"""Weights of PyTorch networks: logits equal PyTorch's, and clear errors."""

import sys

import jax
import numpy as np
import pytest

from advjax.models import blocks
from advjax.models.deepmind_resnet import DMPreActResNet18, DMWideResNet
from advjax.models.fixer import with_fixers
from advjax.models.lenet import LeNet5, Net62k
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.resnet import ResNet18, ResNet50
from advjax.models.torch.weights import load_torch
from advjax.models.vgg import VGG16
from advjax.models.wide_resnet import WideResNet
from advjax.types import UserError
from support import torch_families
from support.torch_families import CIFAR, fixture

pytestmark = pytest.mark.filterwarnings("ignore:the logits of .* have not been compared")
MODELS = {
    "resnet18_torchvision": ResNet18(width=1 / 32),
    "resnet50_torchvision": ResNet50(width=1 / 32, stage_sizes=(1, 2, 1, 1)),
    "resnet18_cifar": ResNet18(width=1 / 32, stem="cifar"),
    "preact_resnet18": PreActResNet18(width=1 / 32, shortcut_input="activation"),
    "preact_resnet18_norm": PreActResNet18(width=1 / 32, final_norm=True, shortcut_input="activation"),
    "preact_resnet18_raw": PreActResNet18(width=1 / 32, final_norm=True, shortcut_input="raw", **CIFAR),
    "dm_wide_resnet16": DMWideResNet(depth=16, width=1 / 4, **CIFAR),
    "dm_preact_resnet18": DMPreActResNet18(width=1 / 32, **CIFAR),
    "wide_resnet16": WideResNet(depth=16, width=1 / 2),
    "vgg16": VGG16(width=1 / 32),
    "vgg16_bn": VGG16(width=1 / 32, batch_norm=True),
    "vgg16_classic": VGG16(width=1 / 64, head="classic"),
    "lenet5": LeNet5(width=1 / 2),
    "net62k": Net62k(width=1 / 2),
}


class Nameless(blocks.Classifier):
    """An unsupported architecture."""


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_pytorch(name):
    state, images, expected = fixture(name)
    # Whether loading compares them, too, is tested in test_torch_verification.
    variables = load_torch(state, MODELS[name], images.shape[1:])
    found = jax.jit(lambda variables, images: blocks.apply(MODELS[name], variables, images))(variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert np.ptp(expected, axis=0).max() > 1e-2, "logits that hardly depend on the images would prove little"


def test_the_variables_are_those_the_model_expects():
    state, images, _ = fixture("resnet18_cifar")
    variables = load_torch(state, MODELS["resnet18_cifar"])
    expected = jax.eval_shape(lambda: blocks.init(MODELS["resnet18_cifar"], jax.random.key(0), images.shape[1:]))
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    assert all(
        a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True)
    )


def test_a_loaded_network_can_be_patched():
    state, images, expected = fixture("preact_resnet18")
    base = MODELS["preact_resnet18"]
    patched = with_fixers(base, after=("stage2",), delta=0.0)
    fresh = blocks.init(patched, jax.random.key(0), images.shape[1:])
    variables = blocks.graft(fresh, load_torch(state, base))
    features = blocks.apply(patched, variables, images, method="with_features", patched=False)
    np.testing.assert_allclose(features[0], expected, atol=1e-4)


def test_names_can_be_given_for_any_network():
    state, images, expected = fixture("lenet5")
    renamed = {f"net.{key}": value for key, value in state.items()}
    torch_names = {"conv1": "conv1", "conv2": "conv2", "fc1": "fc1", "fc2": "fc2", "head": "fc3"}
    variables = load_torch(
        renamed, MODELS["lenet5"], images.shape[1:], names=lambda path: ["net." + torch_names[path.split("/")[0]]]
    )
    np.testing.assert_allclose(blocks.apply(MODELS["lenet5"], variables, images), expected, atol=1e-4)


def changed(name, **changes):
    state, _, _ = fixture(name)
    return {
        **{key: value for key, value in state.items() if changes.get(key.replace(".", "_"), 0) is not None},
        **{key.replace("__", "."): value for key, value in changes.items() if value is not None},
    }


@pytest.mark.parametrize(
    "source, model, shape, message",
    [
        (
            changed("net62k", fc2_weight=None),
            Net62k(width=1 / 2),
            (32, 32, 3),
            "the weights have no fc2.weight: .*Net62k",
        ),
        (
            changed("net62k", mean=np.zeros(3)),
            Net62k(width=1 / 2),
            (32, 32, 3),
            "mean is in the weights but not in this",
        ),
        (
            changed("net62k"),
            Net62k(width=1 / 2),
            (32, 32, 1),
            r"conv1.weight has shape \(3, 3, 5, 5\), but this Net62k has \(3, 1, 5, 5\) for images of .* 1\)",
        ),
        (
            changed("net62k"),
            Net62k(width=1 / 2),
            (36, 36, 3),
            r"fc1.weight has shape \(60, 200\), but this Net62k has \(60, 288\)",
        ),
        (
            changed("vgg16"),
            VGG16(width=1 / 32, batch_norm=True),
            (32, 32, 3),
            "the weights have no features.1.running_mean: .*VGG16|the weights have no features.3.bias",
        ),
        (
            changed("resnet18_cifar"),
            ResNet18(width=1 / 32, stem="cifar", stage_sizes=(2, 2, 2, 1)),
            (32, 32, 3),
            "layer4.1.conv1.weight is in the weights but not in this ResNet18",
        ),
        (
            changed("net62k", module__fc2__weight=np.zeros((42, 60))),
            Net62k(width=1 / 2),
            (32, 32, 3),
            "the weights have fc2.weight twice",
        ),
        ({}, Nameless(), (28, 28, 1), "no torch names are known for Nameless, only for Net62k, .*: pass names"),
        ("nowhere.pt", Net62k(), (32, 32, 3), "nowhere.pt does not exist"),
        (__file__, Net62k(), (32, 32, 3), r".*weights are read from .safetensors, .pt, .*, not '.py'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(source, model, shape, message):
    with pytest.raises(UserError, match=f"^{message}"):
        load_torch(source, model, shape)


def test_safetensors_files_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    state, images, expected = fixture("net62k")
    safetensors.save_file(state, tmp_path / "net.safetensors")
    variables = load_torch(tmp_path / "net.safetensors", MODELS["net62k"])
    np.testing.assert_allclose(blocks.apply(MODELS["net62k"], variables, images), expected, atol=1e-4)
    (tmp_path / "bad.safetensors").write_bytes(b"no header")
    with pytest.raises(UserError, match=r"bad.safetensors is not a safetensors file"):
        load_torch(tmp_path / "bad.safetensors", MODELS["net62k"])


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state}])
def test_torch_files_are_read_weights_only(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    state, images, expected = fixture("net62k")
    torch.save(wrap({key: torch.from_numpy(value) for key, value in state.items()}), tmp_path / "net.pt")
    variables = load_torch(tmp_path / "net.pt", MODELS["net62k"])
    np.testing.assert_allclose(blocks.apply(MODELS["net62k"], variables, images), expected, atol=1e-4)


def test_torch_files_that_hold_objects_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UserError, match=r"module.pt does not contain plain weights; save only .* state_dict\(\)"):
        load_torch(tmp_path / "module.pt", MODELS["net62k"])
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"list.pt contains a list, not a state dict"):
        load_torch(tmp_path / "list.pt", MODELS["net62k"])


@pytest.mark.parametrize("suffix, package", [("pt", "torch"), ("safetensors", "safetensors")])
def test_a_missing_reader_is_named_with_its_extra(tmp_path, monkeypatch, suffix, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / f"net.{suffix}").write_bytes(b"")
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'advjax\[torch-weights\]'"):
        load_torch(tmp_path / f"net.{suffix}", MODELS["net62k"])


@pytest.mark.slow
@pytest.mark.parametrize("name", torch_families.FAMILIES)
def test_networks_of_full_size_agree_with_pytorch(name):
    pytest.importorskip("torch")
    assert max(torch_families.largest_difference(name)) < 1e-4
