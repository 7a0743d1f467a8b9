"""Devices and processes: outside ``attacks``, the only module that builds a mesh or asks for the index of the process.

A computation is written as a *replica function* ``f(*args, axis_name)``: the work of one device on its rows of the
batch. It communicates with the other replicas only through ``collectives``; with ``axis_name=None`` it is the plain
single-device program. ``parallelize`` maps it over all devices.

Parameters and optimizer state are replicated, batches are split along axis 0. With several processes, the rows of a
global array are in process order: process 0 holds the first rows.

Three rules for replica functions:

* differentiate with respect to ``varying(params, axis_name)`` and reduce the gradient yourself: without ``varying``,
  ``shard_map`` has already summed it, and it is too large by a factor of the number of devices;
* outputs that are declared replicated must come from a reduction or from replicated values;
* under ``shard_map`` and ``pmap``, a ``while_loop`` stops on each device independently, so its body must not reduce
  over devices.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from advjax.cpu.compiling import compiler_options
from advjax.runtime.collectives import AXIS
from advjax.runtime.pmap import pmap
from advjax.types import PyTree, UserError

MAPPINGS = ("shard_map", "pmap", "jit")


def process_index() -> int:
    """Index of this process."""
    return jax.process_index()


def process_count() -> int:
    """Number of processes of this run."""
    return jax.process_count()


def is_main_process() -> bool:
    """Whether this is process 0, the only one that writes files and reports progress."""
    return process_index() == 0


def sync(name: str) -> None:
    """Waits until all processes have called this with the same name; returns immediately for a single process."""
    if process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(here: bool) -> bool:
    """Whether ``here`` is true on all processes, which must call this together."""
    if process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.asarray(here)).all())


def mesh() -> Mesh:
    """All devices of all processes on one axis, "data", in process order."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


class Devices(NamedTuple):
    """A mesh and one of ``MAPPINGS``: where and how computations run."""

    mesh: Mesh
    mapping: str

    def parallelize(
        self,
        replica_fn: Callable[..., PyTree],
        *,
        in_sharded: tuple[bool, ...],
        out_sharded: PyTree,
        donate: tuple[int, ...] = (),
    ) -> "Parallel":
        """See ``parallelize``."""
        return parallelize(
            replica_fn, self.mapping, self.mesh, in_sharded=in_sharded, out_sharded=out_sharded, donate=donate
        )

    def replicate(self, tree: PyTree) -> PyTree:
        """See ``replicate``."""
        return replicate(tree, self.mesh)

    def local_rows(self, global_batch_size: int) -> slice:
        """The rows of a global batch that this process provides; a UserError if it is not divisible by the devices."""
        count = local_batch(global_batch_size, self.mesh)
        return slice(process_index() * count, (process_index() + 1) * count)


def parallelize(
    replica_fn: Callable[..., PyTree],
    mapping: str,
    mesh: Mesh,
    *,
    in_sharded: tuple[bool, ...],
    out_sharded: PyTree,
    donate: tuple[int, ...] = (),
) -> "Parallel":
    """Runs a replica function on all devices.

    The mappings give the same results, up to rounding: ``"shard_map"`` and ``"pmap"`` with collectives as written,
    ``"jit"`` with ``axis_name=None`` on global arrays that the compiler partitions, with loops until all are done.

    Args:
      replica_fn: ``f(*args, axis_name: str | None)``; it must reduce with the functions of ``collectives``.
      mapping: one of ``MAPPINGS``.
      mesh: from ``mesh()``.
      in_sharded: for each positional argument, whether axis 0 of all its leaves is split over the devices; otherwise it
        is replicated. Leaves that are not on ``mesh`` yet are transferred by ``shard`` or ``replicate``; call these
        yourself for arguments that are passed repeatedly.
      out_sharded: a bool, or a pytree prefix of the output with bools: True where axis 0 holds this replica's rows. The
        result is then a global array with all rows along axis 0, in order.
      donate: positions of arguments whose buffers the result may reuse; they must not be used after the call.

    Raises:
      UserError: unknown ``mapping``, or a batch that is not divisible by the number of devices.
    """
    if mapping not in MAPPINGS:
        raise UserError(f"unknown mapping {mapping!r}; choose one of {', '.join(MAPPINGS)}")
    in_specs, out_specs = _specs(in_sharded), _specs(out_sharded)
    jit = partial(jax.jit, donate_argnums=donate, compiler_options=compiler_options(mesh))
    if mapping == "shard_map":
        replica = partial(replica_fn, axis_name=AXIS)
        mapped = jit(jax.shard_map(replica, mesh=mesh, in_specs=in_specs, out_specs=out_specs))
    elif mapping == "jit":
        out_shardings = jax.tree.map(partial(NamedSharding, mesh), out_specs)
        mapped = jit(partial(replica_fn, axis_name=None), out_shardings=out_shardings)
    else:
        mapped = pmap(partial(replica_fn, axis_name=AXIS), mesh, in_sharded, out_sharded, donate)
    return Parallel(mapped, mesh, in_specs)


class Parallel(NamedTuple):
    """A replica function on all devices, see ``parallelize``: callable with arrays."""

    mapped: Callable[..., PyTree]
    mesh: Mesh
    in_specs: tuple[PartitionSpec, ...]

    def __call__(self, *args: PyTree) -> PyTree:
        return self.mapped(*(_place(arg, self.mesh, spec) for arg, spec in self._with_specs(args)))

    def lower(self, *shapes: PyTree) -> jax.stages.Lowered:
        """Lowers the program for arguments of these shapes and dtypes; the devices of the mesh need not be here.

        Raises:
          UserError: the mapping is ``"pmap"``, which places its arguments itself.
        """
        if not isinstance(self.mapped, jax.stages.Wrapped):
            raise UserError(
                "a program with mapping 'pmap' cannot be compiled ahead of time: choose 'shard_map' or 'jit'"
            )
        return self.mapped.lower(*(_described(shape, self.mesh, spec) for shape, spec in self._with_specs(shapes)))

    def _with_specs(self, args: Sequence[PyTree]) -> Iterator[tuple[PyTree, PartitionSpec]]:
        if len(args) != len(self.in_specs):
            raise TypeError(
                f"expected {len(self.in_specs)} arguments, one for each entry of in_sharded; got {len(args)}"
            )
        return zip(args, self.in_specs, strict=True)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies numpy or local arrays, equal on every process, to each device as replicated global arrays.

    The result never shares memory with ``tree``, so it may be donated. Typed PRNG keys stay typed.
    """
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def shard(tree: PyTree, mesh: Mesh) -> PyTree:
    """Splits this process's rows (axis 0 of each leaf) over its devices, as global arrays.

    Raises:
      UserError: the number of rows is not divisible by the number of this process's devices.
    """
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec(AXIS))), tree)


def fetch(tree: PyTree) -> PyTree:
    """Whole numpy arrays on every process from replicated or split arrays; blocks until they are computed.

    With several processes and split arrays, all processes must call this together. Typed keys become raw key data.
    """

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return np.asarray(leaf)
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def gather_parts(tree: PyTree, counts: Sequence[int]) -> PyTree:
    """Concatenates numpy arrays of which each process has ``counts[process]`` rows, in process order.

    All processes must call this together.
    """
    if len(counts) == 1:
        return tree

    def gather(leaf: np.ndarray) -> np.ndarray:
        padded = np.zeros((max(counts), *leaf.shape[1:]), leaf.dtype)
        padded[: len(leaf)] = leaf
        gathered = multihost_utils.process_allgather(padded)
        return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])

    return jax.tree.map(gather, tree)


def pad_to_multiple(n: int, mesh: Mesh) -> int:
    """``n`` rounded up to a multiple of the number of devices."""
    return -(-n // mesh.size) * mesh.size


def local_batch(global_batch_size: int, mesh: Mesh) -> int:
    """Number of rows of a global batch that this process provides.

    Raises:
      UserError: ``global_batch_size`` is not a positive multiple of the number of devices.
    """
    if global_batch_size <= 0 or global_batch_size % mesh.size:
        raise UserError(
            f"batch size {global_batch_size} is not divisible by the {mesh.size} devices; "
            f"use a multiple of {mesh.size}, for example {max(pad_to_multiple(global_batch_size, mesh), mesh.size)}"
        )
    return global_batch_size // mesh.size * mesh.local_mesh.size


def _specs(sharded: PyTree) -> PyTree:
    return jax.tree.map(lambda split: PartitionSpec(AXIS) if split else PartitionSpec(), sharded)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _place(tree: PyTree, mesh: Mesh, spec: PartitionSpec) -> PyTree:
    def place(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and getattr(leaf.sharding, "mesh", None) == mesh
        return leaf if there else _put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def _described(tree: PyTree, mesh: Mesh, spec: PartitionSpec) -> PyTree:
    """Shapes and dtypes of arrays that are placed on the mesh."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if _is_key(leaf):
        words = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    # A copy, because JAX may alias an aligned buffer, and a donated step or the loader would then write into it.
    local = np.array(leaf)
    local = local.astype(jax.dtypes.canonicalize_dtype(local.dtype), copy=False)
    if sharding.is_fully_replicated:
        return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])
    devices = len(sharding.addressable_devices)
    if local.ndim == 0 or local.shape[0] % devices:
        raise UserError(
            f"cannot split an array of shape {local.shape} over {devices} devices: "
            f"pad its first axis to a multiple of {devices}"
        )
    return jax.make_array_from_process_local_data(sharding, local)
