"""Devices, and nothing else in the package knows about them.

A computation is written as a *replica function* ``f(*args, axis_name)``: what one device does with its rows of the
batch.  It talks to the other replicas through ``sum_over``, ``mean_over`` and ``varying`` alone, and with
``axis_name=None`` it is the plain single-device program.  ``parallelize`` maps it over all devices.

Parameters and optimizer state are replicated, batches are split along axis 0.  In a run of several processes the rows
of a global array lie in the order of the processes: process 0 holds the first rows.

Three rules for replica functions:

* differentiate with respect to ``varying(params, axis_name)`` and reduce the gradient yourself: without ``varying``,
  ``shard_map`` has already summed it, and it comes out (number of devices) times too large;
* outputs that are declared replicated must come out of a reduction or from replicated values;
* a ``while_loop`` stops on each device by itself under ``shard_map`` and ``pmap``, so its body must not reduce over
  the devices.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from advjax.types import PyTree, UserError

AXIS = "data"
MAPPINGS = ("shard_map", "pmap", "jit")


def mesh() -> Mesh:
    """All devices of all processes on one axis, "data", in the order of the processes."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


class Devices(NamedTuple):
    """Where and how computations run: a mesh and one of ``MAPPINGS``."""

    mesh: Mesh
    mapping: str

    def parallelize(
        self,
        replica_fn: Callable[..., PyTree],
        *,
        in_sharded: tuple[bool, ...],
        out_sharded: PyTree,
        donate: tuple[int, ...] = (),
    ) -> Callable[..., PyTree]:
        """See ``parallelize``."""
        return parallelize(
            replica_fn, self.mapping, self.mesh, in_sharded=in_sharded, out_sharded=out_sharded, donate=donate
        )

    def replicate(self, tree: PyTree) -> PyTree:
        """See ``replicate``."""
        return replicate(tree, self.mesh)

    def local_rows(self, global_batch_size: int) -> slice:
        """The rows of a global batch that this process provides; UserError if they do not divide by the devices."""
        count = local_batch(global_batch_size, self.mesh)
        return slice(jax.process_index() * count, (jax.process_index() + 1) * count)


def parallelize(
    replica_fn: Callable[..., PyTree],
    mapping: str,
    mesh: Mesh,
    *,
    in_sharded: tuple[bool, ...],
    out_sharded: PyTree,
    donate: tuple[int, ...] = (),
) -> Callable[..., PyTree]:
    """Runs a replica function on all devices.

    The three mappings take the same arguments and give the same results, up to rounding:

    * ``"shard_map"``: ``jit(shard_map(f))``, collectives as written;
    * ``"pmap"``: ``jax.pmap``, whose extra leading axis for the devices stays hidden in here;
    * ``"jit"``: ``f`` with ``axis_name=None`` on global arrays, split by the compiler; a loop runs until all are done.

    Args:
      replica_fn: ``f(*args, axis_name: str | None)``; reductions must go through this module's functions.
      mapping: one of ``MAPPINGS``.
      mesh: from ``mesh()``.
      in_sharded: for each positional argument, whether axis 0 of all its leaves is split over the devices.  An argument
        that is not split is the same on every device.  Leaves that are not on ``mesh`` yet are put there by ``shard``
        or ``replicate``; do that once yourself for what is passed again and again.
      out_sharded: one bool, or a pytree prefix of the output with bools: True where axis 0 holds this replica's rows.
        The result then comes back as a global array, all rows along axis 0 in order.
      donate: positions of arguments whose buffers the result may reuse; they must not be used after the call.

    Raises:
      UserError: unknown ``mapping``, or a batch that does not divide by the number of devices.
    """
    if mapping not in MAPPINGS:
        raise UserError(f"unknown mapping {mapping!r}; choose one of {', '.join(MAPPINGS)}")
    in_specs, out_specs = _specs(in_sharded), _specs(out_sharded)
    if mapping == "shard_map":
        replica = partial(replica_fn, axis_name=AXIS)
        mapped = jax.jit(
            jax.shard_map(replica, mesh=mesh, in_specs=in_specs, out_specs=out_specs), donate_argnums=donate
        )
    elif mapping == "jit":
        out_shardings = jax.tree.map(partial(NamedSharding, mesh), out_specs)
        mapped = jax.jit(partial(replica_fn, axis_name=None), out_shardings=out_shardings, donate_argnums=donate)
    else:
        mapped = _pmap(partial(replica_fn, axis_name=AXIS), mesh, in_sharded, out_sharded, donate)

    def run(*args: PyTree) -> PyTree:
        if len(args) != len(in_sharded):
            raise TypeError(f"expected {len(in_sharded)} arguments, one for each entry of in_sharded; got {len(args)}")
        return mapped(*(_place(arg, mesh, spec) for arg, spec in zip(args, in_specs, strict=True)))

    return run


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Numpy or local arrays, equal on every process -> global arrays with a full copy on each device.

    The result never shares memory with ``tree``, so that it may be donated.  Typed PRNG keys stay typed.
    """
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def shard(tree: PyTree, mesh: Mesh) -> PyTree:
    """This process' rows (axis 0 of each leaf; with one process: all rows) -> global arrays split over the devices.

    Raises:
      UserError: the rows do not divide by the number of this process' devices.
    """
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec(AXIS))), tree)


def fetch(tree: PyTree) -> PyTree:
    """Replicated or split arrays -> whole numpy arrays on every process; waits for them.

    With several processes and split arrays all processes must call this together.  Typed keys become their words.
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
    """Numpy arrays of which each process has its own ``counts[process]`` rows -> all rows, in the order of processes.

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
    """The smallest multiple of the number of devices that holds ``n`` rows."""
    return -(-n // mesh.size) * mesh.size


def local_batch(global_batch_size: int, mesh: Mesh) -> int:
    """Rows of a global batch that this process provides.

    Raises:
      UserError: ``global_batch_size`` is not a positive multiple of the number of devices.
    """
    if global_batch_size <= 0 or global_batch_size % mesh.size:
        raise UserError(
            f"batch size {global_batch_size} does not divide by the {mesh.size} devices; "
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


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if _is_key(leaf):
        words = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    # A copy, for JAX may keep an aligned buffer as it is, and then a donated step or the loader would write into it.
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


@partial(jax.jit, static_argnums=1)
def _split_rows(tree: PyTree, devices: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:]), tree)


@jax.jit
def _join_rows(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), tree)


def _pmap(
    replica: Callable[..., PyTree], mesh: Mesh, in_sharded: PyTree, out_sharded: PyTree, donate: tuple[int, ...]
) -> Callable[..., PyTree]:
    """``pmap`` for global arrays: it wants [local devices, rows, ...] and returns arrays of this process alone."""
    local_mesh = mesh.local_mesh
    # pmap insists on an argument that is split, so it always gets one.
    index = jax.device_put(np.arange(local_mesh.size), NamedSharding(local_mesh, PartitionSpec(AXIS)))
    mapped = jax.pmap(
        lambda index, *args: replica(*args),
        axis_name=AXIS,
        in_axes=(0, *(0 if split else None for split in in_sharded)),
        out_axes=jax.tree.map(lambda split: 0 if split else None, out_sharded),
        devices=list(mesh.devices.flat),
        donate_argnums=tuple(position + 1 for position in donate),
    )

    def enter(arg: PyTree, split: bool) -> PyTree:
        if not split:
            return arg
        share = local_mesh.size, mesh.size
        local = jax.tree.map(lambda leaf: _rewrap(leaf, local_mesh, PartitionSpec(AXIS), *share), arg)
        return _split_rows(local, share[0])

    def leave(split: bool, out: PyTree) -> PyTree:
        if not split:
            return jax.tree.map(lambda leaf: _rewrap(leaf, mesh, PartitionSpec()), out)
        share = mesh.size, local_mesh.size
        return jax.tree.map(lambda leaf: _rewrap(leaf, mesh, PartitionSpec(AXIS), *share), _join_rows(out))

    def run(*args: PyTree) -> PyTree:
        out = mapped(index, *(enter(arg, split) for arg, split in zip(args, in_sharded, strict=True)))
        return jax.tree.map(leave, out_sharded, out)

    return run


def _rewrap(leaf: jax.Array, mesh: Mesh, spec: PartitionSpec, times: int = 1, over: int = 1) -> jax.Array:
    """The same buffers as an array over ``mesh``; its first axis has ``times / over`` as many rows."""
    sharding = NamedSharding(mesh, spec)
    if leaf.sharding == sharding:
        return leaf
    shape = (leaf.shape[0] * times // over, *leaf.shape[1:]) if times != over else leaf.shape
    return jax.make_array_from_single_device_arrays(shape, sharding, [piece.data for piece in leaf.addressable_shards])
