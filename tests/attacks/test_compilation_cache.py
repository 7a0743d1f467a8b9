"""The persistent compilation cache of attacks that are used alone."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from advjax import attacks

NAMES = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(autouse=True)
def restored():
    before = {name: getattr(jax.config, name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_one_call_keeps_programs_for_later_processes(tmp_path):
    """Also after programs have been compiled."""
    jax.jit(lambda x: x + 1.5)(jnp.ones(3)).block_until_ready()
    attacks.use_compilation_cache(tmp_path / "programs", min_compile_seconds=0)
    jax.jit(lambda x: jnp.sin(x) * 2.5)(jnp.ones(3)).block_until_ready()
    assert list((tmp_path / "programs").iterdir())
