"""The registry: the names that a config may use, and how a name with its arguments becomes an object.

Strings become functions here; an unknown name is an error that lists the known ones.  Functions that belong to a single
paper are not registered: "configs.MODULE:FUNCTION" refers to one beside the configs, and "package.module:function" to
the user's own, see ``advjax.runtime.named_function``.
"""

import inspect
import math
import types
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from advjax import attacks, defenses
from advjax.data import Dataset, Source, read_all
from advjax.evaluation.few_images import ranked
from advjax.experiment.spec import DefenseRecipe
from advjax.models import (
    conv_small,
    custom_cnn,
    deepmind_resnet,
    denoise,
    distribution_regression,
    fixer,
    keras_resnet,
    lenet,
    preact_resnet,
    resnet,
    resnet9,
    vgg,
    wide_resnet,
)
from advjax.models.blocks import init, is_stochastic, logits_fn, stochastic_logits_fn
from advjax.runtime.named_function import named_function
from advjax.training import augment, averaging, losses, mart, mixing, objectives, optimizers, trades, transforms
from advjax.types import LogitsFn, PyTree, StochasticLogitsFn, UserError


def _exported(result: Any) -> dict[str, Callable[..., Any]]:
    """The functions of ``advjax.attacks`` from a threat model, and other arguments, to ``result``."""
    found = {}
    for name in attacks.__all__:
        function = getattr(attacks, name)
        if inspect.isfunction(function):
            signature = inspect.signature(function)
            if signature.return_annotation == result and "threat_model" in signature.parameters:
                found[name] = function
    return found


ATTACKS = _exported(attacks.Attack)
"""Config names follow the exports: a new attack in ``advjax.attacks`` is known here."""
ATTACK_ENSEMBLES = {
    name.removesuffix("_stages"): function for name, function in _exported(tuple[attacks.Stage, ...]).items()
}
NOISES = {"gaussian_noise": attacks.gaussian_noise}
"""Evaluated beside the attacks, but drawn without looking at any model."""
TRAINING_ATTACKS = {"most_divergent": trades.most_divergent}
"""Attacks that maximize something other than a classification loss: for training alone."""
NORMS = {"linf": attacks.linf, "l2": attacks.l2, "l1": attacks.l1}
# An attack with an aim replaces these by the targeted version of the loss.
ATTACK_LOSSES = {"ce": "ce", "dlr": "dlr", "margin": attacks.margin}
LOSSES = {
    "cross_entropy": lambda: losses.cross_entropy,
    "focal": losses.focal,
    "bce_on_softmax": lambda: losses.bce_on_softmax,
    "boosted_cross_entropy": lambda: losses.boosted_cross_entropy,
}
AUGMENTATIONS = {
    "pad_crop": augment.pad_crop,
    "horizontal_flip": augment.horizontal_flip,
    "vertical_flip": augment.vertical_flip,
    "solarize": augment.solarize,
    "coarse_dropout": augment.coarse_dropout,
    "gaussian_noise": augment.gaussian_noise,
    "brightness": augment.brightness,
    "affine": augment.affine,
}
TRANSFORMS = {
    "soft_labels": transforms.soft_labels,
    "label_smoothing": transforms.label_smoothing,
    "mixup": mixing.mixup,
    "cutmix": mixing.cutmix,
    "partial_mix": mixing.partial_mix,
    "fixed_mix": mixing.fixed_mix,
    "noisy_twins": mixing.noisy_twins,
}
MODELS = {
    "lenet5": lenet.LeNet5,
    "net62k": lenet.Net62k,
    "conv_small": conv_small.ConvSmall,
    "preact_resnet18": preact_resnet.PreActResNet18,
    "resnet18": resnet.ResNet18,
    "resnet50": resnet.ResNet50,
    "resnet101": resnet.ResNet101,
    "vgg16": vgg.VGG16,
    "resnet20v1": keras_resnet.ResNet20v1,
    "custom1": custom_cnn.Custom1,
    "custom2": custom_cnn.Custom2,
    "custom_cifar": custom_cnn.CustomCifar,
    "resnet9": resnet9.ResNet9,
    "wide_resnet": wide_resnet.WideResNet,
    "dm_wide_resnet": deepmind_resnet.DMWideResNet,
    "dm_preact_resnet18": deepmind_resnet.DMPreActResNet18,
}
PATCHES = {
    "fixers": fixer.with_fixers,
    "denoising": denoise.with_denoising,
    "distribution_regression": distribution_regression.DistributionRegression,
}
"""Models that are put around the model of an earlier run, their "base"."""
OBJECTIVES = {
    "supervised": objectives.supervised,
    "fixers": objectives.fixers,
    "manifold_mixup": mixing.manifold_mixup,
    "trades": trades.trades,
    "mart": mart.mart,
}
PAIRING = ("trades", "mart", "fixers", "partial_mix")
"""Objectives and target transforms that need pairs of clean and adversarial images."""
SCHEDULES = {
    "one_cycle": optimizers.one_cycle,
    "cosine": optimizers.cosine,
    "step_decay": optimizers.step_decay,
    "constant": lambda learning_rate: learning_rate,
    # A constant rate; the reductions are made around the optimizer.
    "reduce_on_plateau": None,
}
OPTIMIZERS = {"sgd": optimizers.sgd, "adam": optimizers.adam, "adamw": optimizers.adamw}
AVERAGES = {"ema": averaging.ema, "swa": averaging.swa}


def _around_logits(wrap: Callable[[LogitsFn, PyTree], StochasticLogitsFn]) -> Callable[..., StochasticLogitsFn]:
    """A defense that needs nothing of the model but its logits."""
    return lambda model, variables, arrays: wrap(logits_fn(model, variables), arrays)


def _random_self_ensemble() -> DefenseRecipe:
    def check(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        shapes = jax.eval_shape(lambda: init(model, jax.random.key(0), image_shape))
        if not is_stochastic(model, shapes, image_shape):
            raise UserError(
                f"random_self_ensemble needs a model with noise layers, and this {type(model).__name__} has none: "
                "give its run's model noise, or use gaussian_smoothing"
            )

    return DefenseRecipe(lambda model, variables, arrays: stochastic_logits_fn(model, variables), check=check)


def _gaussian_smoothing(std: float) -> DefenseRecipe:
    return DefenseRecipe(_around_logits(lambda f, arrays: defenses.gaussian_smoothing(f, std)))


def _random_resize_pad(smallest: int = 26, largest: int = 31) -> DefenseRecipe:
    return DefenseRecipe(
        _around_logits(lambda f, arrays: defenses.random_resize_pad(f, smallest, largest)),
        check=lambda model, image_shape: distribution_regression.check_resizing(image_shape, smallest, largest),
    )


def _mixup_inference(
    mode: str = "other", num_mixes: int = 30, mix_weight: float = 0.5, pool_size: int = 1000
) -> DefenseRecipe:
    if pool_size < 1:
        raise UserError(f"mixup_inference: pool_size must be at least 1, got {pool_size}")

    def pool(train: Dataset | Source) -> PyTree:
        # As many images of each class, however the training images are sorted.
        per_class = max(1, pool_size // train.num_classes)
        order = ranked(train.labels, train.name, seed=0)
        of_class = [order[train.labels[order] == label][:per_class] for label in range(train.num_classes)]
        few = train.take(np.sort(np.concatenate(of_class)))
        few = few if isinstance(few, Dataset) else read_all(few)
        return defenses.make_pool(few.images, few.labels, train.num_classes)

    def wrap(f: LogitsFn, arrays: PyTree) -> StochasticLogitsFn:
        return defenses.mixup_inference(f, arrays, mode=mode, num_mixes=num_mixes, mix_weight=mix_weight)

    return DefenseRecipe(_around_logits(wrap), pool)


DEFENSES = {
    "random_self_ensemble": _random_self_ensemble,
    "mixup_inference": _mixup_inference,
    "random_resize_pad": _random_resize_pad,
    "gaussian_smoothing": _gaussian_smoothing,
}


def number(value: Any) -> Any:
    """Numbers as they are; strings such as "8/255" or "0.005" become floats."""
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value))
    except (ValueError, ZeroDivisionError, OverflowError):
        return float(value)


def build(table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any], where: str, *args: Any) -> Any:
    """``table[spec["name"]](*args, **rest of spec)``; every mistake is a UserError that says where."""
    spec = dict(spec)
    name = spec.pop("name", None)
    function = choose(table, name, where)
    parameters = inspect.signature(function).parameters
    variadic = [key for key, parameter in parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    known = [key for key in list(parameters)[len(args) :] if key not in variadic]
    if not variadic and (unknown := sorted(set(spec) - set(known))):
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    if missing := [key for key in known if parameters[key].default is parameters[key].empty and key not in spec]:
        raise UserError(f"{where}: {name} needs {', '.join(missing)}")
    arguments = {key: number(value) if _is_number(value) else value for key, value in spec.items()}
    for key, value in arguments.items():
        _check_argument(value, parameters[key].annotation if key in parameters else Any, f"{where}: {key}")
    try:
        with warnings.catch_warnings():
            # A config with such an epsilon is refused, by the dry run.
            warnings.filterwarnings("ignore", "epsilon .* allows every image")
            return function(*args, **arguments)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise UserError(f"{where}: {error}") from error


def _check_argument(value: Any, annotation: Any, where: str) -> None:
    """Refuses numbers that no argument can mean, and fractions or words where a whole number is annotated."""
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{where} must be a number, got nan")
    if annotation is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise UserError(f"{where} must be a whole number, got {value!r}")
    if annotation is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{where} must be a number, got {value!r}")
    if annotation is bool and not isinstance(value, bool | int):
        raise UserError(f"{where} must be True or False, got {value!r}")
    # Attacks take traced numbers as well, so their annotations are unions.
    allowed = annotation.__args__ if isinstance(annotation, types.UnionType) else ()
    if float in allowed and str not in allowed:
        is_missing = value is None and types.NoneType not in allowed
        if is_missing or isinstance(value, str | bool | list | Mapping):
            raise UserError(f"{where} must be a number, got {value!r}")


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values())


def required(spec: Mapping[str, Any], key: str, where: str) -> Any:
    """``spec[key]``; a UserError if it is missing or empty."""
    if not spec.get(key):
        raise UserError(f"{where}: {key} is missing")
    return spec[key]


def choose(table: Mapping[str, Any], name: Any, where: str) -> Any:
    """``table[name]``, or the function that "package.module:function" names; a UserError lists the known names."""
    if isinstance(name, str) and ":" in name:
        return named_function(name, where)
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{where}: unknown name {name!r}; known are {', '.join(table)}")
    return table[name]


def _is_number(value: Any) -> bool:
    try:
        number(value)
    except ValueError:
        return False
    return isinstance(value, str)
