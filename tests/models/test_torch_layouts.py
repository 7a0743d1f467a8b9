"""Weights of PyTorch modules written here: flattened features in any order, and the families without a fixture."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.models import blocks
from advjax.models.pooling import max_pool
from advjax.models.torch_weights import load_torch

torch = pytest.importorskip("torch")


class PoolingHead(nn.Module):
    """Pools before it flattens; "own" rows, columns, channels, or "torch" channels first."""

    order: str

    @nn.compact
    def __call__(self, x, *, train=False):
        x = max_pool(x, (2, 2))
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
