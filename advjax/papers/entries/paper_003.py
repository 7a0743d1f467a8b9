"""Fixers (003): Table 1, and Figures 3 to 7, of which the paper prints no numbers."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from advjax.papers.published import Published
from advjax.papers.recipe import TINY, Entry, FigurePlan, Lead, Part, Scale

_ATTACKS = {
    "none": "clean",
    "AutoPGD:8/255": "art_auto_pgd",
    "AutoPGD:16/255": "art_auto_pgd_16",
    "CW_linf:8/255": "carlini_wagner",
    "FGSM:8/255": "fgsm",
    "PGD:8/255": "pgd_50",
}
"""Attack in the figures -> ours."""
_NETWORKS = {
    "base": ("ResNet9:base", "base: full train"),
    "fx-a": ("ResNet9+fx-a", "10% of train, AutoPGD"),
    "fx-b": ("ResNet9+fx-b", "10% of train, AutoPGD"),
    "adv train": ("ResNet9:adv train", "10% of train, AutoPGD"),
    "denoise": ("ResNet9+denoise", "10% of train, AutoPGD"),
    "drn": ("ResNet9+drn", "10% of train, clean only"),
}
"""Method -> the network and its training in Table 1."""
_IN_TABLE_1 = ("none", "AutoPGD:8/255", "FGSM:8/255")
_EPOCHS = {1.0: 30, 0.1: 60, 0.01: 200}
"""Share of the training images -> epochs of what is trained after the base."""
_VALIDATE_EVERY = {1.0: 5, 0.1: 5, 0.01: 25}
"""Share of the training images -> epochs between two validations, which attack more images than an epoch does."""
_LEADS = {0.1: 7.0, 0.01: 18.0}
"""Share of the training images -> about how many points fx-a leads adversarial training by on clean images (text)."""
_CHEAPER = {
    "run.drn.model.num_copies": 10,
    "evaluation.defenses.*.num_samples": 4,
    "evaluation.defenses.*.num_votes": 1,
}
_SMALL = Scale(
    width=1 / 8,
    epochs=1 / 3,
    changes=_CHEAPER,
    num_examples=1000,
    num_stochastic=100,
    num_auto_attack=256,
)
_MINI = _SMALL._replace(epochs=1 / 8, num_examples=500, num_stochastic=50, num_auto_attack=128)
_SCALES: Mapping[str, Scale] = {
    "full": Scale(num_stochastic=1000),
    "quarter": _SMALL._replace(width=1 / 4),
    "small": _SMALL,
    "mini": _MINI,
    # Of a share of 1%, a share would leave classes without an image.
    "tiny": TINY._replace(changes={**TINY.changes, "run.*.train_fraction": 0.01}),
}


def _rows(run: str, label: str, images: str, training: str, defense: str = "none") -> tuple[dict[str, Any], ...]:
    """A network under the attacks of the figures, which have no published numbers."""

    def rows() -> Iterator[dict[str, Any]]:
        own = {"adaptive": True, "labels": "predicted"} if run == "base" else {"made_on": "base"}
        for attack, ours in _ATTACKS.items():
            shown = Published("003", "", label, images, training, attack, "accuracy", math.nan, None, None, "", "")
            attacked = {} if ours == "clean" else {**own, "protocol": "faithful"}
            yield {"unpublished": shown, "run": run, "our_attack": ours, "defense": defense, **attacked}

    return tuple(rows())


def _part(name: str, config: str, argument: str, runs: tuple[str, ...], changes: Mapping[str, Any]) -> Part:
    return Part(name, config, argument, {**({"runs": list(runs)} if runs else {}), **changes})


def _figure_4() -> tuple[Part, ...]:
    """The parts of Table 1, with the attacks that only Figure 4 has."""
    base = _beyond_table_1("base", "base")
    parts = []
    for name, (part, run, _, defense) in _MAIN.items():
        parts.append(part._replace(unpublished=(*base, *_beyond_table_1(name, run, defense))))
        base = ()
    return tuple(parts)


def _beyond_table_1(name: str, run: str, defense: str = "none") -> tuple[dict[str, Any], ...]:
    model, training = _NETWORKS[name]
    rows = _rows(run, model, "cifar10/test", training, defense)
    # Of the base under C&W, the text has a number.
    known = (*_IN_TABLE_1, *(("CW_linf:8/255",) if name == "base" else ()))
    return tuple(row for row in rows if row["unpublished"].attack not in known)


def _trained(run: str, share: float) -> dict[str, Any]:
    """The changes of a run that is trained on a share of the images."""
    changes = {"train_fraction": share, "epochs": _EPOCHS[share], "validate_every_epochs": _VALIDATE_EVERY[share]}
    return {f"run.{run}.{key}": value for key, value in changes.items()}


def _methods(share: float, attack: str = "auto_pgd") -> dict[str, tuple[Part, str, str, str]]:
    """Method -> part, its run, the name of its network, its defense: with a share of the data and a training attack."""

    suffix = f"{share:g}_{attack}"
    no_distillation = {"run.fixer.objective.distillation": 0.0}
    baselines = ("base", "transfer")
    found = {
        "fx-a": (_part(f"fx_a_{suffix}", "cifar_fixer", attack, (), _trained("fixer", share)), "fixer", "none"),
        "fx-b": (
            _part(f"fx_b_{suffix}", "cifar_fixer", attack, (), {**_trained("fixer", share), **no_distillation}),
            "fixer",
            "none",
        ),
        "adv train": (
            _part(f"transfer_{suffix}", "cifar_fixer_baselines", attack, baselines, _trained("transfer", share)),
            "transfer",
            "none",
        ),
        "denoise": (
            _part(f"denoise_{suffix}", "cifar_denoising", attack, (), _trained("denoise", share)),
            "denoise",
            "none",
        ),
        # It is trained on clean images, for as many epochs whatever their number.
        "drn": (
            _part(f"drn_{share:g}", "cifar_distribution_regression", "", (), {"run.drn.train_fraction": share}),
            "drn",
            "copies",
        ),
    }
    return {name: (part, run, f"ResNet9: {name}", defense) for name, (part, run, defense) in found.items()}


def _figure_parts(panels: Mapping[str, dict[str, tuple[Part, str, str, str]]]) -> tuple[Part, ...]:
    """The parts of a figure with a panel for each group of methods."""
    parts = []
    for images, methods in panels.items():
        base = _rows("base", "ResNet9: base", images, "full train")
        for number, (part, run, label, defense) in enumerate(methods.values()):
            specs = _rows(run, label, images, "", defense)
            parts.append(part._replace(specs=(*base, *specs) if not number else specs))
    return tuple(parts)


def _panel(share: float) -> str:
    """The panel of Figure 5 for a share of the training images."""
    return f"cifar10/test, {100 * share:g}% of train"


def _lead(share: float) -> Lead:
    return Lead(_panel(share), "none", "ResNet9: fx-a", "ResNet9: adv train", _LEADS[share])


def _ablation() -> Iterator[Part]:
    """Figure 3: activation, weight of the correction, weight of the distillation."""
    base = _rows("base", "base", "cifar10/test", "full train")
    for activation, delta, distillation in itertools.product(("identity", "tanh"), (1.0, 0.1), (1.0, 0.0)):
        name = f"{activation}, delta {delta:g}, lambda {distillation:g}"
        changes = {
            "run.fixer.model.activation": activation,
            "run.fixer.model.delta": delta,
            "run.fixer.objective.distillation": distillation,
        }
        specs = (*base, *_rows("fixer", name, "cifar10/test", ""))
        base = ()
        yield Part(f"ablation_{activation}_{delta:g}_{distillation:g}", "cifar_fixer", changes=changes, specs=specs)


def _hist() -> Iterator[Part]:
    """Figure 7: fixers with and without distillation, and adversarial training, on three shares of the images."""
    variants = {
        "fx-a": ("fixer", "fixer", {}),
        "fx-b": ("fixer", "fixer", {"run.fixer.objective.distillation": 0.0}),
        "adv train": ("transfer", "transfer", {}),
    }
    for share in _EPOCHS:
        images = f"stand-in for HIST, {100 * share:g}% of train"
        for number, (name, (method, run, changes)) in enumerate(variants.items()):
            base = () if number else _rows("base", "ResNet9: base", images, "full train")
            specs = (*base, *_rows(run, f"ResNet9: {name}", images, ""))
            part = f"hist_{name.replace(' ', '_')}_{share:g}"
            yield Part(part, "hist_fixer", method, {**_trained(run, share), **changes}, specs)


def _base_of_the_text() -> Part:
    """The base under C&W, of which the text says that about 6% are left."""
    part, _, _, _ = _MAIN["fx-a"]
    found = {"table": "003_text", "dataset": "cifar10/test", "attack": "CW_linf:8/255", "run": "base"}
    return part._replace(specs=({**found, "our_attack": "carlini_wagner", "adaptive": True, "labels": "predicted"},))


def _honest() -> Part:
    """What the paper does not train: on attacks that see what is trained."""
    runs = ("base", "adversarial", "honest_fixer")
    part = _part("honest", "cifar_fixer_baselines", "auto_pgd", runs, {})
    own = _rows("adversarial", "ResNet9: adv train on itself (ours)", "cifar10/test", "10% of train")
    honest = _rows("honest_fixer", "ResNet9+honest fixer (ours)", "cifar10/test", "10% of train")
    return part._replace(specs=(*own, *honest))


_MAIN = _methods(0.1)


def _hist_scale(image_size: int, hole: int) -> Scale:
    """Patches of fewer pixels than 128, with augmentation in proportion."""
    changes = {
        "data.image_size": image_size,
        "run.*.augmentation.pad_crop.padding": image_size // 8,
        "run.*.augmentation.coarse_dropout.size": hole,
        "run.*.batch_size": 32,
    }
    return Scale(width=1 / 8, epochs=1 / 3, changes=changes, num_examples=500, num_auto_attack=200)


ENTRIES = (
    Entry(
        "003_table1",
        "Fixers and their rivals, trained on 10% of CIFAR-10, attacked through the base network",
        ("003_table1", "003_text"),
        (*_figure_4(), _base_of_the_text(), _honest()),
        _SCALES,
        {"quarter": 40.0, "small": 11.0, "mini": 4.5},
        # The table and the text have two names for the base.
        FigurePlan(
            "points",
            "Attacks crafted on the base network (Figure 4)",
            columns=tuple(_ATTACKS),
            networks={"base": "ResNet9:base, full train"},
        ),
        note="fx-b is not defined in the paper: read as fx-a without distillation. Two networks are ours: trained "
        "against attacks on themselves, on the same images.",
    ),
    Entry(
        "003_figure3",
        "Eight fixers: activation, weight of the correction, weight of the distillation",
        (),
        tuple(_ablation()),
        {
            **_SCALES,
            # The fixers' images and epochs of Figure 5 at 1%, as many of them as at "mini".
            "one_percent": _MINI._replace(
                changes={**_CHEAPER, **_trained("fixer", 0.01), "run.fixer.epochs": round(_EPOCHS[0.01] / 8)}
            ),
        },
        {"small": 18.0, "mini": 8.0, "one_percent": 5.0},
        FigurePlan("points", "Ablation of the fixers; the dashed line is the base (Figure 3)", reference="base"),
        note="The paper prints no numbers of this figure.",
    ),
    Entry(
        "003_figure5",
        "Fixers and their rivals on 100%, 10% and 1% of the training images",
        (),
        _figure_parts({_panel(share): _methods(share) for share in _EPOCHS}),
        _SCALES,
        {"mini": 20.0},
        FigurePlan("points", "Attacks crafted on the base network (Figure 5)"),
        note="The paper prints no numbers of this figure but the lead of fx-a over adversarial training on clean "
        "images.",
        leads=tuple(_lead(share) for share in _LEADS),
    ),
    Entry(
        "003_figure5_one_percent",
        "Fixers and their rivals on 1% of the training images",
        (),
        _figure_parts({_panel(0.01): _methods(0.01)}),
        _SCALES,
        {"small": 6.0, "mini": 3.5},
        FigurePlan("points", "Attacks crafted on the base network (Figure 5, right)"),
        note="Part of Figure 5, which alone can be afforded on two cores.",
        leads=(_lead(0.01),),
    ),
    Entry(
        "003_figure6",
        "Fixers and their rivals, trained against AutoPGD, FGSM and C&W",
        (),
        _figure_parts(
            {
                f"cifar10/test, trained against {name}": _methods(0.1, attack)
                for name, attack in {"AutoPGD": "auto_pgd", "FGSM": "fgsm", "C&W": "carlini_wagner"}.items()
            }
        ),
        _SCALES,
        {"mini": 12.0},
        FigurePlan("points", "Attacks crafted on the base network (Figure 6)"),
        note="The paper prints no numbers of this figure but the base's 6% under C&W.",
    ),
    Entry(
        "003_figure7",
        "Fixers and adversarial training on a stand-in for HIST",
        (),
        tuple(_hist()),
        {
            "full": Scale(),
            "small": _hist_scale(64, hole=5),
            "mini": _hist_scale(32, hole=2),
            "tiny": TINY._replace(changes={**TINY.changes, "data.image_size": 32, "run.*.train_fraction": 0.1}),
        },
        {"small": 4.0, "mini": 1.0},
        FigurePlan("points", "Attacks crafted on the base network (Figure 7)"),
        note="The paper's patches are not public in this form. These are other patches, of other patients, with other "
        "classes, from --folder: only the shape of the figure can be compared.",
    ),
)
