"""Compiled programs of the runner: attack a batch, verify its results, differentiate the loss.

A program runs on several devices, each with its part of the batch, and is compiled once per process.  Programs are
cached

* by the identity of their functions, for a model with ``variables`` (the same assumption as in ``jax.jit``), and
* by their text, whichever functions they were traced from.  Weights that a function closes over become arguments of the
  program, so they are not part of its text.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import types
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import model_queries
from advjax.attacks.batching import padded
from advjax.attacks.combine import Stage
from advjax.attacks.eot import Expectation
from advjax.attacks.keys import AFTER, KEY_TYPE, model_keys, typed
from advjax.attacks.lifting import lift
from advjax.attacks.stage_checks import call_stage, describe
from advjax.attacks.threat_model import ThreatModel
from advjax.cpu.compiling import compiler_options
from advjax.types import Array, Key, LogitsFn, PyTree

MAX_PROGRAMS = 256
"""Size of the cache by text, from which the least recently used programs are dropped."""
_FUNCTIONS = (types.FunctionType, functools.partial)
"""Types of functions that are compared by identity and assumed to be pure, as by ``jax.jit``."""

_by_text: "collections.OrderedDict[tuple[Any, ...], jax.stages.Compiled]" = collections.OrderedDict()
_by_functions: MutableMapping[Any, MutableMapping[Any, dict[Any, dict]]] = weakref.WeakKeyDictionary()
"""Model function -> attack function -> kind -> everything else -> program."""


class Model(NamedTuple):
    """A model that takes its arrays as an argument."""

    bind: Callable[[Any], LogitsFn | Expectation]
    variables: PyTree
    """On all devices."""
    owner: Any
    """Programs of the model stay cached by their functions as long as this object is alive."""


def bind_model(logits_fn: Any, variables: PyTree, example: jax.ShapeDtypeStruct, mesh: jax.sharding.Mesh) -> Model:
    """The model of ``run_stages`` on a mesh.

    Args:
      logits_fn: ``variables -> model``, or the model itself if ``variables`` is None.
      variables: arrays of the model.
      example: a batch of images on one device.
      mesh: the devices.
    """
    bind, owner = logits_fn, owner_of(logits_fn)
    if variables is None:
        # What a function closes over may change between calls, so its programs are cached by their text alone.
        owner = owner_of(None)
        bind, variables = _lifted(logits_fn, example)
    sharding = jax.sharding.NamedSharding(mesh, jax.P())
    replicated = jax.tree.map(lambda leaf: _put(leaf, sharding), variables)
    return Model(model_queries.traced_once_bound(bind, replicated), replicated, owner)


def owner_of(function: Any) -> Any:
    """The function itself if programs can be cached by it, otherwise a new object that lives as long as the run."""
    return function if isinstance(function, _FUNCTIONS) else lambda: None


def _lifted(logits_fn: Any, example: jax.ShapeDtypeStruct) -> tuple[Callable[[Any], Any], list[Array]]:
    """``(variables -> logits_fn, variables)``."""
    if not isinstance(logits_fn, Expectation):
        constants, bind = lift(logits_fn, example)
        return bind, constants
    image, key = jax.ShapeDtypeStruct((1, *example.shape[1:]), example.dtype), jax.eval_shape(_any_key)
    constants, bind = lift(logits_fn.stochastic_fn, image, key)
    return lambda variables: Expectation(bind(variables), logits_fn.num_samples), constants


def _any_key() -> Key:
    return jax.random.key(0, impl=KEY_TYPE)


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
        batch = padded((images, labels, keys), self.sizes)
        return _rows(len(images), self.attack_program(search, batch)(*batch))

    def verify_program(self, batch: Sequence[Any]) -> "Program":
        """The program of ``verify``, for arrays of these shapes."""
        known = self._known(self.verdict, _verify, ("verify", describe(self.threat_model)))
        return self._precise(functools.partial(_verify, self.threat_model), known, self.verdict, batch)

    def verify(self, images: np.ndarray, adversarial: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, ...]:
        """Logits, whether the threat model allows the image, and the distance.

        Matrix products and convolutions have full float32 precision (or that of the model's own dtype), also on devices
        that use bfloat16 or TF32 by default.
        """
        batch = padded((images, adversarial, keys), self.sizes)
        return _rows(len(images), self.verify_program(batch)(*batch))

    def gradient(self, model: Model, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """``model_queries.probe_gradients``, in full precision."""
        batch = padded((images, keys), self.sizes)
        program = self._precise(_gradient, self._known(model, _gradient, "gradient"), model, batch)
        return _rows(len(images), program(*batch))[0]

    def verdict_has_gradients(self, images: np.ndarray) -> bool:
        """Whether the model that verdicts are about can be differentiated; ``images`` are a few of the data set."""
        shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), jax.dtypes.canonicalize_dtype(images.dtype))

        def gradient(variables: PyTree, images: Array) -> Array:
            rngs = jax.random.split(_any_key(), len(images))
            evaluate = functools.partial(model_queries.evaluate, self.verdict.bind(variables), rngs=rngs)
            return jax.grad(lambda images: jnp.sum(evaluate(images)))(images)

        try:
            jax.eval_shape(gradient, self.verdict.variables, shape)
        except (NotImplementedError, TypeError, ValueError):
            # Raised by JAX for a function without a differentiation rule.
            return False
        return True

    def of_search(
        self, search: "Search", kind: str, function: Callable[..., Any], batch: Sequence[Any], donate: bool = False
    ) -> "Program":
        """The program ``function(model, round, *batch)`` of a search, as a function of the batch.

        Args:
          search: the model, and the attack, which ``function`` is known by together with ``kind``.
          kind: what it does.
          function: to be compiled.
          batch: pytrees of arrays [k, ...], or of their shapes and dtypes, k being one of ``sizes``.
          donate: whether the first of the batch may be overwritten.
        """
        model = self.verdict if search.is_precise else self.search
        known = self._known(model, self.owners[id(search.stage.attack)], (kind, search.until_success))
        with jax.default_matmul_precision("highest") if search.is_precise else contextlib.nullcontext():
            return self._program(function, known, model, search.number, batch, donate=donate)

    def _known(self, model: Model, owner: Any, kind: Any) -> dict[Any, jax.stages.Compiled]:
        """Cached programs of one kind for a model and an attack, by everything else they depend on."""
        of_model = _by_functions.setdefault(model.owner, weakref.WeakKeyDictionary())
        return of_model.setdefault(owner, {}).setdefault(kind, {})

    def _precise(self, function, known, model: Model, batch: Sequence[Any]) -> "Program":
        with jax.default_matmul_precision("highest"):
            return self._program(function, known, model, 0, batch)

    def _program(self, function, known, model: Model, number: int, batch: Sequence[Any], donate: bool = False):
        arguments = (model.variables, jax.ShapeDtypeStruct((), np.int32), *batch)
        shapes = tuple(jax.typeof(leaf) for leaf in jax.tree.leaves(arguments))
        key = jax.tree.structure(arguments), shapes, tuple(self.mesh.devices.flat), _configuration()
        if key not in known:
            known[key] = _compiled(function, model, self.mesh, arguments, donate)
        return Program(known[key], self.mesh, model.variables, np.int32(number))


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


def _rows(count: int, arrays: Sequence[Array]) -> tuple[np.ndarray, ...]:
    """The first rows, without the padding."""
    return tuple(np.asarray(array)[:count] for array in jax.device_get(arrays))


def _compiled(
    function: Callable[..., Any], model: Model, mesh: jax.sharding.Mesh, arguments: tuple[Any, ...], donate: bool
) -> jax.stages.Compiled:
    """The program ``(variables, number, *batch) -> pytree``; the batch is split over the devices."""

    def replica(variables, number, *batch):
        return function(model.bind(variables), number, *batch)

    specs = _specs(arguments)
    mapped = jax.shard_map(replica, mesh=mesh, in_specs=specs, out_specs=jax.P("data"), check_vma=False)
    shardings = tuple(jax.sharding.NamedSharding(mesh, spec) for spec in specs)
    # Unused arguments are kept: without them, programs of different arguments could have the same text.
    jitted = jax.jit(mapped, in_shardings=shardings, keep_unused=True, donate_argnums=(2,) if donate else ())
    lowered = jitted.lower(*_placed(mesh, arguments))
    text = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    key = text, jax.tree.structure(arguments), tuple(mesh.devices.flat), _configuration()
    if key not in _by_text:
        _by_text[key] = lowered.compile(compiler_options(mesh))
    _by_text.move_to_end(key)
    while len(_by_text) > MAX_PROGRAMS:
        _by_text.popitem(last=False)
    return _by_text[key]


def _specs(arguments: Sequence[Any]) -> tuple[jax.P, ...]:
    """Variables and number are on all devices, the batch is split over them."""
    return jax.P(), jax.P(), *[jax.P("data")] * (len(arguments) - 2)


def _placed(mesh: jax.sharding.Mesh, arguments: Sequence[Any]) -> list[Any]:
    """The arguments with those leaves put on the devices that are not there yet."""
    # Where there are several processes, JAX takes no NumPy arrays for a mesh of only some of the devices.
    shardings = [jax.sharding.NamedSharding(mesh, spec) for spec in _specs(arguments)]
    return [
        jax.tree.map(lambda leaf, there=there: leaf if isinstance(leaf, jax.Array) else _put(leaf, there), argument)
        for argument, there in zip(arguments, shardings, strict=True)
    ]


def _put(leaf: Any, sharding: jax.sharding.NamedSharding) -> Any:
    """An array on the devices; of a shape and dtype, the same there, to compile for devices that need not be here."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.device_put(leaf, sharding)


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


def _configuration() -> str:
    """All settings of JAX, since many of them change programs."""
    return repr([(name, getattr(jax.config, name, value)) for name, value in jax.config.values.items()])
