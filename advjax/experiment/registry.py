"""The names that a config may use, and how a name with its arguments becomes an object.

Strings become functions here and nowhere else: a name that is missing from a table is an error that lists the table.
What belongs to one paper alone stays out of the tables: "configs.MODULE:FUNCTION" is a function beside the configs.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax

from advjax import attacks, defenses
from advjax.data import Dataset
from advjax.evaluation.scored_model import Deployment
from advjax.models import (
    custom_cnn,
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
from advjax.training import augment, averaging, losses, mart, mixing, objectives, optimizers, trades, transforms
from advjax.types import LogitsFn, PyTree, StochasticLogitsFn, UserError

ATTACKS = {
    "fgsm": attacks.fgsm,
    "one_step_target_class": attacks.one_step_target_class,
    "bim": attacks.bim,
    "pgd": attacks.pgd,
    "auto_pgd": attacks.auto_pgd,
    "auto_pgd_l1": attacks.auto_pgd_l1,
    "carlini_wagner_l2": attacks.carlini_wagner_l2,
    "carlini_wagner_l2_line_search": attacks.carlini_wagner_l2_line_search,
    "carlini_wagner_linf": attacks.carlini_wagner_linf,
    "carlini_wagner_linf_line_search": attacks.carlini_wagner_linf_line_search,
    "deepfool": attacks.deepfool,
    "fab": attacks.fab,
    "square": attacks.square,
}
STAGED_ATTACKS = {"auto_attack": attacks.auto_attack_stages, "quick_check": attacks.quick_check_stages}
NOISES = {"gaussian_noise": attacks.gaussian_noise}
"""Evaluated beside the attacks, but made without a look at any model."""
TRAINING_ATTACKS = {"most_divergent": trades.most_divergent}
"""Attacks that look for another thing than a wrong class: for training alone."""
NORMS = {"linf": attacks.linf, "l2": attacks.l2, "l1": attacks.l1}
# By name, an aimed attack takes the targeted version of the loss.
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
    "partial_mix": mixing.partial_mix,
    "fixed_mix": mixing.fixed_mix,
    "noisy_twins": mixing.noisy_twins,
}
MODELS = {
    "lenet5": lenet.LeNet5,
    "net62k": lenet.Net62k,
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
}
PATCHES = {
    "fixers": fixer.with_fixers,
    "denoising": denoise.with_denoising,
    "distribution_regression": distribution_regression.DistributionRegression,
}
"""Models around the model of an earlier run, their "base"."""
OBJECTIVES = {
    "supervised": objectives.supervised,
    "fixers": objectives.fixers,
    "manifold_mixup": mixing.manifold_mixup,
    "trades": trades.trades,
    "mart": mart.mart,
}
PAIRING = ("trades", "mart", "fixers", "partial_mix")
"""Objectives and transforms of targets that need the clean images beside the attacked ones."""
SCHEDULES = {
    "one_cycle": optimizers.one_cycle,
    "cosine": optimizers.cosine,
    "step_decay": optimizers.step_decay,
    "constant": lambda learning_rate: learning_rate,
    # A constant rate, and what is done around the optimizer.
    "reduce_on_plateau": None,
}
OPTIMIZERS = {"sgd": optimizers.sgd, "adam": optimizers.adam, "adamw": optimizers.adamw}
AVERAGES = {"ema": averaging.ema, "swa": averaging.swa}


def _no_arrays(train: Dataset) -> PyTree:
    return {}


def _around_logits(wrap: Callable[[LogitsFn, PyTree], StochasticLogitsFn]) -> Callable[[nn.Module], Callable]:
    """A defence that needs nothing of the model but its logits; variables are those of the model and of the defence."""
    return lambda model: lambda variables: wrap(logits_fn(model, variables[0]), variables[1])


def _random_self_ensemble() -> Deployment:
    def check(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        shapes = jax.eval_shape(lambda: init(model, jax.random.key(0), image_shape))
        if not is_stochastic(model, shapes, image_shape):
            raise UserError(
                f"random_self_ensemble asks a {type(model).__name__} with noise inside, but this one has none: "
                "give its run's model noise, or take gaussian_smoothing"
            )

    return Deployment(lambda model: lambda variables: stochastic_logits_fn(model, variables[0]), _no_arrays, check)


def _gaussian_smoothing(std: float) -> Deployment:
    return Deployment(_around_logits(lambda f, arrays: defenses.gaussian_smoothing(f, std)), _no_arrays)


def _random_resize_pad(smallest: int = 26, largest: int = 31) -> Deployment:
    return Deployment(
        _around_logits(lambda f, arrays: defenses.random_resize_pad(f, smallest, largest)),
        _no_arrays,
        lambda model, image_shape: distribution_regression.check_resizing(image_shape, smallest, largest),
    )


def _mixup_inference(
    mode: str = "other", num_mixes: int = 30, mix_weight: float = 0.5, pool_size: int = 1000
) -> Deployment:
    def pool(train: Dataset) -> PyTree:
        return defenses.make_pool(train.images[:pool_size], train.labels[:pool_size], train.num_classes)

    def wrap(f: LogitsFn, arrays: PyTree) -> StochasticLogitsFn:
        return defenses.mixup_inference(f, arrays, mode=mode, num_mixes=num_mixes, mix_weight=mix_weight)

    return Deployment(_around_logits(wrap), pool)


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
    except (ValueError, ZeroDivisionError):
        return float(value)


def build(table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any], where: str, *args: Any) -> Any:
    """``table[spec["name"]](*args, **the rest of spec)``, every mistake in it a UserError that says where."""
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
    try:
        return function(*args, **{key: number(value) if _is_number(value) else value for key, value in spec.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def required(spec: Mapping[str, Any], key: str, where: str) -> Any:
    """``spec[key]``; UserError where it is missing or empty."""
    if not spec.get(key):
        raise UserError(f"{where}: {key} is missing")
    return spec[key]


def choose(table: Mapping[str, Any], name: Any, where: str) -> Any:
    """``table[name]``, or what "configs.MODULE:FUNCTION" names; an unknown name is a UserError that lists the known."""
    if isinstance(name, str) and ":" in name:
        return _beside_configs(name, where)
    if name not in table:
        raise UserError(f"{where}: unknown name {name!r}; known are {', '.join(table)}")
    return table[name]


def _beside_configs(name: str, where: str) -> Callable[..., Any]:
    """A function that one paper needs and the library does not have.

    From the package ``configs`` alone: a config may come with a folder of results, and is not to call anything else.
    """
    module, _, function = name.partition(":")
    if not module.startswith("configs."):
        raise UserError(f"{where}: {name!r} is not in the package configs, the only one that functions are taken from")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{where}: {name!r} is no function")
    return found


def _is_number(value: Any) -> bool:
    try:
        number(value)
    except ValueError:
        return False
    return isinstance(value, str)
