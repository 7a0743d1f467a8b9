"""Substitutes for single equations of a jaxpr: the fast algorithm on CPU, the equation itself on other platforms.

Each is jitted with static parameters, so that equal layers are traced once, and called again outside ``jit`` are not
compiled again.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from advjax.cpu import convolution, pooling
from advjax.types import Array


def substitute(eqn: JaxprEqn) -> Callable[..., Array] | None:
    """A function of the inputs of ``eqn`` that returns its output; None if the equation is to stay as it is."""
    find = _SUBSTITUTES.get(eqn.primitive.name)
    if find is None or not takes(find, eqn.params, *eqn.invars):
        return None
    return find(*(atom.aval for atom in eqn.invars), **eqn.params)


def takes(function: Callable[..., Any], params: Mapping[str, Any], *args: Any) -> bool:
    """Whether a function knows all parameters of an equation: a later version of JAX may have others."""
    try:
        inspect.signature(function).bind(*args, **params)
    except TypeError:
        return False
    return True


# --- convolution -----------------------------------------------------------------------------------------------------


class _Parameters(NamedTuple):
    """Static parameters of a convolution."""

    window_strides: tuple[int, int]
    padding: convolution.Padding
    dimension_numbers: lax.ConvDimensionNumbers
    precision: Any
    preferred_element_type: Any
    repeated: bool
    """``convolution.repeated``."""

    @property
    def of_lax(self) -> dict[str, Any]:
        """Those of ``lax.conv_general_dilated``."""
        return {name: value for name, value in self._asdict().items() if name != "repeated"}

    @property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """Where images and outputs have (n, h, w, channels), and the kernel (rows, columns, channels, features)."""
        (n, c, h, w), (features, channels, *window), (out_n, out_c, out_h, out_w) = self.dimension_numbers
        return (n, h, w, c), (*window, channels, features), (out_n, out_h, out_w, out_c)


def _find_convolution(
    lhs: Any,
    rhs: Any,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count,
    batch_group_count,
    precision,
    preferred_element_type,
    out_sharding,
) -> Callable[..., Array] | None:
    is_plain = (
        lhs.ndim == 4
        and lhs.dtype == rhs.dtype == jnp.float32
        and preferred_element_type in (None, jnp.float32)
        and set(lhs_dilation) == set(rhs_dilation) == {1}
        and feature_group_count == batch_group_count == 1
        and out_sharding is None
    )
    if not is_plain:
        return None
    # Any precision is that of float32 on CPU.
    types = precision, preferred_element_type
    repeated = convolution.are_repeated()
    params = _Parameters(tuple(window_strides), tuple(padding), dimension_numbers, *types, repeated)
    images, kernel, _ = params.axes
    shapes = [lhs.shape[axis] for axis in images], [rhs.shape[axis] for axis in kernel]
    if not convolution.is_supported(*shapes, params.window_strides, params.padding):
        return None
    return lambda lhs, rhs: _form(*_equally_varying(lhs, rhs), None, OUTPUT, params)


INPUT, KERNEL, OUTPUT = range(3)
_FAST: tuple[Callable[..., Array], ...]
_FAST = convolution.input_gradient, convolution.filter_gradient, convolution.convolve


@functools.partial(jax.jit, static_argnums=(3, 4))
def _form(lhs: Array, rhs: Array, cotangent: Array | None, slot: int, params: _Parameters) -> Array:
    """The gradient of T(lhs, rhs, cotangent) = <lhs * rhs, cotangent> with respect to one of its arguments.

    T is linear in each of them, so this is the convolution itself (OUTPUT) or one of its gradients (INPUT, KERNEL), and
    the gradients of all three are again of this form: derivatives of any order are fast. The value of the argument in
    the slot does not matter.
    """
    return _differentiable_form(lhs, rhs, cotangent, slot, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _differentiable_form(lhs: Array, rhs: Array, cotangent: Array | None, slot: int, params: _Parameters) -> Array:
    def fast(*factors: Array | None) -> Array:
        axes = params.axes
        moved = [x.transpose(order) for x, order in zip(factors, axes, strict=True) if x is not None]
        moved = moved[:2] if slot == OUTPUT else moved
        return _FAST[slot](*moved, params.window_strides, params.padding, params.repeated).transpose(
            np.argsort(axes[slot])
        )

    def exact(lhs: Array, rhs: Array, cotangent: Array | None) -> Array:
        convolve = functools.partial(lax.conv_general_dilated, **params.of_lax)
        if slot == INPUT:
            return jax.linear_transpose(lambda lhs: convolve(lhs, rhs), lhs)(cotangent)[0]
        if slot == KERNEL:
            return jax.linear_transpose(lambda rhs: convolve(lhs, rhs), rhs)(cotangent)[0]
        return convolve(lhs, rhs)

    return lax.platform_dependent(lhs, rhs, cotangent, cpu=fast, default=exact)


def _form_forward(lhs: Array, rhs: Array, cotangent: Array | None, slot: int, params: _Parameters) -> tuple[Array, Any]:
    arguments = lhs, rhs, cotangent
    return _form(*arguments, slot, params), arguments


def _form_backward(slot: int, params: _Parameters, arguments: Any, result_bar: Array) -> tuple[Any, ...]:
    own = arguments[slot]
    replaced = *arguments[:slot], result_bar, *arguments[slot + 1 :]
    gradients = [None if other == slot else _form(*replaced, other, params) for other in (INPUT, KERNEL, OUTPUT)]
    gradients[slot] = None if own is None else jnp.zeros_like(own)
    return tuple(gradients)


_differentiable_form.defvjp(_form_forward, _form_backward)


def _equally_varying(*arrays: Array) -> tuple[Array, ...]:
    """Marks all arrays as varying over the mesh axes that any of them varies over (a no-op outside ``shard_map``).

    Outside the custom rule, because the transpose of the cast sums the gradient of a replicated kernel over devices.
    """
    axes = frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays))
    missing = [tuple(sorted(axes - jax.typeof(array).manual_axis_type.varying)) for array in arrays]
    return tuple(lax.pcast(array, names, to="varying") for array, names in zip(arrays, missing, strict=True))


# --- pooling ---------------------------------------------------------------------------------------------------------


def _find_pooling(pool: Callable[..., Array]) -> Callable[..., Callable[..., Array] | None]:
    def find(x: Any, *, window_dimensions, window_strides, padding, base_dilation, window_dilation):
        is_plain = (
            jnp.issubdtype(x.dtype, jnp.floating)
            and tuple(window_dimensions) == tuple(window_strides)
            and set(padding) == {(0, 0)}
            and set(base_dilation) == set(window_dilation) == {1}
            and pooling.is_supported(x.shape, window_dimensions)
        )
        return functools.partial(pool, window=tuple(window_dimensions)) if is_plain else None

    return find


_ELEMENTWISE_POOLING = "cpu", "cuda", "rocm"
"""Platforms for which max pooling is compared elementwise.

On a GPU, the gradient of ``reduce_window`` is another window and a scatter; compared elementwise, it is fused.  Read
off compiled programs; not timed.
"""


def _exact_max_pool(x: Array, window: Sequence[int]) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


@functools.partial(jax.jit, static_argnames="window")
def _max_pool(x: Array, window: tuple[int, ...]) -> Array:
    return _differentiable_max_pool(x, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _differentiable_max_pool(x: Array, window: tuple[int, ...]) -> Array:
    fast = functools.partial(pooling.max_pool, window=window)
    return lax.platform_dependent(
        x, **dict.fromkeys(_ELEMENTWISE_POOLING, fast), default=functools.partial(_exact_max_pool, window=window)
    )


def _max_pool_forward(x: Array, window: tuple[int, ...]) -> tuple[Array, Array]:
    return _differentiable_max_pool(x, window), x


def _max_pool_backward(window: tuple[int, ...], x: Array, cotangent: Array) -> tuple[Array]:
    def exact(x: Array, cotangent: Array) -> Array:
        return jax.vjp(functools.partial(_exact_max_pool, window=window), x)[1](cotangent)[0]

    fast = functools.partial(pooling.max_pool_gradient, window=window)
    return (lax.platform_dependent(x, cotangent, **dict.fromkeys(_ELEMENTWISE_POOLING, fast), default=exact),)


_differentiable_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@functools.partial(jax.jit, static_argnames="window")
def _sum_pool(x: Array, window: tuple[int, ...]) -> Array:
    """Linear: both alternatives can be differentiated in any way, and save nothing for it."""

    def exact(x: Array) -> Array:
        return lax.reduce_window(x, 0.0, lax.add, window, window, "VALID")

    return lax.platform_dependent(x, cpu=functools.partial(pooling.sum_pool, window=window), default=exact)


_SUBSTITUTES: dict[str, Callable[..., Callable[..., Array] | None]] = {
    "conv_general_dilated": _find_convolution,
    "reduce_window_max": _find_pooling(_max_pool),
    "reduce_window_sum": _find_pooling(_sum_pool),
}
