"""Makes the convolutions and pooling of any JAX function fast on CPU.

:func:`fast_on_cpu` traces a function and evaluates its jaxpr with substitutes (``advjax.cpu.substitutes``) for the
equations that XLA's CPU backend is slow at, wherever they are: in nested ``jit``, ``checkpoint``, ``scan``,
``while_loop``, ``cond`` and ``shard_map``. All other equations are bound again unchanged. In particular, calls with
custom differentiation rules are not entered: a substitute inside would have to be put into their rules as well, and
inlining them would lose the rules (the gradient of ReLU at 0, straight-through gradients), which would make a model
look more robust, or less, than it is.

The platform is decided when a program is lowered: for other platforms each substitute is the equation it replaces,
except that max pooling is compared elementwise on a GPU, too.
"""

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from advjax.cpu.convolution import are_repeated, uses_exact_convolutions
from advjax.cpu.substitutes import substitute, takes

P = ParamSpec("P")
T = TypeVar("T")

_jitted: "weakref.WeakKeyDictionary[ClosedJaxpr, dict[bool, Callable[..., Any]]]" = weakref.WeakKeyDictionary()
"""Rewritten functions by the jaxpr they come from, so that a jitted function called again is not compiled again, and by
whether it is ``convolution.repeated``."""


def fast_on_cpu(fn: Callable[P, T]) -> Callable[P, T]:
    """Returns a function that computes ``fn`` with algorithms that are fast on CPU.

    Two-dimensional float32 convolutions (in any layout, without groups or dilation) and max and average pooling with
    windows that neither overlap nor are padded are replaced, by algorithms that are equal up to rounding and have
    gradients that stay fast inside loops. Programs for TPUs do not change, those for GPUs only in their max pooling.

    The result can be jitted, vmapped, and differentiated in reverse mode any number of times. ``fn`` itself may use any
    transformation, including forward mode, but where a convolution or max pooling is replaced, the result cannot be
    differentiated in forward mode (``jax.jvp``, ``jax.hessian``): use ``convolution.exact()`` for that.

    Within ``convolution.exact()``, and with the environment variable ADVJAX_EXACT_CONVOLUTIONS=1, the result simply
    calls ``fn``.

    Args:
      fn: a traceable function of arrays, or trees of arrays; it may close over others.
    """

    def fast(*args: P.args, **kwargs: P.kwargs) -> T:
        if uses_exact_convolutions():
            return fn(*args, **kwargs)
        # JAX remembers traces by function, and this one may close over arrays that are different in the next call.
        program = jax.make_jaxpr(lambda *args, **kwargs: fn(*args, **kwargs), return_shape=True)
        traced, shapes = program(*args, **kwargs)
        results = _evaluate(traced.jaxpr, traced.consts, jax.tree.leaves((args, kwargs)))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return fast


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr with substitutes."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atoms: Sequence[Any]) -> list[Any]:
        return [atom.val if isinstance(atom, Literal) else values[atom] for atom in atoms]

    for eqns, kept in _pieces(jaxpr):
        if (rewritten := _rewritten(eqns[0])) is not None:
            inputs, outputs = read(eqns[0].invars), eqns[0].outvars
            results = rewritten(*inputs)
        else:
            inner = {var for eqn in eqns for var in eqn.outvars}
            outer = dict.fromkeys(
                var for eqn in eqns for var in eqn.invars if not isinstance(var, Literal) and var not in inner
            )
            outputs = [var for eqn in eqns for var in eqn.outvars if var in kept]
            piece = jaxpr.replace(constvars=[], invars=list(outer), outvars=outputs, eqns=list(eqns))
            results = jaxpr_as_fun(ClosedJaxpr(piece, []))(*read(list(outer)))
        values.update(zip(outputs, results, strict=True))
        values = {var: value for var, value in values.items() if var in kept}  # Frees memory if nothing is jitted.
    return read(jaxpr.outvars)


def _pieces(jaxpr: Jaxpr) -> Iterator[tuple[list[JaxprEqn], set[Any]]]:
    """Splits the equations into those to rewrite, one by one, and all those between; with what is needed afterward."""
    pieces = []
    for changes, group in itertools.groupby(jaxpr.eqns, lambda eqn: _rewritten(eqn) is not None):
        eqns = list(group)
        pieces += [[eqn] for eqn in eqns] if changes else [eqns]
    needed, after = {var for var in jaxpr.outvars if not isinstance(var, Literal)}, []
    for eqns in reversed(pieces):
        after.append(set(needed))
        needed |= {var for eqn in eqns for var in eqn.invars if not isinstance(var, Literal)}
    yield from zip(pieces, reversed(after), strict=True)


def _rewritten(eqn: JaxprEqn) -> Callable[..., Any] | None:
    """The function that replaces an equation; None if it stays unchanged."""
    direct = substitute(eqn)
    if direct is not None:
        return lambda *inputs: [direct(*inputs)]
    rebuild = _REBUILD.get(eqn.primitive.name)
    if rebuild is None or not takes(rebuild, eqn.params) or not any(map(_changes, inner_jaxprs(eqn))):
        return None
    return rebuild(**eqn.params)


def _changes(jaxpr: Jaxpr) -> bool:
    return any(_rewritten(eqn) is not None for eqn in jaxpr.eqns)


def inner_jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs among the parameters of an equation."""
    for parameter in eqn.params.values():
        for item in parameter if isinstance(parameter, tuple) else (parameter,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _flat(closed: ClosedJaxpr) -> Callable[..., list[Any]]:
    return lambda *args: _evaluate(closed.jaxpr, closed.consts, args)


# --- equations that contain others, rebuilt; None if the public function cannot set their parameters ----


def _jit(
    *,
    jaxpr,
    in_shardings,
    out_shardings,
    in_layouts,
    out_layouts,
    donated_invars,
    ctx_mesh,
    name,
    keep_unused,
    inline,
    compiler_options_kvs,
):
    del ctx_mesh, keep_unused, inline  # They change neither results nor, inside another program, how they are computed.
    is_plain = not any(isinstance(item, jax.sharding.Sharding) for item in (*in_shardings, *out_shardings))
    if not is_plain or any((*in_layouts, *out_layouts, *donated_invars, *compiler_options_kvs)):
        return None
    known = _jitted.setdefault(jaxpr, {})
    if are_repeated() not in known:
        reference = weakref.ref(jaxpr)  # The value must not keep its key alive.

        def call(*args: Any) -> list[Any]:
            closed = reference()
            assert closed is not None  # It is being evaluated.
            return _flat(closed)(*args)

        call.__name__ = name
        known[are_repeated()] = jax.jit(call)
    return known[are_repeated()]


def _checkpoint(*, jaxpr, prevent_cse, differentiated, policy):
    if differentiated:
        return None
    return jax.checkpoint(_flat(ClosedJaxpr(jaxpr, [])), prevent_cse=prevent_cse, policy=policy)


def _scan(*, jaxpr, length, reverse, unroll, num_consts=None, num_carry=None, ft_in=None, ft_out=None):
    del ft_out  # How the results are put together again, which is not the equation's business.
    if ft_in is not None:  # From JAX 0.12 on, constants, carry and inputs are described by a tree.
        num_consts, num_carry, _ = map(len, ft_in.unpack())
    if num_consts is None or num_carry is None:
        return None

    def call(*args: Any) -> list[Any]:
        consts, carry, xs = args[:num_consts], args[num_consts:][:num_carry], args[num_consts + num_carry :]

        def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            results = _flat(jaxpr)(*consts, *carry, *x)
            return results[:num_carry], results[num_carry:]

        carry, ys = lax.scan(step, list(carry), list(xs), length=length, reverse=reverse, unroll=unroll)
        return [*carry, *ys]

    return call


def _while(*, cond_jaxpr, body_jaxpr, cond_nconsts, body_nconsts):
    def call(*args: Any) -> list[Any]:
        cond_consts, body_consts = args[:cond_nconsts], args[cond_nconsts:][:body_nconsts]
        return lax.while_loop(
            lambda carry: _flat(cond_jaxpr)(*cond_consts, *carry)[0],
            lambda carry: _flat(body_jaxpr)(*body_consts, *carry),
            list(args[cond_nconsts + body_nconsts :]),
        )

    return call


def _cond(*, branches, branches_platforms=None):
    if branches_platforms is not None:
        return None
    return functools.partial(_switch, [_flat(branch) for branch in branches])


def _switch(branches: Sequence[Callable[..., list[Any]]], index: Any, *operands: Any) -> list[Any]:
    return lax.switch(index, branches, *operands)


def _shard_map(*, jaxpr, mesh, in_specs, out_specs, check_vma, newly_manual_axes):
    return jax.shard_map(
        lambda *args: tuple(_evaluate(jaxpr, [], args)),
        mesh=mesh,
        in_specs=tuple(in_specs),
        out_specs=tuple(out_specs),
        axis_names=set(newly_manual_axes),
        check_vma=check_vma,
    )


_REBUILD: dict[str, Callable[..., Callable[..., Any] | None]] = {
    "jit": _jit,
    "pjit": _jit,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
