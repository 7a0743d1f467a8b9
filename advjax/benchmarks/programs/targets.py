"""Devices that programs are compiled for, with their published peaks; they need not be here."""

import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from advjax.benchmarks.programs.arithmetic import Product
from advjax.runtime.collectives import AXIS
from advjax.types import UserError

EXAMPLES = "tpu:v5e:1x1, tpu:v5e:4x4 or cuda:h100"
_LIBRARIES = {"tpu": "libtpu", "cuda": "jax-cuda12-plugin and the CUDA compiler"}


class Peaks(NamedTuple):
    """Published limits of one device."""

    flop_per_second: dict[tuple[str, str], float]
    """``(type of the operands, precision) -> peak`` of convolutions and products."""
    bytes_per_second: float
    """Of the main memory."""

    def seconds(self, product: Product) -> float:
        """The shortest time for convolutions and products of one kind."""
        # Where the operands differ, the compiler has rounded one of them for the same passes.
        dtype = "float32" if "f32" in product.dtypes[:2] else "bfloat16"
        return product.flop / self.flop_per_second[dtype, product.precision]


V5E = Peaks(
    # One pass of bfloat16 by default; three or six for more.
    {
        ("bfloat16", "default"): 197e12,
        ("bfloat16", "high"): 197e12,
        ("bfloat16", "highest"): 197e12,
        ("float32", "default"): 197e12,
        ("float32", "high"): 197e12 / 3,
        ("float32", "highest"): 197e12 / 6,
    },
    819e9,
)
"""Google Cloud, "TPU v5e": 197 TFLOP/s in bfloat16 and 819 GB/s of HBM on each chip."""
H100 = Peaks(
    {
        ("bfloat16", "default"): 989e12,
        ("bfloat16", "high"): 989e12,
        ("bfloat16", "highest"): 989e12,
        # TF32, unless a program asks for float32.
        ("float32", "default"): 494.7e12,
        ("float32", "high"): 494.7e12,
        ("float32", "highest"): 66.9e12,
    },
    3.35e12,
)
"""NVIDIA, "H100 Tensor Core GPU", SXM5: dense peaks, and 3.35 TB/s of HBM3."""
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3350000000000
  device_memory_size: 80000000000
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 SXM5"
"""
"""For XLA: the H100 of NVIDIA's data sheet, and the limits of compute capability 9.0 in the CUDA programming guide."""


class Target(NamedTuple):
    """Devices, described."""

    name: str
    mesh: Mesh
    """All devices on the axis that batches are split over."""
    peaks: Peaks
    description: str

    @property
    def of_one_process(self) -> list[Any]:
        """The devices of the first process, which runs attacks on its share of the images by itself."""
        first = min(device.process_index for device in self.mesh.devices.flat)
        return [device for device in self.mesh.devices.flat if device.process_index == first]


def find_target(name: str) -> Target:
    """The devices that a name such as "tpu:v5e:4x4" or "cuda:h100" stands for.

    Raises:
      UserError: an unknown name, or the compiler for it is not installed.
    """
    if name == "cuda:h100":
        options, peaks = {"target_config": _H100, "topology": "1x1x1"}, H100
    elif found := re.fullmatch(r"tpu:(v5e:(\d+)x(\d+))", name):
        # One chip of a machine of its own; larger slices consist of machines with four.
        options = {"topology_name": found[1]}
        options |= {"chips_per_host_bounds": (1, 1, 1)} if found[2] == found[3] == "1" else {}
        peaks = V5E
    else:
        raise UserError(f"--target: unknown target {name!r}; give {EXAMPLES}")
    platform = name.split(":")[0]
    devices = _topology(platform, name, options).devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    mesh = Mesh(np.asarray(ordered), (AXIS,), axis_types=(AxisType.Auto,))
    return Target(name, mesh, peaks, f"{len(ordered)} x {ordered[0].device_kind}")


def _topology(platform: str, name: str, options: dict[str, Any]) -> Any:
    # Otherwise libtpu asks the network which machine of a cloud this is.
    for variable, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")):
        os.environ.setdefault(variable, value)
    # Nothing runs on a TPU here, so that several processes may compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return topologies.get_topology_desc(platform=platform, **options)
    except (ImportError, RuntimeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--target={name}: cannot compile for it ({reason}); {_LIBRARIES[platform]} come with "
            "pip install 'advjax[aot]'"
        ) from error
