import types

import jax
import numpy as np
import pytest

from advjax import attacks
from advjax.attacks import program_cache
from advjax.cpu import compiling
from advjax.runtime import devices

ONE_CPU = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("data",))
OLD_EMITTERS = {"xla_cpu_use_fusion_emitters": False}


def is_compiled(options):
    try:
        return jax.jit(lambda x: 2 * x, compiler_options=options)(np.float32(3)) == 6
    except jax.errors.JaxRuntimeError:
        return False


def test_programs_for_cpus_are_compiled_the_older_way_where_there_is_one(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiling.compiler_options(ONE_CPU) == (OLD_EMITTERS if is_compiled(OLD_EMITTERS) else {})


def test_the_compiler_takes_the_options(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert is_compiled(compiling.compiler_options(ONE_CPU))


def test_an_option_that_xla_does_not_have_is_not_passed_on(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(compiling, "NEW_EMITTERS", "xla_cpu_no_such_option")
    assert not is_compiled({"xla_cpu_no_such_option": False})
    assert compiling.compiler_options(ONE_CPU) == {}


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_other_devices_keep_what_xla_chooses(monkeypatch, platform):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(compiling, "_knows", lambda option, value: True)
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    assert compiling.compiler_options(mesh) == {}  # type: ignore


@pytest.mark.parametrize("chosen", ["true", "false"])
def test_what_the_user_chose_stays(monkeypatch, chosen):
    monkeypatch.setattr(compiling, "_knows", lambda option, value: True)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_use_fusion_emitters={chosen}")
    assert compiling.compiler_options(ONE_CPU) == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert compiling.compiler_options(ONE_CPU) == OLD_EMITTERS


def unknown_option(mesh, quickly=False):
    return {"no_such_option": True}


def test_the_programs_of_attacks_are_compiled_with_them(monkeypatch):
    monkeypatch.setattr(program_cache, "compiler_options", unknown_option)
    images, labels = np.full((2, 3, 3, 1), 0.5, np.float32), np.zeros(2, np.int32)
    threat_model = attacks.linf(0.1)
    stages = attacks.quick_check_stages(threat_model)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        attacks.run_stages(stages, threat_model, lambda images: images.sum((1, 3)), images, labels)


@pytest.mark.parametrize("mapping", ["shard_map", "jit"])
def test_parallel_programs_are_compiled_with_them(monkeypatch, mapping):
    monkeypatch.setattr(devices, "compiler_options", unknown_option)
    mesh = devices.mesh()
    double = devices.parallelize(lambda x, axis_name: 2 * x, mapping, mesh, in_sharded=(True,), out_sharded=True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        double(np.ones(4, np.float32))
