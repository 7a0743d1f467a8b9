"""Measurements as the benchmark makes them, with made-up numbers."""

from advjax.benchmarks import results


def row(task="pgd-20", contender="advjax", seconds=(2.0, 1.0, 4.0), **kwargs):
    fields = {
        "is_ours": contender.startswith(("advjax", "flax")),
        "version": "1",
        "examples": 8,
        "seconds": list(seconds),
        "cpu_seconds": [3.0],
        "compile_seconds": 0.5,
        "later_compile_seconds": [0.0],
        "is_first_call": False,
        "gflops": None,
        "ceiling_share": None,
        "remaining_accuracy": 0.5,
        "median_l2": 1.0,
        "loss": None,
        "processes": None,
    }
    return results.Measurement(task=task, contender=contender, **(fields | kwargs))


def processes(added_mib=50.0, first=4.0, warm=2.0, again=0.02):
    """As of ``calls.in_processes``: the first call compiles for half of its time, the second for ``again`` seconds."""

    def process(seconds):
        calls = [(seconds, seconds / 2), (1.0, again)]
        made = [{"seconds": a, "cpu_seconds": a, "compile_seconds": b} for a, b in calls]
        return {"idle": 100.0, "peak": 100.0 + added_mib, "calls": made}

    return {"cold": process(first), "warm": process(warm)}
