"""Attacks of an evaluation, run on a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.data import Dataset
from advjax.evaluation.attack_runs import Resources, run_attack
from advjax.evaluation.scored_model import ScoredModel
from advjax.experiment.build_attack import build_attack
from advjax.runtime.devices import Devices
from support import attack_models as am


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "pgd", "num_steps": 2, "step_size": 0.05, "epsilon": 0.1},
        {"name": "deepfool", "num_steps": 2, "norm": "l2", "epsilon": "inf"},
    ],
    ids=lambda spec: spec["name"],
)
def test_every_attack_can_search_in_another_type(spec):
    """Verdicts are in the type of the model."""
    images = am.gray_images(6)
    linear = am.random_linear(images, num_classes=3)
    labels = np.argmax(linear(images), axis=-1).astype(np.int32)
    seen = []

    def bind(variables):
        def model(images):
            seen.append((images.dtype, variables.weights.dtype))
            return variables(images)

        return model

    named = build_attack("attack", {**spec, "search_dtype": "bfloat16"}, "here")
    dataset = Dataset("gray", images, labels, np.arange(6, dtype=np.int32), ("a", "b", "c"))
    devices = Devices(jax.sharding.Mesh(jax.devices()[:1], ("data",)), "shard_map")
    source = ScoredModel("run", "none", bind, jax.tree.map(jnp.asarray, linear), "")
    found = run_attack(source, named, dataset, Resources(devices, 8, 0, None), survivors_only=True)
    assert (
        {images for images, _ in seen}
        == {weights for _, weights in seen}
        == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    )
    wrong = np.argmax(linear(found.images), axis=-1) != labels
    np.testing.assert_array_equal(found.broken_by >= 0, wrong)
