"""Weights that fit by names and shapes but compute something else: compared with PyTorch's logits, and refused."""

import jax
import numpy as np
import pytest

from advjax.models import blocks
from advjax.models.deepmind_resnet import DMPreActResNet18, DMWideResNet
from advjax.models.lenet import Net62k
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.resnet import ResNet18, ResNet50
from advjax.models.torch import load_torch, recognize_torch
from advjax.models.torch.recognition import describe
from advjax.models.vgg import VGG16
from advjax.models.wide_resnet import WideResNet
from advjax.types import UserError
from support.torch_families import CIFAR, fixture

NET = Net62k(width=1 / 2)
RAW = PreActResNet18(width=1 / 32, final_norm=True, shortcut_input="raw", **CIFAR)
quiet = pytest.mark.filterwarnings("ignore:the logits of .* have not been compared")


def load(name, model, state=None, **kwargs):
    """Loads with the recorded logits."""
    stored, images, logits = fixture(name)
    return load_torch(stored if state is None else state, model, images=images, logits=logits, **kwargs)


def test_what_has_not_been_compared_is_said():
    state, images, logits = fixture("net62k")
    with pytest.warns(UserWarning, match="logits of Net62k have not been compared with PyTorch's"):
        unchecked = load_torch(state, NET)
    checked = load("net62k", NET)
    assert jax.tree.all(jax.tree.map(np.array_equal, unchecked, checked))
    # No warning any more, and still the same logits: what pytest records here would be an error.
    np.testing.assert_allclose(blocks.apply(NET, checked, images), logits, atol=1e-4)


def test_a_checked_load_does_not_warn(recwarn):
    load("net62k", NET)
    assert not [each for each in recwarn if "compared" in str(each.message)]


def test_the_shortcut_must_be_chosen_or_checked():
    state, _, _ = fixture("preact_resnet18_raw")
    undecided = PreActResNet18(width=1 / 32, final_norm=True, **CIFAR)
    with pytest.raises(UserError, match="shortcut_input='activation' or 'raw', or pass the torch module, or images"):
        load_torch(state, undecided)
    with pytest.raises(UserError, match=r"those of PreActResNet18\(.*shortcut_input='raw'\) agree: use that model"):
        load("preact_resnet18_raw", undecided)
    load("preact_resnet18", PreActResNet18(width=1 / 32))


@pytest.mark.parametrize(
    "name, model, right",
    [
        ("preact_resnet18_raw", RAW.clone(shortcut_input="activation"), "shortcut_input='raw'"),
        (
            "preact_resnet18_norm",
            PreActResNet18(width=1 / 32, final_norm=True, shortcut_input="raw"),
            "shortcut_input='activation'",
        ),
        (
            "dm_wide_resnet16",
            DMWideResNet(depth=16, width=1 / 4, activation="relu"),
            r"mean=\(0.4914, 0.4822, 0.4465\), std=\(0.2471, 0.2435, 0.2616\)",
        ),
        (
            "dm_preact_resnet18",
            DMPreActResNet18(width=1 / 32, activation="relu", shortcut_input="activation", **CIFAR),
            r"DMPreActResNet18\(width=0.03125, mean=[^a-z]*, std=[^a-z]*\)",
        ),
        ("net62k", NET.clone(mean=(0.5,), std=(0.25,)), r"Net62k\(width=0.5\)"),
    ],
)
def test_a_model_that_only_looks_right_is_refused_and_the_right_one_named(name, model, right):
    with pytest.raises(UserError, match=rf"^the logits differ from PyTorch's by .*; those of .*{right}.* agree"):
        load(name, model)


def test_what_nothing_explains_is_refused():
    state, images, logits = fixture("net62k")
    with pytest.raises(UserError, match=r"Net62k\(width=0.5\) computes something else .*convert it with from_torch"):
        load_torch(state, NET, images=images, logits=logits[::-1])
    with pytest.raises(UserError, match=r"differ from PyTorch's by .* more than tolerance=1e-09"):
        load_torch(state, NET, images=images, logits=logits, tolerance=1e-9)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": None}, ValueError, "images and logits must be given together"),
        ({"images": None}, ValueError, "images and logits must be given together"),
        ({"logits": np.zeros((3, 10))}, ValueError, r"logits must have shape \[4, classes\].* got \(3, 10\)"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8)}, ValueError, r"floating point .* got uint8"),
        ({"images": np.full((4, 32, 32, 3), 9.0)}, ValueError, r"in \[0, 1\], got 9 to 9"),
        ({"images": np.zeros((1, 32, 32, 3)), "logits": np.ones((1, 10))}, ValueError, "at least two"),
        ({"logits": np.ones((4, 10))}, UserError, "hardly depend on the images"),
        ({"logits": np.full((4, 10), np.nan)}, UserError, "logits are not finite"),
        ({"logits": np.eye(4, 7)}, UserError, r"shape \(4, 10\), but PyTorch's have \(4, 7\)"),
    ],
)
def test_a_reference_that_proves_nothing_is_refused(change, error, message):
    state, images, logits = fixture("net62k")
    with pytest.raises(error, match=message):
        load_torch(state, NET, **{"images": images, "logits": logits, **change})


# --- normalization ---------------------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize(
    "mean, std",
    [
        ("mu", "sigma"),
        ("mean", "std"),
        ("_mean", "_std"),
        ("normalizer.mean", "normalizer.std"),
        ("normalizer.new_mean", "normalizer.new_std"),
        ("0.mean", "0.std"),
    ],
)
def test_buffers_must_agree_with_the_normalization_of_the_model(mean, std):
    state, _, _ = fixture("net62k")
    state |= {mean: np.float32(CIFAR["mean"]).reshape(1, 3, 1, 1), std: np.float32(CIFAR["std"]).reshape(3, 1, 1)}
    load_torch(state, NET.clone(**CIFAR))
    wanted = r"mean=\(0.4914, 0.4822, 0.4465\), std=\(0.2471, 0.2435, 0.2616\)"
    names = rf"\({mean} and {std}\)"
    with pytest.raises(UserError, match=rf"{wanted} {names}, but this Net62k has .*: build it with {wanted}$"):
        load_torch(state, NET)
    with pytest.raises(UserError, match="but this Net62k has mean"):
        load_torch(state, NET.clone(mean=CIFAR["mean"], std=(0.2023, 0.1994, 0.2010)))


def test_normalizations_that_cannot_be_meant_are_refused():
    state, _, _ = fixture("net62k")
    bytes_ = {"mean": np.float32([125.3, 123.0, 113.9]), "std": np.float32([63.0, 62.1, 66.7])}
    with pytest.raises(UserError, match=r"they take pixels in \[0, 255\]: divide both by 255"):
        load_torch({**state, **bytes_}, NET)
    two = {"mu": np.float32([0.5]), "sigma": np.float32([0.5]), "net.mean": np.zeros(1), "net.std": np.ones(1)}
    with pytest.raises(UserError, match=r"normalize twice, by mu and sigma and by net.mean and net.std"):
        load_torch({**state, **two}, NET)


# --- prefixes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "net.", "1.", "_orig_mod.", "model_ema.module.", "module.1.", "anything.at.all."]
)
def test_prefixes_are_found(prefix):
    state, _, _ = fixture("net62k")
    load("net62k", NET, {f"{prefix}{name}": value for name, value in state.items()})


def test_a_lightning_checkpoint_loads():
    state, _, _ = fixture("net62k")
    named = {f"model.{name}": value for name, value in state.items()}
    load("net62k", NET, {"epoch": 3, "state_dict": named, "optimizer_states": [{}], "lr_schedulers": []})
    with pytest.raises(UserError, match=r"^criterion.weight is in the weights but not in this Net62k"):
        load("net62k", NET, {"state_dict": {**named, "criterion.weight": np.ones(10)}})


def test_a_second_network_must_be_equal_or_one_of_them_chosen():
    state, _, _ = fixture("net62k")
    equal = {f"{prefix}{name}": value for prefix in ("model.", "attacker.model.") for name, value in state.items()}
    load("net62k", NET, equal)
    averaged = {**equal, "attacker.model.fc3.bias": state["fc3.bias"] + 1}
    with pytest.raises(UserError, match=r"have fc3.bias twice, under 'model.' and 'attacker.model.*: pass prefix"):
        load("net62k", NET, averaged)
    load("net62k", NET, averaged, prefix="model.")
    with pytest.raises(UserError, match="the logits differ"):
        load("net62k", NET, averaged, prefix="attacker.model.")
    with pytest.raises(UserError, match=r"no weights start with 'ema.'; the network may be under .*'model.'"):
        load("net62k", NET, averaged, prefix="ema.")
    with pytest.raises(UserError, match=r"several networks, state_dict, model_ema: pass the one you want"):
        load("net62k", NET, {"state_dict": state, "model_ema": state})


# --- heads without bias, and what the weights look like --------------------------------------------------------------


def test_a_head_without_bias_has_to_be_checked():
    state, images, logits = fixture("preact_resnet18")
    without = {name: value for name, value in state.items() if name != "linear.bias"}
    model = PreActResNet18(width=1 / 32, shortcut_input="activation")
    variables = load_torch(without, model, images=images, logits=logits - state["linear.bias"])
    assert not variables.params["block_head"]["dense"]["bias"].any()
    with pytest.raises(UserError, match="linear has no bias; such layers are often applied to normalized features"):
        load_torch(without, model)
    with pytest.raises(UserError, match="logits differ"):
        load_torch(without, model, images=images, logits=logits)


@pytest.mark.parametrize(
    "name, model",
    [
        ("resnet18_cifar", ResNet18(width=1 / 32, stem="cifar")),
        ("resnet18_torchvision", ResNet18(width=1 / 32)),
        ("resnet50_torchvision", ResNet18(width=1 / 32, stage_sizes=(1, 2, 1, 1), bottleneck=True)),
        ("preact_resnet18_raw", RAW.clone(shortcut_input=None)),
        ("wide_resnet16", WideResNet(depth=16, width=1 / 2)),
        ("dm_wide_resnet16", DMWideResNet(depth=16, width=1 / 4)),
        ("dm_preact_resnet18", DMPreActResNet18(width=1 / 32, **CIFAR)),
        ("vgg16_bn", VGG16(width=1 / 32, batch_norm=True)),
        ("vgg16_classic", VGG16(width=1 / 32, head="classic").clone(width=1 / 64)),
    ],
)
def test_architectures_are_recognized(name, model):
    found = recognize_torch(fixture(name)[0])
    assert type(found) is type(model)
    if "mean" in describe(model):
        np.testing.assert_allclose(found.mean, model.mean, rtol=1e-6)
        np.testing.assert_allclose(found.std, model.std, rtol=1e-6)
    assert describe(found, ("mean", "std")) == describe(model, ("mean", "std"))


def test_other_architectures_are_not_recognized():
    with pytest.raises(UserError, match="the architecture is not recognized"):
        recognize_torch(fixture("net62k")[0])


@quiet
@pytest.mark.parametrize(
    "name, model, message",
    [
        (
            "resnet18_cifar",
            ResNet18(width=1 / 32),
            r"conv1.weight has shape \(2, 3, 3, 3\).*ResNet18\(.*stem='cifar'\)$",
        ),
        ("resnet18_torchvision", ResNet50(), r"they look like ResNet18\(width=0.03125\)$"),
        ("preact_resnet18_raw", PreActResNet18(width=1 / 32), r"bn.weight is in .*final_norm=True\)$"),
        (
            "dm_wide_resnet16",
            WideResNet(depth=16, width=1 / 4),
            r"no (conv1.weight|bn1.running_mean).*DMWideResNet\(.*depth=16\)$",
        ),
        ("wide_resnet16", WideResNet(depth=28, width=1 / 2), r"they look like WideResNet\(width=0.5, depth=16\)$"),
    ],
)
def test_refusals_name_what_the_weights_look_like(name, model, message):
    with pytest.raises(UserError, match=message):
        load_torch(fixture(name)[0], model)
