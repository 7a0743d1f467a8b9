"""Patched and defended networks as files that run without advjax (the recipe of docs/export.md)."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from advjax import defenses
from advjax.experiment import registry
from advjax.models import blocks
from advjax.models.fixer import with_fixers
from support.paths import REPOSITORY
from support.tiny_models import SHAPE, Tiny, fresh

RECIPES = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "export.md").read_text(), re.DOTALL)
IMAGES = np.random.default_rng(0).random((5, *SHAPE)).astype(np.float32)
RUN = """
import sys
import jax, numpy as np
from jax import export

class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("advjax", "flax"), name

sys.meta_path.insert(0, Refuse())
exported = export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2])
assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
more = [np.array([0, 7], np.uint32)] if len(exported.in_avals) > 1 else []
# Any number of images.
for count in (1, len(images)):
    logits = exported.call(images[:count], *more)
np.save(sys.argv[3], logits)
"""


def patched():
    network = with_fixers(Tiny(), after=("conv",), reduction=1)
    variables = fresh(network)
    return network, variables, blocks.logits_fn(network, variables)


def run_alone(path, tmp_path):
    """Logits of a file, in a process that cannot import advjax."""
    np.save(tmp_path / "images.npy", IMAGES)
    arguments = [str(path), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(tmp_path / "logits.npy")


@pytest.mark.parametrize("name", registry.MODELS)
def test_the_batch_size_of_every_network_may_stay_free(name):
    """Also of those that reshape: nothing asks for the number of images."""
    shape = (32, 32, 1 if name in ("lenet5", "net62k", "custom1") else 3)
    network = registry.MODELS[name](num_classes=10)
    variables = jax.eval_shape(lambda: blocks.init(network, jax.random.key(0), shape))
    images = jax.ShapeDtypeStruct(export.symbolic_shape(f"n, {shape[0]}, {shape[1]}, {shape[2]}"), jnp.float32)
    logits = jax.eval_shape(lambda variables, images: blocks.apply(network, variables, images), variables, images)
    assert logits.shape == (images.shape[0], 10)


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """What the recipes of the page work on."""
    pytest.importorskip("flatbuffers", reason="needs flatbuffers, which is in the extra 'export'")
    monkeypatch.chdir(tmp_path)
    network = type("Network", (), {"logits_fn": staticmethod(patched()[2])})
    return {"network": network, "defenses": defenses, "height": SHAPE[0], "width": SHAPE[1], "channels": SHAPE[2]}


def test_a_patched_network_runs_from_its_file(namespace, tmp_path):
    exec(RECIPES[0], namespace)
    expected = patched()[2](IMAGES)
    np.testing.assert_allclose(run_alone(tmp_path / "network.jax", tmp_path), expected, rtol=1e-5, atol=1e-6)


def test_a_stochastic_defense_runs_from_its_file_with_a_key(namespace, tmp_path):
    exec(RECIPES[0], namespace)
    exec(RECIPES[1], namespace)
    key = jax.random.wrap_key_data(jnp.array([0, 7], jnp.uint32))
    expected = defenses.gaussian_smoothing(patched()[2], 0.1)(IMAGES, key)
    found = run_alone(tmp_path / "defended.jax", tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, patched()[2](IMAGES), atol=1e-3)
