"""Traces everything that an experiment would compute, on shapes alone, before anything is trained or written.

A config can be valid key by key and still describe something impossible: a patch after a block that the network does
not have, a start from a network of another width, an attack for ten classes on data with two. Tracing finds this in
seconds; nothing is compiled or computed.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from advjax.attacks import Stage, ThreatModel
from advjax.data import Dataset, Source
from advjax.evaluation.attack_runs import NamedAttack
from advjax.experiment.build_data import extra_images
from advjax.experiment.registry import NORMS, build
from advjax.experiment.spec import DataFacts, DefensePlan, Experiment, Run
from advjax.models import blocks
from advjax.models.compute_dtype import computing_in
from advjax.models.remat import rematerializing
from advjax.runtime.devices import Devices
from advjax.training.microbatches import check_rows
from advjax.types import Array, Batch, PyTree, UserError, Variables

_ERRORS = (TypeError, ValueError, AssertionError, IndexError, KeyError, NotImplementedError, flax.errors.FlaxError)
"""What JAX, Flax, chex and this package raise while they trace functions whose shapes do not fit."""


def check_runs(experiment: Experiment, devices: Devices) -> None:
    """Traces the objective of every run on a batch, and its attacks of training and validation; reads extra images.

    Attacks are traced on a small linear model of the same images and classes: through a large network, it would take
    as long as compiling.

    Raises:
      UserError: a run cannot be trained as described; the message starts with its config key.
    """
    variables: dict[str, Variables] = {}
    models: list[tuple[nn.Module, Variables]] = []
    for run in experiment.runs:
        with _explained(f"run.{run.name}.model"):
            shapes = next((shapes for model, shapes in models if model == run.model), None)
            if shapes is None:
                shapes = _shapes(run.model, experiment.facts)
                models.append((run.model, shapes))
        if not run.is_taken:
            with _explained(f"run.{run.name}.batch_size"):
                devices.local_rows(run.plan.batch_size)
            with _explained(f"run.{run.name}"):
                _trace_step(run, experiment, shapes, variables, devices)
                if run.extra_images:
                    extra_images(run.extra_images, experiment.load_data().train)
                for attack in run.copies.attacks if run.copies else ():
                    _trace_attack(attack, experiment.facts)
                if run.validation_attack:
                    _trace_attack(run.validation_attack.attack, experiment.facts)
        variables[run.name] = shapes


def check_evaluation(experiment: Experiment, train: Dataset | Source) -> None:
    """Traces every attack of the evaluation, on a small model of the same images and classes, and every defense.

    Args:
      experiment: to be evaluated.
      train: the training images, from which some defenses take images.

    Raises:
      UserError: something cannot be measured as described; the message starts with its config key.
    """
    plan, facts = experiment.evaluation, experiment.facts
    check_attacks(plan.attacks, facts, "evaluation.attacks.")
    if plan.curve is not None:
        with _explained("evaluation.curve"):
            curve = plan.curve
            for epsilon in curve.epsilons:
                _check_epsilon(build(NORMS, {"name": curve.norm, "epsilon": epsilon}, "evaluation.curve"), facts)
            jax.eval_shape(
                lambda epsilon, *batch: curve.attack_at(epsilon)(_linear(facts.num_classes), *batch),
                jax.ShapeDtypeStruct((), jnp.float32),
                *_batch(facts),
            )
    models = {run.name: run.model for run in experiment.runs}
    for defense in plan.defenses:
        with _explained(f"evaluation.defenses.{defense.name}"):
            _trace_defense(defense, models[defense.run], facts, train)


def check_attacks(attacks: Sequence[NamedAttack], facts: DataFacts, where: str) -> None:
    """Traces attacks on a small model of the same images and classes.

    Args:
      attacks: to run.
      facts: about the images.
      where: stands before the name of an attack in an error.

    Raises:
      UserError: an attack cannot be run on such images.
    """
    for attack in attacks:
        with _explained(f"{where}{attack.name}"):
            _trace_attack(attack, facts)


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turns what goes wrong in tracing into one line that names the config key."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(where) else f"{where}: {text}") from error
    except _ERRORS as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{where}: {lines[0]}") from error


def _shapes(model: nn.Module, facts: DataFacts) -> Variables:
    """Shapes and dtypes of the variables of a model, which has to return logits for all classes."""
    variables = jax.eval_shape(lambda: blocks.init(model, jax.random.key(0), facts.image_shape))
    logits = jax.eval_shape(lambda *both: blocks.apply(model, *both), variables, _images(facts))
    if getattr(logits, "shape", None) != (1, facts.num_classes):
        raise UserError(f"the model returns {logits} instead of logits [n, {facts.num_classes}]")
    return variables


def _trace_step(
    run: Run, experiment: Experiment, shapes: Variables, earlier: Mapping[str, Variables], devices: Devices
) -> None:
    models = {other.name: other.model for other in experiment.runs if other.name in earlier}
    if run.start is not None:
        _check_start(run, shapes, earlier[run.start])
    method, facts = run.method(shapes, models), experiment.facts
    rows = 2 * method.microbatches
    check_rows(run.plan.batch_size // devices.mesh.size, method.microbatches)

    def objective(variables: Variables, images: Array, labels: Array, key: Array) -> PyTree:
        batch = Batch(images, labels, jax.nn.one_hot(labels, facts.num_classes), labels, jnp.ones(rows, bool))
        networks = dict.fromkeys(("self", *method.models), _linear(facts.num_classes))
        for transform in method.transforms:
            batch = transform(networks, batch, key)
        with computing_in(method.compute_dtype), rematerializing(method.remat):
            return method.objective(variables.params, variables.model_state, batch, key, None)

    images = jax.ShapeDtypeStruct((rows, *facts.image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    jax.eval_shape(objective, shapes, images, labels, jax.eval_shape(lambda: jax.random.key(0)))


def _check_start(run: Run, shapes: Variables, start: Variables) -> None:
    """Refuses to start from the variables of another network; a patched network contains them as its base."""
    expected = shapes.params.get("base", shapes.params)
    if jax.tree.structure(expected) != jax.tree.structure(start.params) or any(
        here.shape != there.shape
        for here, there in zip(jax.tree.leaves(expected), jax.tree.leaves(start.params), strict=True)
    ):
        raise UserError(f"the model has other parameters than run {run.start!r}, which it starts from")


def _check_epsilon(threat_model: ThreatModel, facts: DataFacts) -> None:
    """Refuses a ball that contains every image, such as that of epsilon 8 where 8/255 is meant."""
    epsilon, norm = float(threat_model.epsilon), threat_model.norm
    whole = float(norm.size(jnp.ones(facts.image_shape)))
    if whole < epsilon < math.inf:
        raise UserError(
            f"epsilon is {epsilon:g}, but no two images in [0, 1] of shape {list(facts.image_shape)} are further apart "
            f"than {whole:g} in {norm.name}: 8-bit units are written as '8/255'"
        )


def _trace_attack(attack: NamedAttack, facts: DataFacts) -> None:
    if not attack.is_noise:
        _check_epsilon(attack.threat_model, facts)
    if attack.attack is not None:
        jax.eval_shape(lambda *batch: attack.attack(_linear(facts.num_classes), *batch), *_batch(facts))  # pyright: ignore
        return
    for stage in attack.stages:
        stage.num_rounds(facts.num_classes)
        _trace_stage(stage, facts)


def _trace_stage(stage: Stage, facts: DataFacts) -> None:
    jax.eval_shape(lambda *batch: stage.attack(jnp.int32(0))(_linear(facts.num_classes), *batch), *_batch(facts))


def _trace_defense(defense: DefensePlan, model: nn.Module, facts: DataFacts, train: Dataset | Source) -> None:
    arrays, variables = defense.recipe.arrays(train), _shapes(model, facts)
    images, _, keys = _batch(facts)
    key = jax.eval_shape(lambda keys: keys[0], keys)

    def draw(variables: Variables, arrays: PyTree, images: Array, key: Array) -> Array:
        return defense.recipe.wrap(model, variables, arrays)(images, key)

    jax.eval_shape(draw, variables, arrays, images, key)


def _linear(num_classes: int):
    """A small differentiable model, so that an attack on a large network need not be traced through it."""

    def logits_fn(images: Array) -> Array:
        return jnp.tensordot(images.reshape(len(images), -1).mean(axis=1), jnp.arange(float(num_classes)), axes=0)

    return logits_fn


def _images(facts: DataFacts) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *facts.image_shape), jnp.float32)


def _batch(facts: DataFacts) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of an image, its label and its key."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    return _images(facts), jax.ShapeDtypeStruct((1,), jnp.int32), keys
