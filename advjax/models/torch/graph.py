"""Converts PyTorch modules of any architecture into JAX functions, by their ``torch.export`` graph.

    logits_fn, variables = from_torch(module, images)
    attack(lambda images: logits_fn(variables, images), images, labels, rng)

The graph is decomposed into PyTorch's core ATen operations, each of which is replaced by its JAX version. An operation
without one is refused by name. The result needs PyTorch no more: it can be differentiated, compiled and trained.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from advjax.models.torch import operations
from advjax.models.torch.operations import OPERATIONS
from advjax.models.torch.reading import import_torch, in_eval_mode, is_torch_module, module_logits, pixels_for
from advjax.models.torch.verification import Reference, checked_images, difference, max_precision
from advjax.types import Array, UserError, Variables

ConvertedFn: TypeAlias = Callable[[Variables, Array], Array]
"""``(variables, images [n, h, w, c] in [0, 1]) -> logits [n, classes]``."""

_WITHOUT_MEANING = ("layout", "device", "pin_memory", "memory_format", "non_blocking")
_ON_SIZES = (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)


@dataclasses.dataclass(frozen=True)
class Ref:
    """The result of an earlier step."""

    name: str


class Step(NamedTuple):
    """``name = OPERATIONS[operation](*args, **kwargs)``, where the arguments may contain ``Ref``."""

    name: str
    operation: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Program(NamedTuple):
    """A straight-line program.

    Attributes:
      steps: in order.
      sources: name of an input -> (collection, name) in the variables: "params" or "buffers".
      images: name of the input that holds the images.
      image_shape: (n, channels, height, width); n is None unless the export has fixed the number of images.
      output: the result.
    """

    steps: tuple[Step, ...]
    sources: Mapping[str, tuple[str, str]]
    images: str
    image_shape: tuple[int | None, ...]
    output: Ref


def from_torch(source: Any, example: Array | np.ndarray, *, tolerance: float = 1e-4) -> tuple[ConvertedFn, Variables]:
    """Converts a PyTorch module, in eval mode, into a JAX function and its variables.

    Logits are compared with PyTorch's for ``example``, as a batch and for its first image alone. The result takes any
    number of images; where the export has fixed that number, it computes them in batches of it, the last one padded.

    Args:
      source: a ``torch.nn.Module`` that takes images [n, c, h, w] and returns logits, or the ``ExportedProgram`` that
        ``torch.export.export`` made of one in eval mode; if its batch size is not dynamic, it is that of ``example``.
      example: floating point [n, h, w, c] in [0, 1], at least two images; all but the number of images is fixed by it.
      tolerance: largest difference of logits that is accepted, relative to the largest logit in size.

    Returns:
      ``(logits_fn, variables)``: ``logits_fn(variables, images)`` takes images [n, h, w, c] in [0, 1];
      ``variables.params`` are the parameters by their PyTorch names and in PyTorch's layout, and
      ``variables.model_state["buffers"]`` the buffers and constants.

    Raises:
      UserError: an operation has no JAX version (it is named), the module cannot be exported, it is in train mode, or
        the logits differ from PyTorch's.
      ValueError: ``example`` is malformed.
      TypeError: ``source`` is neither a module nor an exported program.
    """
    images = checked_images(example)
    exported, logits = exported_program(source, images)
    program, variables = converted(exported)
    program = with_fixed_number(program, variables, len(images))
    logits_fn = function_of(program)
    call = jax.jit(logits_fn)
    worst = difference(max_precision(lambda x: call(variables, x), images), Reference(images, logits), tolerance)
    alone = max_precision(lambda x: call(variables, x), images[:1])
    worst = max(worst, float(np.abs(alone - logits[:1]).max() / np.abs(logits).max()))
    if not worst <= tolerance:
        raise UserError(
            f"the logits of the converted module differ from PyTorch's by {worst:.2g} of the largest one, more than "
            f"tolerance={tolerance:g}; they must not depend on the other images of a batch, nor be random"
        )
    return logits_fn, variables


def function_of(program: Program) -> ConvertedFn:
    """The JAX function that a program describes, for any number of images."""
    number, channels, *sides = program.image_shape

    def logits_fn(variables: Variables, images: Array) -> Array:
        if images.ndim != 4 or images.shape[1:] != (*sides, channels):
            wanted = ", ".join(map(str, ("n", *sides, channels)))
            raise ValueError(f"images must have the shape of the example, [{wanted}], got {images.shape}")
        if number is None:
            return _run(program, variables, images)
        return _in_batches(lambda batch: _run(program, variables, batch), images, number)

    return logits_fn


def with_fixed_number(program: Program, variables: Variables, count: int) -> Program:
    """The program, with ``count`` images to a batch if its export has fixed that number somewhere inside."""
    if program.image_shape[0] is not None or all(_takes(program, variables, number) for number in (1, count + 1)):
        return program
    return program._replace(image_shape=(count, *program.image_shape[1:]))


def _takes(program: Program, variables: Variables, number: int) -> bool:
    """Whether a program gives logits [number, classes] for as many images."""
    _, channels, *sides = program.image_shape
    images = jax.ShapeDtypeStruct((number, *sides, channels), jnp.float32)
    try:
        logits = jax.eval_shape(lambda variables, images: _run(program, variables, images), variables, images)
    except (TypeError, ValueError):
        return False
    return logits.ndim == 2 and len(logits) == number


def _in_batches(function: Callable[[Array], Array], images: Array, size: int) -> Array:
    """A function of batches of a fixed size, for any number of images; the last batch is padded cyclically."""
    number = len(images)
    if number == size:
        return function(images)
    num_batches = -(-number // size)
    padded = images[np.arange(num_batches * size) % number]
    outputs = jax.vmap(function)(padded.reshape(num_batches, size, *images.shape[1:]))
    return outputs.reshape(num_batches * size, *outputs.shape[2:])[:number]


def _run(program: Program, variables: Variables, images: Array) -> Array:
    trees = {"params": variables.params, **variables.model_state}
    values = {name: trees[kind][key] for name, (kind, key) in program.sources.items()}
    values[program.images] = jnp.transpose(images, (0, 3, 1, 2))
    for step in program.steps:
        args, kwargs = _map(lambda ref: values[ref.name], (step.args, step.kwargs), Ref)
        values[step.name] = OPERATIONS[step.operation](*args, **kwargs)
    return values[program.output.name]


def _map(function: Callable[[Any], Any], value: Any, kind: type) -> Any:
    """Applies a function to all values of a type in nested lists, tuples, and dictionaries."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list | tuple):
        return tuple(_map(function, each, kind) for each in value)
    if isinstance(value, dict):
        return {name: _map(function, each, kind) for name, each in value.items()}
    return value


# --- reading the graph -----------------------------------------------------------------------------------------------


def exported_program(source: Any, images: np.ndarray) -> tuple[Any, np.ndarray]:
    """The exported program in core operations, and PyTorch's logits."""
    torch = import_torch()

    if isinstance(source, torch.export.ExportedProgram):
        logits = module_logits(source.module(), images)
        return source.run_decompositions(), logits
    if not is_torch_module(source):
        raise TypeError(f"source must be a torch.nn.Module or an ExportedProgram, got {type(source).__name__}")
    logits = module_logits(source, images)
    with in_eval_mode(source):
        try:
            dynamic = ({0: torch.export.Dim.AUTO},)
            exported = torch.export.export(source, (pixels_for(source, images),), dynamic_shapes=dynamic)
            return exported.run_decompositions(), logits
        except Exception as error:  # Export fails in many ways, all of which are about the module.
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"torch.export cannot export {type(source).__name__}: {reason}") from error


def converted(exported: Any) -> tuple[Program, Variables]:
    """The program of an exported graph, and its variables."""
    nodes, signature = list(exported.graph.nodes), exported.graph_signature
    mutated = [spec.target for spec in signature.output_specs if spec.kind.name != "USER_OUTPUT"]
    if mutated:
        raise UserError(f"the module changes {mutated[0]} when it is called: export it in eval mode")
    _refuse_unknown(nodes)
    used = {node.name for node in nodes if node.op == "placeholder" and node.users}
    sources: dict[str, tuple[str, str]] = {}
    variables: dict[str, dict[str, jax.Array]] = {"params": {}, "buffers": {}}
    inputs = []
    for spec in signature.input_specs:
        kind = spec.kind.name
        if kind == "USER_INPUT":
            inputs.append(spec.arg.name)
        elif spec.arg.name in used:
            collection = "params" if kind == "PARAMETER" else "buffers"
            tensor = exported.state_dict.get(spec.target, exported.constants.get(spec.target))
            variables[collection][spec.target] = jnp.asarray(tensor.detach().cpu().numpy())
            sources[spec.arg.name] = (collection, spec.target)
    ((outputs,),) = [node.args for node in nodes if node.op == "output"]
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(
            f"the module must take images alone and return logits alone, but it has {len(inputs)} inputs and "
            f"{len(outputs)} outputs"
        )
    shape = next(node.meta["val"].shape for node in nodes if node.name == inputs[0])
    image_shape = tuple(side if isinstance(side, int) else None for side in shape)
    steps = tuple(_step(node) for node in nodes if node.op == "call_function" and node.users)
    program = Program(steps, sources, inputs[0], image_shape, Ref(outputs[0].name))
    return program, Variables(variables.pop("params"), variables)


def _refuse_unknown(nodes: list[Any]) -> None:
    """Raises UserError if an operation has no JAX version."""
    unknown: dict[str, str] = {}
    for node in nodes:
        if node.op == "call_function" and node.users and _operation(node) is None:
            layers = node.meta.get("nn_module_stack") or {}
            path = next((path for path, _ in reversed(layers.values()) if path), "the module itself")
            unknown.setdefault(str(node.target), path)
        elif node.op not in ("call_function", "placeholder", "output"):
            unknown.setdefault(f"{node.op} {node.target}", "the module itself")
    if unknown:
        listed = ", ".join(f"{name} (in {path})" for name, path in unknown.items())
        raise UserError(f"from_torch does not convert {listed}; what it converts is in {operations.__name__}")


def _operation(node: Any) -> str | None:
    """The name in ``OPERATIONS``, or None; "add" for ``aten.add.Tensor``, and for ``operator.add`` on sizes."""
    name = str(node.target)
    if name.startswith("aten."):
        name = name.split(".")[1]
    elif node.target in _ON_SIZES:
        name = node.target.__name__
    return name if name in OPERATIONS else None


def _step(node: Any) -> Step:
    torch = import_torch()

    def plain(value: Any) -> Any:
        value = _map(lambda other: Ref(other.name), value, torch.fx.Node)
        return _map(lambda dtype: str(dtype).removeprefix("torch."), value, torch.dtype)

    operation = _operation(node)
    assert operation is not None  # _refuse_unknown has run.
    kwargs = {name: value for name, value in node.kwargs.items() if name not in _WITHOUT_MEANING}
    return Step(node.name, operation, plain(node.args), plain(kwargs))
