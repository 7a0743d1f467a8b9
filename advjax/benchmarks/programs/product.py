"""The programs that training, the runner of attacks, and verdicts run, compiled without weights or images.

They come from the builders that the product itself uses, which are given shapes instead of arrays.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.attacks import Stage, ThreatModel, auto_attack_stages, in_precision, pgd
from advjax.attacks.combine import call_attack, restarts
from advjax.attacks.continuous_batching import lane_shapes, step_program
from advjax.attacks.programs import Program, Programs, Search
from advjax.attacks.runner import make_programs
from advjax.benchmarks.programs.targets import Target
from advjax.evaluation.scored_model import NO_DEFENSE, ScoredModel
from advjax.experiment.spec import Experiment, Run
from advjax.models import blocks
from advjax.runtime.devices import Devices, pad_to_multiple
from advjax.training.feed import feed_shapes
from advjax.training.loop import step_programs
from advjax.training.step import init_state
from advjax.types import PyTree, UserError, Variables

PGD_STEPS = 20


class Subject(NamedTuple):
    """What is compiled: an experiment for a target."""

    experiment: Experiment
    target: Target
    is_streamed: bool
    """Whether training images are streamed."""
    run: str
    """The run whose network is attacked; "" for the first."""
    stage: str
    """Name of a stage of AutoAttack."""
    search_dtype: str
    """What attacks compute in; "" for what the network does."""

    @property
    def batch_size(self) -> int:
        """Images at a time in an evaluation, on the devices of one process."""
        devices = self.target.of_one_process
        whole = pad_to_multiple(self.experiment.evaluation.batch_size, self.target.mesh)
        return whole // self.target.mesh.size * len(devices)


class Compiled(NamedTuple):
    """A compiled program."""

    compiled: jax.stages.Compiled
    num_devices: int
    images_per_device: int
    largest_variable: int
    """Bytes of the largest array of the network."""


def compile_program(name: str, subject: Subject) -> Compiled:
    """Compiles one of ``PROGRAMS`` for the target.

    Raises:
      UserError: the experiment has no such program.
    """
    return PROGRAMS[name](subject)


def _train_base(subject: Subject) -> Compiled:
    return _train(subject, subject.experiment.runs[0])


def _train_fixer(subject: Subject) -> Compiled:
    found = next((run for run in subject.experiment.runs if run.start is not None and not run.is_taken), None)
    if found is None:
        raise UserError("--program=train_fixer: the config has no run that starts from or patches another one")
    return _train(subject, found)


def _train(subject: Subject, run: Run) -> Compiled:
    """The training step of a run."""
    experiment = subject.experiment
    if run.is_taken:
        raise UserError(f"run {run.name!r} is taken from elsewhere and not trained")
    devices = Devices(subject.target.mesh, experiment.mapping)
    variables = {one.name: _variables(one, experiment) for one in experiment.runs}
    earlier = experiment.runs[: experiment.runs.index(run)]
    method = run.method(variables[run.name], {one.name: one.model for one in earlier})
    state = jax.eval_shape(lambda given: init_state(method, given, jax.random.key(0)), variables[run.name])
    sources = {name: variables[name] for name in run.sources}
    facts, batch_size = experiment.facts, run.plan.batch_size
    if batch_size % devices.mesh.size:
        raise UserError(
            f"run.{run.name}.batch_size is {batch_size}, which {devices.mesh.size} devices cannot divide among them"
        )
    step, _ = step_programs(method, facts.num_classes, devices, is_streamed=subject.is_streamed)
    fed = feed_shapes(facts.image_shape, facts.num_examples[run.name], batch_size, is_streamed=subject.is_streamed)
    compiled = step.lower(state, sources, *fed).compile()
    return Compiled(compiled, devices.mesh.size, batch_size // devices.mesh.size, _largest(variables[run.name]))


def _attack(subject: Subject) -> Compiled:
    """PGD on a batch, all steps in one program: the form for notebooks, training, and attacks that are functions."""
    threat_model = _threat_model(subject.experiment)
    # A quarter of the ball, as is usual for ten steps and more.
    attack = functools.partial(
        call_attack, pgd(threat_model, num_steps=PGD_STEPS, step_size=float(threat_model.epsilon) / 4)
    )
    programs, search = _search(subject, restarts("pgd", attack, 1), threat_model, until_success=False)
    program = programs.attack_program(search, _batch(subject)[:3])
    return _of_one_process(subject, program)


def _stage(subject: Subject) -> Compiled:
    """One step of a stage of AutoAttack, in every lane of the runner."""
    threat_model = _threat_model(subject.experiment)
    stages = {stage.name: stage for stage in auto_attack_stages(threat_model)}
    if subject.stage not in stages:
        raise UserError(f"--stage: unknown stage {subject.stage!r}; known are {', '.join(stages)}")
    programs, search = _search(subject, stages[subject.stage], threat_model, until_success=True)
    held = lane_shapes(programs, search, _batch(subject))
    return _of_one_process(subject, step_program(programs, search, held))


def _verify(subject: Subject) -> Compiled:
    """The verdict on a batch of adversarial images."""
    threat_model = _threat_model(subject.experiment)
    programs, _ = _search(subject, auto_attack_stages(threat_model)[0], threat_model, until_success=True)
    images, _, keys, *_ = _batch(subject)
    return _of_one_process(subject, programs.verify_program((images, images, keys)))


PROGRAMS: Mapping[str, Callable[[Subject], Compiled]] = {
    "train_base": _train_base,
    "train_fixer": _train_fixer,
    "attack": _attack,
    "stage": _stage,
    "verify": _verify,
}
"""Programs by name."""


def _variables(run: Run, experiment: Experiment) -> Variables:
    """Shapes and dtypes of the variables of a run."""
    return jax.eval_shape(lambda: blocks.init(run.model, jax.random.key(0), experiment.facts.image_shape))


def _threat_model(experiment: Experiment) -> ThreatModel:
    """That of the first attack of the evaluation in linf or l2."""
    found = next((attack for attack in experiment.evaluation.attacks if attack.is_examinable), None)
    if found is None:
        raise UserError(
            "the config evaluates no attack in linf or l2 with an epsilon, whose threat model could be used"
        )
    return found.threat_model


def _search(
    subject: Subject, stage: Stage, threat_model: ThreatModel, *, until_success: bool
) -> tuple[Programs, Search]:
    """The programs of a run of the attack, as ``run_attack`` makes them, and its first round."""
    experiment, devices = subject.experiment, subject.target.of_one_process
    runs = {run.name: run for run in experiment.runs}
    if (subject.run or experiment.runs[0].name) not in runs:
        raise UserError(f"--run: unknown run {subject.run!r}; known are {', '.join(runs)}")
    run = runs[subject.run or experiment.runs[0].name]
    variables = _variables(run, experiment)
    bind = functools.partial(blocks.logits_fn, run.model)
    attacked = ScoredModel(run.name, NO_DEFENSE, bind, variables, hash="").attacked
    search_fn = in_precision(jnp.dtype(subject.search_dtype), attacked) if subject.search_dtype else None
    images = jax.ShapeDtypeStruct((subject.batch_size, *experiment.facts.image_shape), np.float32)
    programs = make_programs(
        (stage,), threat_model, attacked, search_fn, variables, images, subject.batch_size, devices
    )
    return programs, Search(stage, 0, until_success, False)


def _batch(subject: Subject) -> tuple[PyTree, ...]:
    """Images, labels, keys, clean logits, and which lanes are vacant."""
    facts, size = subject.experiment.facts, subject.batch_size
    shapes = ((*facts.image_shape,), np.float32), ((), np.int32), ((2,), np.uint32), ((facts.num_classes,), np.float32)
    arrays = [jax.ShapeDtypeStruct((size, *shape), dtype) for shape, dtype in shapes]
    return *arrays, jax.ShapeDtypeStruct((size,), np.bool_)


def _of_one_process(subject: Subject, program: Program) -> Compiled:
    count = len(subject.target.of_one_process)
    return Compiled(program.compiled, count, subject.batch_size // count, _largest(program.variables))


def _largest(variables: PyTree) -> int:
    return max(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
