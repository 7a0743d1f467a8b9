"""Small experiments on digits, and the devices to run them on."""

import jax

from advjax.experiment import defaults
from advjax.experiment.from_config import from_config
from advjax.models import blocks
from advjax.runtime import devices as sharding
from advjax.runtime.devices import Devices


def devices(mapping="shard_map"):
    return Devices(sharding.mesh(), mapping)


def small_config(num_validation=0, image_size=16, **changes):
    """One small network on digits, a few steps long."""
    method = {"model": {"name": "lenet5"}, "num_steps": 2, "batch_size": 16, "train_fraction": 0.05, **changes}
    return defaults.experiment(
        data={"name": "digits", "image_size": image_size, "num_validation": num_validation},
        runs=("base",),
        run={"base": defaults.run(**method)},
        evaluation={"batch_size": 16},
    )


def built(num_validation=0, image_size=16, **changes):
    """The experiment of ``small_config``."""
    return from_config(small_config(num_validation, image_size, **changes))


def fresh(experiment):
    return blocks.init(experiment.runs[0].model, jax.random.key(0), experiment.facts.image_shape)
