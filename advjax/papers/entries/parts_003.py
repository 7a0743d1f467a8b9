"""The experiments of the fixer paper (003), which several of its tables and figures share."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from advjax.papers.published import unpublished
from advjax.papers.recipe import Lead, Part

ATTACKS = {
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
EPOCHS = {1.0: 30, 0.1: 60, 0.01: 200}
"""Share of the training images -> epochs of what is trained after the base."""
_VALIDATE_EVERY = {1.0: 5, 0.1: 5, 0.01: 25}
"""Share of the training images -> epochs between two validations, which attack more images than an epoch does."""
LEADS = {0.1: 7.0, 0.01: 18.0}
"""Share of the training images -> about how many points fx-a leads adversarial training by on clean images (text)."""


def _rows(run: str, label: str, images: str, training: str, defense: str = "none") -> tuple[dict[str, Any], ...]:
    """A network under the attacks of the figures, which have no published numbers."""

    def rows() -> Iterator[dict[str, Any]]:
        own = {"adaptive": True, "labels": "predicted"} if run == "base" else {"made_on": "base"}
        for attack, ours in ATTACKS.items():
            shown = unpublished("003", label, images, training, attack)
            attacked = {} if ours == "clean" else {**own, "protocol": "faithful"}
            yield {"unpublished": shown, "run": run, "our_attack": ours, "defense": defense, **attacked}

    return tuple(rows())


def _part(name: str, config: str, argument: str, runs: tuple[str, ...], changes: Mapping[str, Any]) -> Part:
    return Part(name, config, argument, {**({"runs": list(runs)} if runs else {}), **changes})


def figure_4() -> tuple[Part, ...]:
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


def trained(run: str, share: float) -> dict[str, Any]:
    """The changes of a run that is trained on a share of the images."""
    changes = {"train_fraction": share, "epochs": EPOCHS[share], "validate_every_epochs": _VALIDATE_EVERY[share]}
    return {f"run.{run}.{key}": value for key, value in changes.items()}


def methods(share: float, attack: str = "auto_pgd") -> dict[str, tuple[Part, str, str, str]]:
    """Method -> part, its run, the name of its network, its defense: with a share of the data and a training attack."""
    suffix = f"{share:g}_{attack}"
    no_distillation = {"run.fixer.objective.distillation": 0.0}
    baselines = ("base", "transfer")
    found = {
        "fx-a": (_part(f"fx_a_{suffix}", "cifar_fixer", attack, (), trained("fixer", share)), "fixer", "none"),
        "fx-b": (
            _part(f"fx_b_{suffix}", "cifar_fixer", attack, (), {**trained("fixer", share), **no_distillation}),
            "fixer",
            "none",
        ),
        "adv train": (
            _part(f"transfer_{suffix}", "cifar_fixer_baselines", attack, baselines, trained("transfer", share)),
            "transfer",
            "none",
        ),
        "denoise": (
            _part(f"denoise_{suffix}", "cifar_denoising", attack, (), trained("denoise", share)),
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


def figure_parts(panels: Mapping[str, dict[str, tuple[Part, str, str, str]]]) -> tuple[Part, ...]:
    """The parts of a figure with a panel for each group of methods."""
    parts = []
    for images, methods in panels.items():
        base = _rows("base", "ResNet9: base", images, "full train")
        for number, (part, run, label, defense) in enumerate(methods.values()):
            specs = _rows(run, label, images, "", defense)
            parts.append(part._replace(specs=(*base, *specs) if not number else specs))
    return tuple(parts)


def panel(share: float) -> str:
    """The panel of Figure 5 for a share of the training images."""
    return f"cifar10/test, {100 * share:g}% of train"


def lead(share: float) -> Lead:
    """That of fx-a, which the text names for a share of the training images."""
    return Lead(panel(share), "none", "ResNet9: fx-a", "ResNet9: adv train", LEADS[share])


def ablation() -> Iterator[Part]:
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


def hist() -> Iterator[Part]:
    """Figure 7: fixers with and without distillation, and adversarial training, on three shares of the images."""
    variants = {
        "fx-a": ("fixer", "fixer", {}),
        "fx-b": ("fixer", "fixer", {"run.fixer.objective.distillation": 0.0}),
        "adv train": ("transfer", "transfer", {}),
    }
    for share in EPOCHS:
        images = f"stand-in for HIST, {100 * share:g}% of train"
        for number, (name, (method, run, changes)) in enumerate(variants.items()):
            base = () if number else _rows("base", "ResNet9: base", images, "full train")
            specs = (*base, *_rows(run, f"ResNet9: {name}", images, ""))
            part = f"hist_{name.replace(' ', '_')}_{share:g}"
            yield Part(part, "hist_fixer", method, {**trained(run, share), **changes}, specs)


def base_of_the_text() -> Part:
    """The base under C&W, of which the text says that about 6% are left."""
    part, _, _, _ = _MAIN["fx-a"]
    found = {"table": "003_text", "dataset": "cifar10/test", "attack": "CW_linf:8/255", "run": "base"}
    return part._replace(specs=({**found, "our_attack": "carlini_wagner", "adaptive": True, "labels": "predicted"},))


def honest() -> Part:
    """What the paper does not train: on attacks that see what is trained."""
    runs = ("base", "adversarial", "honest_fixer")
    part = _part("honest", "cifar_fixer_baselines", "auto_pgd", runs, {})
    own = _rows("adversarial", "ResNet9: adv train on itself (ours)", "cifar10/test", "10% of train")
    honest = _rows("honest_fixer", "ResNet9+honest fixer (ours)", "cifar10/test", "10% of train")
    return part._replace(specs=(*own, *honest))


_MAIN = methods(0.1)
