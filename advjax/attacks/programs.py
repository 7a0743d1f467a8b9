"""The programs of the runner: attack a batch, verify its results, differentiate the loss.

A program runs on several devices, each with its part of the batch, and is compiled once per process
(``program_cache``).  Weights that a function closes over become arguments, so they are not part of a program.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import model_queries
from advjax.attacks.batching import padded
from advjax.attacks.bound_model import Model, any_key, put
from advjax.attacks.combine import Stage
from advjax.attacks.keys import AFTER, model_keys, typed
from advjax.attacks.program_cache import CachedProgram, compiled, configuration, programs_of, sizes_of
from advjax.attacks.stage_checks import call_stage, describe
from advjax.attacks.threat_model import ThreatModel
from advjax.types import Array, PyTree

_PASSES = 4
"""About how often each image goes through a program that is not hot: verification before, and after some rounds."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of one run, on numpy arrays [k, ...], with keys as words [k, 2]."""

    threat_model: ThreatModel
    verdict: Model
    """The model that verdicts are about."""
    search: Model
    """The model that attacks follow."""
    mesh: jax.sharding.Mesh
    sizes: tuple[int, ...]
    """Batch sizes, smallest first."""
    owners: dict[int, Any]
    """``owner_of`` the attack function of each stage, by its id."""
    count: int
    """Number of images of the run."""

    def attack_program(self, search: "Search", batch: Sequence[Any]) -> "Program":
        """The program of ``attack``, for images, labels and keys of these shapes."""
        return self.of_search(search, "attack", functools.partial(_attack, search.stage, search.until_success), batch)

    def attack(
        self, search: "Search", images: np.ndarray, labels: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """One round of an attack that is a plain function of a batch.

        Returns:
          Adversarial images, steps, claimed successes, flags of non-finite gradients, and progress.
        """
        batch = self._padded(self._of(search, "attack"), (images, labels, keys))
        return _rows(len(images), self.attack_program(search, batch)(*batch))

    def verify_program(self, batch: Sequence[Any]) -> "Program":
        """The program of ``verify``, for arrays of these shapes."""
        return self._program(functools.partial(_verify, self.threat_model), self._verifying, 0, batch)

    def verify(self, images: np.ndarray, adversarial: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, ...]:
        """Logits, whether the threat model allows the image, and the distance.

        Matrix products and convolutions have full float32 precision (or that of the model's own dtype), also on devices
        that use bfloat16 or TF32 by default.
        """
        batch = self._padded(self._verifying, (images, adversarial, keys))
        return _rows(len(images), self.verify_program(batch)(*batch))

    def gradient(self, model: Model, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """``model_queries.probe_gradients``, in full precision."""
        family = _Family(model, True, "gradient", programs_of(model.owner, _gradient, "gradient"))
        batch = self._padded(family, (images, keys))
        return _rows(len(images), self._program(_gradient, family, 0, batch)(*batch))[0]

    def verdict_has_gradients(self, images: np.ndarray) -> bool:
        """Whether the model that verdicts are about can be differentiated; ``images`` are a few of the data set."""
        shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), jax.dtypes.canonicalize_dtype(images.dtype))

        def gradient(variables: PyTree, images: Array) -> Array:
            rngs = jax.random.split(any_key(), len(images))
            evaluate = functools.partial(model_queries.evaluate, self.verdict.bind(variables), rngs=rngs)
            return jax.grad(lambda images: jnp.sum(evaluate(images)))(images)

        try:
            jax.eval_shape(gradient, self.verdict.variables, shape)
        except (NotImplementedError, TypeError, ValueError):
            # Raised by JAX for a function without a differentiation rule.
            return False
        return True

    def of_search(
        self,
        search: "Search",
        kind: str,
        function: Callable[..., Any],
        batch: Sequence[Any],
        *,
        donate: bool = False,
        is_hot: bool = True,
    ) -> "Program":
        """The program ``function(model, round, *batch)`` of a search, as a function of the batch.

        Args:
          search: the model, and the attack, which ``function`` is known by together with ``kind``.
          kind: what it does.
          function: to be compiled.
          batch: pytrees of arrays [k, ...], or of their shapes and dtypes, k being one of ``sizes``; and scalars.
          donate: whether the first of the batch may be overwritten.
          is_hot: whether it runs many times for each image.
        """
        return self._program(function, self._of(search, kind), search.number, batch, donate=donate, is_hot=is_hot)

    def compiled_sizes(self, search: "Search", kind: str) -> frozenset[int]:
        """Sizes of batches for which this process has compiled such programs, for models with such arrays."""
        return sizes_of(self._alike(self._of(search, kind)))

    def size_for(self, search: "Search", kind: str, batch: Sequence[Any], wanted: int, times: int) -> int:
        """The size of the program to use where one of ``wanted`` size would do: that one, or a larger one.

        A larger one that has been compiled is used as long as this costs less than compiling another.

        Args:
          search: the model and the attack.
          kind: as in ``of_search``.
          batch: pytrees of arrays of the program, of any size.
          wanted: the smallest of ``sizes`` that holds the images.
          times: how often the program runs before this is asked again.
        """
        return self._size_for(self._of(search, kind), batch, wanted, times)

    def _size_for(self, family: "_Family", batch: Sequence[Any], wanted: int, times: int) -> int:
        for size in self.sizes:
            if size >= wanted and (cached := family.programs.get(self._key(family, _resized(batch, size)))) is not None:
                return wanted if size > wanted and cached.is_too_large(1 - wanted / size, times) else size
        return wanted

    def _padded(self, family: "_Family", arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        wanted = next(size for size in self.sizes if size >= len(arrays[0]))
        return padded(arrays, self._size_for(family, arrays, wanted, 1))

    @property
    def _verifying(self) -> "_Family":
        kind = "verify", describe(self.threat_model)
        return _Family(self.verdict, True, "verify", programs_of(self.verdict.owner, _verify, kind))

    def _of(self, search: "Search", kind: str) -> "_Family":
        model = self.verdict if search.is_precise else self.search
        owner = self.owners[id(search.stage.attack)]
        return _Family(model, search.is_precise, kind, programs_of(model.owner, owner, (kind, search.until_success)))

    def _program(
        self,
        function: Callable[..., Any],
        family: "_Family",
        number: int,
        batch: Sequence[Any],
        *,
        donate: bool = False,
        is_hot: bool = False,
    ) -> "Program":
        model, key = family.model, self._key(family, batch)
        if key not in family.programs:
            arguments = model.variables, jax.ShapeDtypeStruct((), np.int32), *batch
            jitted, arguments = _jitted(function, model, self.mesh, arguments, donate), _placed(self.mesh, arguments)
            size = len(jax.tree.leaves(batch)[0])
            runs = math.inf if is_hot else _PASSES * math.ceil(self.count / size)
            with family.precision():
                family.programs[key] = compiled(jitted, self.mesh, arguments, size, runs, self._alike(family))
        return Program(family.programs[key].compiled, self.mesh, model.variables, np.int32(number))

    def _key(self, family: "_Family", batch: Sequence[Any]) -> Any:
        with family.precision():
            return _types((family.model.variables, list(batch))), tuple(self.mesh.devices.flat), configuration()

    def _alike(self, family: "_Family") -> Any:
        return family.kind, _types(family.model.variables), tuple(self.mesh.devices.flat)


class _Family(NamedTuple):
    """Programs that do the same with batches of different shapes."""

    model: Model
    is_precise: bool
    """Whether matrix products and convolutions have full precision."""
    kind: str
    """What they do."""
    programs: dict[Any, CachedProgram]

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        return jax.default_matmul_precision("highest") if self.is_precise else contextlib.nullcontext()


class Program(NamedTuple):
    """A compiled program, as a function of a batch."""

    compiled: jax.stages.Compiled
    mesh: jax.sharding.Mesh
    variables: PyTree
    """Of the model, on all devices."""
    number: np.int32
    """Of the round."""

    def __call__(self, *batch: Any) -> Any:
        return self.compiled(*_placed(self.mesh, (self.variables, self.number, *batch)))


class Search(NamedTuple):
    """One round of a stage, and how it is run."""

    stage: Stage
    number: int
    """Of the round."""
    until_success: bool
    """Whether the attack on an image ends at its first success."""
    is_precise: bool
    """Whether the attack follows the model that verdicts are about, in their precision."""


def _types(tree: PyTree) -> Any:
    """Structure, shapes and dtypes; not shardings, which are the same for all programs of a run."""
    types = map(jax.typeof, jax.tree.leaves(tree))
    return jax.tree.structure(tree), tuple((of.shape, of.dtype, of.weak_type) for of in types)


def _resized(batch: Sequence[Any], size: int) -> Sequence[Any]:
    """Shapes and dtypes of a batch of this size."""

    def resized(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) if _is_batched(leaf) else leaf

    return jax.tree.map(resized, batch)


def _rows(count: int, arrays: Sequence[Array]) -> tuple[np.ndarray, ...]:
    """The first rows, without the padding."""
    return tuple(np.asarray(array)[:count] for array in jax.device_get(arrays))


def _jitted(
    function: Callable[..., Any], model: Model, mesh: jax.sharding.Mesh, arguments: Sequence[Any], donate: bool
):
    """The program ``(variables, number, *batch) -> pytree``; the batch is split over the devices."""

    def replica(variables, number, *batch):
        return function(model.bind(variables), number, *batch)

    specs = _specs(arguments)
    mapped = jax.shard_map(replica, mesh=mesh, in_specs=specs, out_specs=jax.P("data"), check_vma=False)
    shardings = tuple(jax.sharding.NamedSharding(mesh, spec) for spec in specs)
    # Unused arguments are kept: without them, programs of different arguments could have the same text.
    return jax.jit(mapped, in_shardings=shardings, keep_unused=True, donate_argnums=(2,) if donate else ())


def _specs(arguments: Sequence[Any]) -> tuple[jax.P, ...]:
    """The batch is split over the devices; the variables and scalars are on all of them."""
    return jax.P(), *[jax.P("data") if _is_batched(jax.tree.leaves(one)[0]) else jax.P() for one in arguments[1:]]


def _is_batched(leaf: Any) -> bool:
    return len(leaf.shape) > 0


def _placed(mesh: jax.sharding.Mesh, arguments: Sequence[Any]) -> list[Any]:
    """The arguments with those leaves put on the devices that are not there yet."""
    # Where there are several processes, JAX takes no NumPy arrays for a mesh of only some of the devices.
    shardings = [jax.sharding.NamedSharding(mesh, spec) for spec in _specs(arguments)]
    return [
        jax.tree.map(lambda leaf, there=there: leaf if isinstance(leaf, jax.Array) else put(leaf, there), argument)
        for argument, there in zip(arguments, shardings, strict=True)
    ]


def _attack(stage: Stage, until_success: bool, logits_fn: Any, number: Array, images: Array, labels: Array, keys):
    result = call_stage(stage, logits_fn, number, images, labels, typed(keys), until_success)
    progress = jnp.asarray(result.progress, jnp.int8)
    flags = (jnp.broadcast_to(values, labels.shape) for values in (result.nonfinite, progress))
    return result.images, result.steps, result.success, *flags


def _verify(threat_model: ThreatModel, logits_fn: Any, number: Array, images: Array, adversarial: Array, keys):
    logits = model_queries.evaluate(logits_fn, adversarial, model_keys(typed(keys), AFTER))
    allowed = jax.vmap(threat_model.contains)(images, adversarial)
    distance = jax.vmap(threat_model.distance)(images, adversarial)
    return logits, allowed, distance.astype(jnp.float32)


def _gradient(logits_fn: Any, number: Array, images: Array, keys):
    return (model_queries.probe_gradients(logits_fn, images, model_keys(typed(keys), AFTER)),)
