"""Programs that are compiled once per process, and what it would cost to compile another one.

They are cached

* by the identity of their functions, for a model with ``variables`` (the same assumption as in ``jax.jit``), and
* by their text, whichever functions they were traced from.

What a program computes is compared with what the device could compute while another one is compiled, as an estimate
from FLOP counts: seconds differ from run to run, and the same command should run the same programs.
"""

import collections
import dataclasses
import hashlib
import types
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any

import jax

from advjax.attacks.flop_count import flop_count
from advjax.cpu.compiling import compiler_options

MAX_PROGRAMS = 256
"""Size of the cache by text, from which the least recently used programs are dropped."""
FLOP_OF_COMPILATION = {"cpu": 2e11}
"""What a device computes in the two seconds that a step of an attack takes to compile, by its platform."""
FLOP_OF_COMPILATION_ELSEWHERE = 1e14
"""The same for accelerators, and ten seconds or more; assumed, not measured."""
_FLOP_PER_ELEMENT = 10.0
"""An elementwise operation waits for memory; it takes about as long as so many operations of a matrix product."""
_FUNCTIONS = (types.FunctionType, partial)
"""Types of functions that are compared by identity and assumed to be pure, as by ``jax.jit``."""


@dataclasses.dataclass
class CachedProgram:
    """A compiled program, and the work it does."""

    compiled: jax.stages.Compiled
    alike: Any
    """What it has in common with programs for other sizes, also of other functions."""
    size: int
    """Of its batch."""
    flop: float
    """Of one run with one step, on each device; infinite if it is not known."""
    worth_compiling: float
    """What a device computes while a program is compiled."""
    idle_flop: float = 0.0
    """Computed so far for rows without images."""

    def is_too_large(self, idle_share: float, times: int) -> bool:
        """Whether a program for fewer images is worth compiling, if a share of the rows is idle some more times.

        It is once as much has been computed in vain as compiling costs: both together are then at most twice what the
        better of the two would have cost.
        """
        self.idle_flop += times * self.flop * idle_share
        return self.idle_flop > self.worth_compiling


_by_text: "collections.OrderedDict[tuple[Any, ...], CachedProgram]" = collections.OrderedDict()
_by_functions: MutableMapping[Any, MutableMapping[Any, dict[Any, dict[Any, CachedProgram]]]] = (
    weakref.WeakKeyDictionary()
)
"""Model function -> attack function -> kind -> everything else -> program."""


def owner_of(function: Any) -> Any:
    """The function itself if programs can be cached by it, otherwise a new object that lives as long as the run."""
    return function if isinstance(function, _FUNCTIONS) else lambda: None


def programs_of(model_owner: Any, attack_owner: Any, kind: Any) -> dict[Any, CachedProgram]:
    """Cached programs of one kind for a model and an attack, by everything else they depend on."""
    of_model = _by_functions.setdefault(model_owner, weakref.WeakKeyDictionary())
    return of_model.setdefault(attack_owner, {}).setdefault(kind, {})


def sizes_of(alike: Any) -> frozenset[int]:
    """Sizes of the batches of programs that have this in common."""
    return frozenset(cached.size for cached in _by_text.values() if cached.alike == alike)


def configuration() -> str:
    """All settings of JAX, since many of them change programs."""
    return repr([(name, getattr(jax.config, name, value)) for name, value in jax.config.values.items()])


def compiled(
    jitted: Callable[..., Any], mesh: jax.sharding.Mesh, arguments: Sequence[Any], size: int, runs: float, alike: Any
) -> CachedProgram:
    """The program of a jitted function, from the cache by text if it is there.

    Args:
      jitted: by ``jax.jit``, on the devices of ``mesh``.
      mesh: the devices.
      arguments: of the function, or their shapes, dtypes and shardings.
      size: of the batch among the arguments.
      runs: about how often it will run; if it then computes less than compiling costs, it is compiled quickly.
      alike: what it has in common with programs for other sizes, also of other functions.
    """
    traced = jitted.trace(*arguments)  # type: ignore
    lowered, flop = traced.lower(), flop_count(traced.jaxpr.jaxpr, per_element=_FLOP_PER_ELEMENT, turns=1)
    worth = FLOP_OF_COMPILATION.get(mesh.devices.flat[0].platform, FLOP_OF_COMPILATION_ELSEWHERE)
    options = compiler_options(mesh, quickly=runs * flop < worth)
    text = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    devices, structure = tuple(mesh.devices.flat), jax.tree.structure(arguments)
    key = text, structure, devices, tuple(options.items()), configuration()
    if key not in _by_text:
        _by_text[key] = CachedProgram(lowered.compile(options), alike, size, flop, worth)
    _by_text.move_to_end(key)
    while len(_by_text) > MAX_PROGRAMS:
        _by_text.popitem(last=False)
    return _by_text[key]
