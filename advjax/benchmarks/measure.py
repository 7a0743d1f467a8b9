"""Measures time in interleaved rounds, compilation time, peak memory, and the matrix-product speed of the machine."""

import os
import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

CEILING_SIZE = 2048
Result = TypeVar("Result")


class Timing(NamedTuple):
    """Timed calls of one contender."""

    seconds: list[float]
    """Wall-clock seconds of each timed call, excluding compilation."""
    cpu_seconds: list[float]
    """CPU seconds of all threads in the same calls, including compilation."""
    compile_seconds: float
    """Seconds of tracing, lowering and compilation in the first call."""
    later_compile_seconds: list[float]
    """The same of each timed call; of the runner, what it does again for a model that it has seen."""
    is_first_call: bool
    """Whether the budget allowed only the first call, so that ``seconds`` includes warm-up."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


class CompileClock:
    """Records how long JAX spends tracing, lowering and compiling in this process."""

    def __init__(self) -> None:
        self._lock, self._spans = threading.Lock(), []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            with self._lock:
                self._spans.append((end - duration_secs, end))

    def between(self, begin: float, end: float) -> float:
        """Compilation seconds between two values of ``time.perf_counter``; nested traces count once."""
        with self._lock:
            spans = sorted((max(a, begin), min(b, end)) for a, b in self._spans if b > begin and a < end)
        total, reached = 0.0, begin
        for a, b in spans:
            total += max(b - max(a, reached), 0.0)
            reached = max(reached, b)
        return total


def interleaved(
    runs: Mapping[str, Callable[[], Result]],
    *,
    rounds: int,
    budget: float,
    clock: CompileClock,
    after_round: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Timing], dict[str, Result]]:
    """Calls every contender once to warm up, then in rounds A B C A B C, so that slow phases affect all of them.

    Args:
      runs: contender -> a function that blocks until its work is done.
      rounds: timed calls per contender.
      budget: seconds without compilation after which a contender is not called again; if its first call exceeds them,
        that one is timed.
      clock: measures the compilation time, which is subtracted from the wall-clock time.
      after_round: called after the warm-up and after each round.

    Returns:
      The timings, and what the first calls returned.
    """
    firsts = {name: timed(run, clock) for name, run in runs.items()}
    after_round()
    calls: dict[str, list[CallTime]] = {name: [] for name in runs}
    spent = {name: first.seconds - first.compile_seconds for name, (first, _) in firsts.items()}
    for _ in range(rounds):
        for name, run in runs.items():
            if spent[name] < budget:
                called, _ = timed(run, clock)
                calls[name].append(called)
                spent[name] += called.seconds - called.compile_seconds
        after_round()
    timings = {}
    for name, (first, _) in firsts.items():
        kept = calls[name] or [first]
        timings[name] = Timing(
            [call.seconds - call.compile_seconds for call in kept],
            [call.cpu_seconds for call in kept],
            first.compile_seconds,
            [call.compile_seconds for call in kept],
            not calls[name],
        )
    return timings, {name: result for name, (_, result) in firsts.items()}


class CallTime(NamedTuple):
    """How long one call took."""

    seconds: float
    """Wall-clock time, including compilation."""
    cpu_seconds: float
    compile_seconds: float


def timed(run: Callable[[], Result], clock: CompileClock) -> tuple[CallTime, Result]:
    """Times one call; returns its result, too."""
    cpu, begin = time.process_time(), time.perf_counter()
    result = run()
    end = time.perf_counter()
    return CallTime(end - begin, time.process_time() - cpu, clock.between(begin, end)), result


class Ceiling:
    """Speed of a large float32 matrix product on the same device and threads, as a reference for the networks."""

    def __init__(self, size: int = CEILING_SIZE, repeats: int = 1):
        self.size, self.repeats, self.gflops = size, repeats, []
        key = jax.random.key(0)
        self._factor = jax.random.normal(key, (size, size), jnp.float32) / np.sqrt(size)
        self._product = jax.jit(lambda a, b: a @ b)
        self._product(self._factor, self._factor).block_until_ready()

    def measure(self) -> None:
        """Times the product once more."""
        begin = time.perf_counter()
        product = self._factor
        for _ in range(self.repeats):
            product = self._product(self._factor, product)
        product.block_until_ready()
        self.gflops.append(2 * self.size**3 * self.repeats / (time.perf_counter() - begin) / 1e9)

    @property
    def median(self) -> float:
        return statistics.median(self.gflops)


def peak_memory_mib() -> float:
    """Peak memory so far: of the accelerator if there is one, else the resident set of this process."""
    found = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if found is not None:
        return found["peak_bytes_in_use"] / 2**20
    # Not getrusage, whose maximum includes the memory of the parent process before exec.
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


def forget_peak_memory() -> None:
    """Resets the peak of the resident set; that of an accelerator cannot be reset."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def limit_threads(count: int) -> Sequence[int]:
    """Binds this process to ``count`` CPUs and sizes the thread pools of XLA and torch accordingly.

    The binding holds whatever a library does; the environment variables keep pools from oversubscribing it, and torch's
    threads from spinning while idle.  Must be called before JAX initializes a backend and before torch is imported.

    Returns:
      The CPUs that the process is bound to.
    """
    available = sorted(os.sched_getaffinity(0))
    chosen = available[:count]
    os.sched_setaffinity(0, chosen)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
        os.environ[name] = str(len(chosen))
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    return chosen
