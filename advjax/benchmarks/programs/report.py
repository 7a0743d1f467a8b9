"""What is said of a compiled program: as plain data, and as lines to read."""

from collections.abc import Iterator, Mapping
from typing import Any

from advjax.benchmarks.programs.facts import Array, Facts, Region
from advjax.benchmarks.programs.product import Compiled
from advjax.benchmarks.programs.targets import Peaks, Target

NUM_LISTED = 5
"""Arrays that are named in each list."""


def describe(target: Target, program: str, compiled: Compiled, facts: Facts, image_shape: tuple[int, ...]) -> dict:
    """All facts about a compiled program as plain data; sizes in bytes, per device."""
    batch_bytes = 4 * compiled.images_per_device
    for size in image_shape:
        batch_bytes *= size
    # A GPU wants kernels in another order than they are stored in, and copies each of them.
    large = max(batch_bytes, compiled.largest_variable)
    memory = compiled.compiled.memory_analysis()
    parts = {part: int(getattr(memory, f"{part}_size_in_bytes")) for part in ("argument", "output", "alias", "temp")}
    return {
        "target": target.name,
        "program": program,
        "devices": compiled.num_devices,
        "images_per_device": compiled.images_per_device,
        "batch_bytes": batch_bytes,
        "largest_variable": compiled.largest_variable,
        "flop": facts.flop,
        "bytes": facts.nbytes,
        "peak_memory": {**parts, "total": parts["argument"] + parts["output"] - parts["alias"] + parts["temp"]},
        "roofline": roofline(facts, target.peaks),
        "products": [
            {"kind": made.kind, "types": made.types, "precision": made.precision, "count": count, "flop": made.flop}
            for made, count in facts.products
        ],
        "kernels": facts.kernels,
        "step": _region(facts.step),
        "loops": [_region(loop) for loop in facts.loops],
        "conditionals": facts.conditionals,
        "collectives": [_array(found) for found in facts.collectives],
        "copies": [_array(found) for found in facts.copies],
        "large_copies": [_array(found) for found in facts.copies if found.nbytes > large],
        "host_calls": list(facts.host_calls),
        "largest_constant": facts.largest_constant,
    }


def roofline(facts: Facts, peaks: Peaks) -> dict[str, Any]:
    """The shortest time that the published peaks allow, and which of them it comes from; no time of any program."""
    arithmetic = sum(peaks.seconds(made) for made, _ in facts.products)
    memory = facts.nbytes / peaks.bytes_per_second
    roof = "arithmetic" if arithmetic > memory else "memory"
    return {"lower_bound_seconds": max(arithmetic, memory), "roof": roof, "arithmetic": arithmetic, "memory": memory}


def lines(said: Mapping[str, Any]) -> Iterator[str]:
    """The same to read."""
    yield f"{said['program']} for {said['target']}: compiled, neither run nor timed; per device of {said['devices']}"
    yield f"  images                 {said['images_per_device']} ({_size(said['batch_bytes'])} in float32)"
    yield f"  arithmetic             {said['flop'] / 1e9:.4g} GFLOP in convolutions and products"
    yield f"  main memory traffic    {_size(said['bytes'])}"
    memory = said["peak_memory"]
    yield f"  peak memory            {_size(memory['total'])}, {_size(memory['temp'])} of it temporary"
    roof = said["roofline"]
    yield (
        f"  roofline               at least {roof['lower_bound_seconds'] * 1e3:.4g} ms by published peaks, limited by "
        f"{roof['roof']} (arithmetic {roof['arithmetic'] * 1e3:.4g} ms, memory {roof['memory'] * 1e3:.4g} ms)"
    )
    for made in said["products"]:
        yield (
            f"  {made['count']:>3} {made['kind'] + 's':<19}{made['types']}, precision {made['precision']}, "
            f"{made['flop'] / 1e9:.4g} GFLOP"
        )
    step = said["step"]
    where = "the program has no loop around the network" if not step["depth"] else f"{_trips(step)} steps"
    yield f"  kernels per step       {step['kernels']} ({where}), {said['kernels']} in all"
    yield (
        f"  in a step              {_size(step['bytes'])} of traffic, {step['conditionals']} conditionals, "
        f"{step['loops_inside']} loops"
    )
    unknown = [loop for loop in said["loops"] if loop["trips"] is None]
    yield f"  loops                  {len(said['loops'])}, {len(unknown)} of them with an unknown number of turns"
    yield f"  conditionals           {said['conditionals']}"
    yield from _listed("collectives", said["collectives"])
    yield from _listed("large copies", said["large_copies"])
    yield f"  host calls             {', '.join(said['host_calls']) or 'none'}"
    yield f"  largest constant       {_size(said['largest_constant'])}"


def _listed(title: str, arrays: list[dict[str, Any]]) -> Iterator[str]:
    yield f"  {title:<22} {len(arrays)}, {_size(sum(array['bytes'] for array in arrays))}"
    for array in arrays[:NUM_LISTED]:
        kind = array["type"] if len(array["type"]) <= 60 else f"{array['type'][:57]}..."
        yield f"    {array['kind']} {kind}: {_size(array['bytes'])}"


def _array(found: Array) -> dict[str, Any]:
    return {"name": found.name, "kind": found.kind, "type": found.type, "bytes": found.nbytes}


def _region(region: Region) -> dict[str, Any]:
    fields = region._asdict()
    return {"bytes": fields.pop("nbytes"), **fields}


def _trips(region: Mapping[str, Any]) -> str:
    return "an unknown number of" if region["trips"] is None else str(region["trips"])


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
