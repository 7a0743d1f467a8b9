"""``jax.pmap`` for global arrays: its extra leading axis for the devices stays hidden in here."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from advjax.runtime.collectives import AXIS
from advjax.types import PyTree


def pmap(
    replica: Callable[..., PyTree], mesh: Mesh, in_sharded: PyTree, out_sharded: PyTree, donate: tuple[int, ...]
) -> Callable[..., PyTree]:
    """Maps a replica function over the devices; arguments as in ``devices.parallelize``.

    ``jax.pmap`` takes arrays [local devices, rows, ...] and returns arrays of this process only; they are converted
    from and to global arrays.
    """
    local_mesh = mesh.local_mesh
    # pmap needs at least one mapped argument, so it always gets one.
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


@partial(jax.jit, static_argnums=1)
def _split_rows(tree: PyTree, devices: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:]), tree)


@jax.jit
def _join_rows(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), tree)


def _rewrap(leaf: jax.Array, mesh: Mesh, spec: PartitionSpec, times: int = 1, over: int = 1) -> jax.Array:
    """The same buffers as an array over ``mesh``, with ``times / over`` as many rows."""
    sharding = NamedSharding(mesh, spec)
    if leaf.sharding == sharding:
        return leaf
    shape = (leaf.shape[0] * times // over, *leaf.shape[1:]) if times != over else leaf.shape
    return jax.make_array_from_single_device_arrays(shape, sharding, [piece.data for piece in leaf.addressable_shards])
