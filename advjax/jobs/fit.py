"""``advjax.fit_fixers`` and ``advjax.fine_tune``: training that starts from a network trained elsewhere."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from advjax import data
from advjax.attacks import ThreatModel, input_checks
from advjax.attacks.threat_model import require
from advjax.data import Dataset
from advjax.data.dataset import check, fingerprint
from advjax.evaluation.scored_model import variables_hash
from advjax.experiment import defaults
from advjax.experiment.build_model import as_variables
from advjax.experiment.from_config import complete, from_config
from advjax.experiment.spec import Data, Division, GivenNetwork
from advjax.jobs.dry_run import check_runs
from advjax.jobs.train import train_runs
from advjax.jobs.workdir import Notify, claim, locked
from advjax.models import blocks
from advjax.models.blocks import Classifier, Patched
from advjax.runtime.devices import Devices, mesh
from advjax.runtime.metrics import OnMetrics
from advjax.types import LogitsFn, PyTree, UserError, Variables

__all__ = ["Fitted", "fine_tune", "fit_fixers"]

_BASE = "base"


class Fitted:
    """A network after training.

    Attributes:
      model: the linen module.
      variables: its variables.
    """

    def __init__(self, model: nn.Module, variables: Variables) -> None:
        self.model, self.variables = model, variables

    @property
    def logits_fn(self) -> LogitsFn:
        """``float images [n, h, w, c] in [0, 1] -> logits [n, classes]``, in inference mode; differentiable."""
        return blocks.logits_fn(self.model, self.variables)


def fit_fixers(
    network: Classifier | Patched,
    variables: PyTree,
    images: np.ndarray,
    labels: np.ndarray,
    threat_model: ThreatModel,
    *,
    after: Sequence[str],
    workdir: str | os.PathLike[str],
    made_on: str = "self",
    seed: int = 0,
    num_validation: int = 0,
    notify: Notify = print,
    on_metrics: OnMetrics | None = None,
    **run: Any,
) -> Fitted:
    """Inserts fixers into a trained network and trains them; the network's own weights stay as they are, bit for bit.

    At first the patched network computes what the network does. The fixers learn from clean and from adversarial images
    (AutoPGD with 5 steps) while the features behind them are held near those of the network (``objective``). Repeating
    an interrupted call resumes it, and a finished one returns what it has trained.

    With ``made_on="self"``, the attacks of training see the fixers. With "base", they see the network alone, as in the
    paper: such fixers withstand attacks on the network, but not attacks on themselves, see "Fixers".

    Example::

        network, variables = adapter.from_module(Net(), ("conv1", "conv2", "head"), trained_variables)
        fitted = advjax.fit_fixers(
            network, variables, images, labels, attacks.linf(8 / 255), after=("conv1", "conv2"), workdir="fixers"
        )
        models = {"network": blocks.logits_fn(network, variables), "with fixers": fitted.logits_fn}
        advjax.evaluate(models, test_images, test_labels, attacks.linf(8 / 255), workdir="report")

    Args:
      network: cut into blocks: a model of advjax, or one of ``adapter.from_module``, ``in_blocks`` or
        ``from_functions``.
      variables: of the network: those of the adapter or of ``load_torch``, or linen's ``{"params": ..., ...}``.
      images: float32 [n, h, w, c] in [0, 1], or uint8.
      labels: int [n].
      threat_model: linf or l2 with a finite epsilon, of the attacks of training.
      after: names of the blocks to insert a fixer after; their outputs should be rectified.
      workdir: folder of checkpoints and metrics.
      made_on: which network the attacks of training are made on: "self", the patched one, or "base", the given one.
      seed: of all randomness.
      num_validation: images held out to choose the best checkpoint by; 0 for the last one.
      notify: receives what people should know.
      on_metrics: is called with ``(run, step, kind, values)`` for every record of the metrics.
      **run: other keys of a run in a config, such as ``epochs``, ``batch_size``, ``optimizer`` or ``augmentation``.

    Returns:
      The patched network.

    Raises:
      ValueError: something makes no sense, or ``workdir`` belongs to other training.
    """
    _check_network(network)
    if made_on not in ("self", _BASE):
        raise UserError(f"made_on must be 'self' or 'base', got {made_on!r}")
    model = {"name": "fixers", "base": _BASE, "after": tuple(after), "zero_last": True, "reduction": 1}
    objective = {"name": "fixers", "loss": {"name": "cross_entropy"}, "distillation": 0.3, "target": "natural"}
    spec = {
        "model": model,
        "epochs": 20,
        "objective": {**objective, "tensor": "output", "norm": "rms"},
        "attack": {**_attack(threat_model), "made_on": made_on},
        "optimizer": {"schedule": {"peak_learning_rate": 0.05}},
        "trainable": "^patches_",
        **run,
    }
    options = _Options(os.fspath(workdir), seed, num_validation, notify, on_metrics)
    return _fit("fixers", spec, (network, variables), images, labels, options)


def fine_tune(
    network: Classifier | Patched,
    variables: PyTree,
    images: np.ndarray,
    labels: np.ndarray,
    threat_model: ThreatModel,
    *,
    workdir: str | os.PathLike[str],
    seed: int = 0,
    num_validation: int = 0,
    notify: Notify = print,
    on_metrics: OnMetrics | None = None,
    **run: Any,
) -> Fitted:
    """Adversarial training of all weights, from those of a trained network; see ``fit_fixers`` for the arguments.

    By default, the network is trained on AutoPGD examples of itself for 10 epochs, with a peak learning rate of 0.01.
    ``run`` may name another method, with its loss:
    ``objective={"name": "trades", "loss": {"name": "cross_entropy"}, "beta": 6.0}``.
    """
    _check_network(network)
    spec = {
        "model": {"name": "given"},
        "start": _BASE,
        "epochs": 10,
        "attack": _attack(threat_model),
        "optimizer": {"schedule": {"peak_learning_rate": 0.01}},
        **run,
    }
    options = _Options(os.fspath(workdir), seed, num_validation, notify, on_metrics)
    return _fit("fine_tuned", spec, (network, variables), images, labels, options)


def _check_network(network: Any) -> None:
    if not isinstance(network, Classifier | Patched):
        raise UserError(
            f"training needs a network that is cut into blocks, got {type(network).__name__}: "
            "adapter.from_module(module, names_of_submodules, variables) does this for a linen module"
        )


def _attack(threat_model: ThreatModel) -> dict[str, Any]:
    require(threat_model, "training", "linf", "l2", finite_epsilon=True)
    epsilon = float(threat_model.epsilon)
    return {"name": "auto_pgd", "norm": threat_model.norm.name, "epsilon": epsilon, "num_steps": 5, "returns": "best"}


class _Options(NamedTuple):
    """What is the same for every kind of training."""

    workdir: str
    seed: int
    num_validation: int
    notify: Notify
    on_metrics: OnMetrics | None


def _fit(
    name: str, spec: Mapping[str, Any], start: tuple[nn.Module, PyTree], images: Any, labels: Any, options: _Options
) -> Fitted:
    """Trains the run ``name``, which starts from or patches the given network."""
    network, trained = start[0], as_variables(start[1], "variables")
    loaded = _data(images, labels, network, trained, options)
    selection = {} if options.num_validation else {"select": "last"}
    runs = {
        _BASE: defaults.run(model={"name": "given", "hash": variables_hash(trained)}),
        name: defaults.run(**{**selection, **spec}),
    }
    described = {"name": fingerprint(loaded.test), "num_validation": options.num_validation}
    config = complete(defaults.experiment(seed=options.seed, data=described, runs=(_BASE, name), run=runs))
    given: dict[str, GivenNetwork] = {_BASE: (network, trained)}
    if spec["model"]["name"] == "given":
        # The same network with the weights that training starts from: it is not taken, but trained.
        given[name] = (network, None)
    experiment = from_config(config, given=given, data=loaded)._replace(on_metrics=options.on_metrics)
    devices = Devices(mesh(), config["mapping"])
    check_runs(experiment, devices)
    with locked(options.workdir):
        for run in experiment.runs:
            claim(run, options.workdir)
        done = train_runs(experiment, options.workdir, devices, options.notify)
    return Fitted(experiment.runs[-1].model, done[name])


def _data(images: Any, labels: Any, network: nn.Module, trained: Variables, options: _Options) -> Data:
    """The images as training and validation split."""
    images = np.asarray(input_checks.as_array("images", images))
    labels = np.asarray(input_checks.as_array("labels", labels))
    if images.dtype != np.uint8:
        input_checks.check_inputs(images, labels, (0.0, 1.0))
        images = images.astype(np.float32)
    if images.ndim != 4:
        raise UserError(f"images must have shape [n, height, width, channels], got {images.shape}")
    example = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
    num_classes = jax.eval_shape(lambda images: blocks.apply(network, trained, images), example).shape[-1]
    index, names = np.arange(len(images), dtype=np.int32), tuple(map(str, range(num_classes)))
    whole = check(Dataset("images", images, labels.astype(np.int32), index, names))
    known = {"num_validation": options.num_validation, "seed": options.seed, "name": whole.name}
    train, validation = data.train_validation(whole.labels, **known)
    parts = {"train": train, "validation": validation}
    return Data(whole.take(train), whole.take(validation), whole, Division(whole.name, whole.labels, parts))
