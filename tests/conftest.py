"""Shared fixtures.

The environment is set before JAX is imported: four virtual CPU devices, and a thread pool that cannot starve them.
Compiling is most of the time of most tests: many compile the same program, so they share one cache, and are compiled
without much thought.  Tests that compute more than they compile, or that are about the last bit, are not
(``pytest.mark.optimized``).  The fast tests compile in one thread, with XLA's older emitters for the CPU, a third
quicker than its new ones; with ``pytest -m "slow or optimized"`` the optimized ones are compiled exactly as users'
programs are.
"""

import gc
import math
import os
import pathlib
import subprocess
import sys

from support.paths import REPOSITORY

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
# More virtual devices than cores: XLA's thread pool must still hold one thread per device, or collectives never meet.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

QUICK_TO_COMPILE = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
"""Old emitters, and programs in one piece: the pieces are compiled in parallel, but the cores are busy as it is."""
RARELY = (100_000, 50, 1_000)
"""When Python looks for garbage: JAX traces and keeps millions of objects, hardly any of which is garbage."""
MOST_MEMORY = 2 * 2**30
"""Of a worker, in bytes, above which programs of earlier modules are dropped."""


def pytest_configure(config):
    """Before JAX looks for its devices and, with several workers, before they inherit the environment."""
    gc.set_threshold(*RARELY)
    if config.option.markexpr == "not slow" and "XLA_FLAGS" not in os.environ:
        known = QUICK_TO_COMPILE if xla_knows(*QUICK_TO_COMPILE) else filter(xla_knows, QUICK_TO_COMPILE)
        os.environ["XLA_FLAGS"] = " ".join(known)


def xla_knows(*flags):
    """XLA ends a process that asks for a flag which it does not have, any longer or yet."""
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def pytest_collection_modifyitems(items):
    """Tests that share what takes long to make come first: idle workers steal the last, and would make it anew."""
    items.sort(key=lambda item: item.path.name not in ("test_train.py", "test_evaluate.py"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Programs are optimized only where a test asks for it."""
    jax.config.update("jax_disable_most_optimizations", not is_optimized(item))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Drops the programs of a module where the next one is optimized otherwise, or the memory fills with them."""
    if nextitem is None or nextitem.path == item.path:
        return
    if is_optimized(nextitem) != is_optimized(item) or resident_memory() > MOST_MEMORY:
        jax.clear_caches()


def is_optimized(item):
    return item.get_closest_marker("optimized") is not None


def resident_memory():
    """Of this process, in bytes; infinite where it cannot be known."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else math.inf


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder with the development data (real CIFAR-10 and MNIST, reference outputs of the original attacks)."""
    folder = pathlib.Path(os.environ.get("ADVJAX_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"development data not found at {folder}; set ADVJAX_SHARED to the folder that holds them")
    return folder
