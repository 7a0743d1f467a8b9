"""Weights of PyTorch modules defined here: flattened features in any order, and architectures without a fixture."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models import blocks
from advjax.models.custom_cnn import Custom1, Custom2, CustomCifar
from advjax.models.keras_resnet import ResNet20v1
from advjax.models.resnet9 import ResNet9
from advjax.models.torch.weights import load_torch
from support.files import module_from
from support.paths import REPOSITORY

torch = pytest.importorskip("torch")


class PoolingHead(nn.Module):
    """Pools before it flattens; "own" rows, columns, channels, or "torch" channels first."""

    order: str

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.transpose(0, 3, 1, 2) if self.order == "torch" else x
        return nn.Dense(7, name="dense")(nn.relu(x.reshape(len(x), -1)))


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Conv(5, (3, 3), name="conv")(x)


class Own(blocks.Classifier):
    order: str = "own"

    def make_blocks(self):
        return {"body": Convolution(), "head": PoolingHead(self.order)}


def logits_of(network, images):
    with torch.no_grad():
        return network.eval()(torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())).numpy()


@pytest.mark.parametrize("order", ["own", "torch"])
def test_a_block_may_pool_and_transpose_before_it_flattens(order):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3, padding=1),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.ReLU(),
        torch.nn.Linear(5 * 3 * 4, 7),
    )
    images = jax.random.uniform(jax.random.key(0), (4, 6, 8, 3))
    model, layers = Own(order=order), {"body/conv": ["0"], "head/dense": ["4"]}
    variables = load_torch(network.state_dict(), model, (6, 8, 3), names=layers.__getitem__)
    np.testing.assert_allclose(blocks.apply(model, variables, images), logits_of(network, images), atol=1e-5)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, variables.params))


def conv_block(inputs, outputs, pool=False, bias=False):
    layers = [torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, *[torch.nn.MaxPool2d(2)] * pool)


def resnet9(head, pool3=False, bias=False, inputs=128):
    """The common one, a sixteenth as wide."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = conv_block(3, 4, bias=bias), conv_block(4, 8, True, bias)
            self.res1 = torch.nn.Sequential(conv_block(8, 8, bias=bias), conv_block(8, 8, bias=bias))
            self.conv3, self.conv4 = conv_block(8, 16, pool3, bias), conv_block(16, 32, True, bias)
            self.res2 = torch.nn.Sequential(conv_block(32, 32, bias=bias), conv_block(32, 32, bias=bias))
            self.classifier = torch.nn.Sequential(*head, torch.nn.Linear(inputs, 10))

        def forward(self, x):
            x = self.conv2(self.conv1(x))
            x = self.conv4(self.conv3(self.res1(x) + x))
            return self.classifier(self.res2(x) + x)

    return Network()


def same(x, size, stride):
    """Padded as in TensorFlow: the odd row and column come last."""
    total = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[2:]]
    rows, columns = total
    return torch.nn.functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class KerasBlock(torch.nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = torch.nn.Conv2d(inputs, outputs, 3, stride), torch.nn.BatchNorm2d(outputs, eps=1e-3)
        self.conv2, self.bn2 = torch.nn.Conv2d(outputs, outputs, 3), torch.nn.BatchNorm2d(outputs, eps=1e-3)
        self.shortcut = torch.nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else torch.nn.Identity()

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(same(x, 3, self.stride))))
        return torch.relu(self.shortcut(x) + self.bn2(self.conv2(same(y, 3, 1))))


class KerasResNet20(torch.nn.Module):
    """A quarter as wide."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4, eps=1e-3)
        ends = ((4, 4, 1), (4, 8, 2), (8, 16, 2))
        for i, (inputs, outputs, stride) in enumerate(ends, 1):
            rest = [KerasBlock(outputs, outputs, 1) for _ in range(2)]
            self.add_module(f"layer{i}", torch.nn.Sequential(KerasBlock(inputs, outputs, stride), *rest))
        self.linear = torch.nn.Linear(16, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


class Custom(torch.nn.Module):
    """Custom 1 or, with a linear hidden layer, custom CIFAR, half as wide."""

    def __init__(self, inputs, stride, flat, relu):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, 16, 5, padding="same")
        self.conv2, self.conv3 = (torch.nn.Conv2d(number, 32, 8, padding="same") for number in (16, 32))
        self.fc1, self.fc2 = torch.nn.Linear(flat, 32), torch.nn.Linear(32, 10)
        self.stride, self.relu = stride, relu

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.conv1(x)), 3, self.stride)
        x = torch.nn.functional.avg_pool2d(torch.relu(self.conv2(x)), 3, self.stride)
        x = torch.nn.functional.avg_pool2d(torch.relu(self.conv3(x)), 3, self.stride)
        x = self.fc1(x.flatten(1))
        return self.fc2(torch.relu(x) if self.relu else x)


class CleverHans(torch.nn.Module):
    """Custom 2, an eighth as wide."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(1, 8, 8, 2, padding=3), torch.nn.Conv2d(8, 16, 6, 2)
        self.conv3, self.fc = torch.nn.Conv2d(16, 16, 5), torch.nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))).flatten(1))


POOLED = [torch.nn.MaxPool2d(4), torch.nn.Flatten()]
BOTH = [torch.nn.MaxPool2d(4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
AVERAGED = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
GRAY, COLOR = (28, 28, 1), (32, 32, 3)
FAMILIES = {
    "resnet9": (lambda: resnet9(POOLED), ResNet9(width=1 / 16), COLOR),
    "resnet9_known": (
        lambda: resnet9([*POOLED, torch.nn.Dropout(0.2)], pool3=True, bias=True, inputs=32),
        ResNet9(width=1 / 16, pool3=True),
        COLOR,
    ),
    "resnet9_average": (lambda: resnet9(AVERAGED, inputs=32), ResNet9(width=1 / 16, head="average"), COLOR),
    "resnet9_hist": (lambda: resnet9(BOTH, inputs=32), ResNet9(width=1 / 16, head="max4_average"), COLOR),
    "resnet20v1": (KerasResNet20, ResNet20v1(width=1 / 4), COLOR),
    "custom1": (lambda: Custom(1, 2, 128, relu=True), Custom1(width=1 / 2, pool_stride=2), GRAY),
    "custom_cifar": (lambda: Custom(3, 3, 32, relu=False), CustomCifar(width=1 / 2), COLOR),
    "custom2": (CleverHans, Custom2(width=1 / 8), GRAY),
}


@pytest.fixture(scope="module")
def networks():
    return module_from(REPOSITORY / "tests" / "models" / "torch_fixtures" / "make_torch_fixtures.py")


@pytest.mark.parametrize("name", FAMILIES)
def test_families_load_by_their_usual_names(name, networks):
    build, model, image_shape = FAMILIES[name]
    images = networks.random_images(image_shape)
    network = networks.with_logits_of_order_one(networks.trained_looking(build()), images)
    variables = load_torch(network.state_dict(), model, image_shape)
    found = blocks.apply(model, variables, images / np.float32(255))
    expected = networks.logits_of(network, images)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert np.ptp(expected, axis=0).max() > 1e-2, "logits that hardly depend on the images would prove little"
