"""ResNet9 as somebody would write it who does not know advjax: one flax module of flax's own layers."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from advjax.types import Array, LogitsFn, PyTree, Variables


class FlaxResNet9(nn.Module):
    """The layers of ``models.resnet9.ResNet9``, called by names that only this module uses."""

    width: float = 1.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        def layer(x: Array, features: int, name: str) -> Array:
            x = nn.Conv(max(1, round(self.width * features)), (3, 3), padding=1, use_bias=False, name=f"{name}_conv")(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
            return nn.relu(x)

        def halved(x: Array) -> Array:
            return nn.max_pool(x, (2, 2), (2, 2))

        x = halved(layer(layer(x, 64, "conv1"), 128, "conv2"))
        x = x + layer(layer(x, 128, "res1_first"), 128, "res1_second")
        x = halved(layer(layer(x, 256, "conv3"), 512, "conv4"))
        x = x + layer(layer(x, 512, "res2_first"), 512, "res2_second")
        x = nn.max_pool(x, (4, 4), (4, 4))
        return nn.Dense(10, name="head_dense")(x.reshape(len(x), -1))


def foreign_logits_fn(width: float) -> Callable[[PyTree], LogitsFn]:
    """``variables -> logits_fn`` of the network."""
    return lambda variables: lambda images: jnp.asarray(FlaxResNet9(width).apply(variables, images))


def foreign_variables(variables: Variables) -> dict[str, PyTree]:
    """The variables of our ResNet9 under the names of ``FlaxResNet9``, as linen takes them."""
    return {"params": _renamed(variables.params), "batch_stats": _renamed(variables.model_state["batch_stats"])}


def _renamed(tree: PyTree) -> PyTree:
    renamed: dict[str, dict[str, PyTree]] = {}
    for path, leaf in flatten_dict(tree).items():
        layers = [part.removeprefix("block_") for part in path[:-1] if part != "conv_block"]
        renamed.setdefault("_".join(layers), {})[path[-1]] = leaf
    return renamed
