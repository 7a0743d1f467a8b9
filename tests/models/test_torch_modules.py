"""Live PyTorch modules: loaded and compared in one step, whatever mode they are in."""

import re

import numpy as np
import pytest

from advjax.models import blocks
from advjax.models.deepmind_resnet import DMPreActResNet18
from advjax.models.preact_resnet import PreActResNet18
from advjax.models.torch import from_torch, load_torch
from advjax.types import UserError
from support.paths import REPOSITORY
from support.torch_families import CIFAR, torch_networks

torch = pytest.importorskip("torch")
CHANNELS = (2, 2, 4, 8, 16)


@pytest.fixture(scope="module")
def networks():
    return torch_networks()


def test_a_module_in_train_mode_is_compared_in_eval_mode(networks, recwarn):
    network = networks.trained_looking(networks.PreActResNet(CHANNELS, raw=True)).train()
    network.layer2.eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    model = PreActResNet18(width=1 / 32, shortcut_input="raw")
    variables = load_torch(network, model)
    images = networks.random_images((32, 32, 3))
    np.testing.assert_allclose(
        blocks.apply(model, variables, images / np.float32(255)),
        networks.logits_of(network.eval(), images),
        atol=1e-4,
    )
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not [each for each in recwarn if "compared" in str(each.message)]


def test_the_modes_of_all_parts_are_restored(networks):
    network = networks.trained_looking(networks.PreActResNet(CHANNELS)).train()
    network.layer2.eval()
    load_torch(network, PreActResNet18(width=1 / 32))
    assert network.training and network.layer1[0].bn1.training and not network.layer2[0].bn1.training


def test_a_module_that_computes_something_else_is_refused(networks):
    network = networks.trained_looking(networks.PreActResNet(CHANNELS, raw=True))
    with pytest.raises(UserError, match=r"those of PreActResNet18\(.*shortcut_input='raw'\) agree"):
        load_torch(network, PreActResNet18(width=1 / 32))
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps = 1e-2
    with pytest.raises(UserError, match="computes something else than the PyTorch network"):
        load_torch(network, PreActResNet18(width=1 / 32, shortcut_input="raw"))


def test_wrapped_modules(networks):
    network = networks.trained_looking(torch.nn.Sequential(networks.Normalize(), networks.DMPreActResNet(CHANNELS)))
    model = DMPreActResNet18(width=1 / 32, **CIFAR)
    for wrapped in (network, torch.nn.DataParallel(network), torch.nn.Sequential(network)):
        load_torch(wrapped, model)


def test_heads_without_bias(networks):
    linear = networks.PreActResNet(CHANNELS, bias=False)
    load_torch(networks.trained_looking(linear), PreActResNet18(width=1 / 32))

    class Cosine(torch.nn.Linear):
        """Of Pang et al. (2020): with the names and shapes of a linear layer."""

        def forward(self, x):
            return torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(self.weight).T

    linear.linear = Cosine(CHANNELS[-1], 10, bias=False)
    images = networks.random_images((32, 32, 3)).astype(np.float32) / 255
    with pytest.raises(UserError, match="the logits differ from PyTorch's"):
        load_torch(networks.trained_looking(linear), PreActResNet18(width=1 / 32), images=images)
    # Its own architecture is not needed.
    from_torch(linear, images)


@pytest.mark.parametrize(
    "network, kwargs, error, message",
    [
        (torch.nn.Linear(3, 2), {}, UserError, r"Linear cannot be applied to images \[n, h, w, c\] of shape"),
        (torch.nn.Conv2d(3, 2, 3), {}, UserError, r"Conv2d must return logits \[n, classes\], but it returns shape"),
        (torch.nn.LSTM(32, 2), {}, UserError, "LSTM "),
        (torch.nn.Flatten(), {"logits": np.zeros((8, 2))}, ValueError, "logits must not be given for a module"),
    ],
)
def test_modules_that_do_not_return_logits_are_refused(network, kwargs, error, message):
    with pytest.raises(error, match=message):
        load_torch(network, PreActResNet18(width=1 / 32), **kwargs)


def test_the_snippets_of_the_documentation(networks, tmp_path, monkeypatch):
    network = networks.PreActResNet(CHANNELS, final_norm=True, raw=True, normalize=True)
    network = networks.trained_looking(network)
    pixels = networks.random_images((32, 32, 3))
    names = {"network": network, "images": pixels.astype(np.float32) / 255, "labels": np.arange(4)}
    names["torch_logits"] = networks.logits_of(network, pixels)
    torch.save(network.state_dict(), tmp_path / "linf.pt")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "pytorch.md").read_text(), re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        exec(snippet, names)
    np.testing.assert_allclose(names["logits_fn"](names["images"]), names["torch_logits"], atol=1e-4)
    assert names["result"].images.shape == (4, 32, 32, 3)
