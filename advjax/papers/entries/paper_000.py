"""Intelligent mixup (000): Tables 2 to 4 and Figure 2."""

import itertools
from collections.abc import Mapping
from typing import Any

from advjax.papers.published import unpublished
from advjax.papers.recipe import TINY, Entry, FigurePlan, Part, Scale

_SMALL = Scale(share=0.1, epochs=1 / 3, num_examples=1000, num_auto_attack=200)
# Not a share of the images: noise is measured on images that were trained on.
_FEWER = {"data.train_split": "train[:10000]", "data.test_split": "train[:10000]"}
_NOISE_SMALL = Scale(changes={"run.*.epochs": 10, **_FEWER}, num_examples=2000, num_auto_attack=0)
_SETTINGS = (
    'Of C&W and DeepFool the paper says "standard settings": C&W is that of the Adversarial Robustness Toolbox, '
    "DeepFool has the 50 steps and the overshoot of 0.02 of its authors. The steps of the others are 2.5 epsilon "
    "divided by their number."
)
_NOISE_FULL = Scale(num_auto_attack=0)
_NOISE = "papers/intelligent_mixup/noise"
_TINY_IMAGES = TINY._replace(share=0.1, changes={**TINY.changes, "data.image_size": 32})
_ABLATIONS = {"noise_only": "noisy copies with true labels (ours)", "plain_mixup": "mixup with other images (ours)"}
"""Run -> how it is trained."""
_LEVELS = ("01", "05", "08")
_DEVIATION = ",deviation"
_NOISES = {
    f"gaussian_noise:GN{level}{name}": f"gn{level}_{reading}"
    for (reading, name), level in itertools.product({"variance": "", "std": _DEVIATION}.items(), _LEVELS)
}
"""Noise in the figures -> ours: levels are read as variances, unless they are called deviations."""


def _noise(data: str, networks: Mapping[str, str], known: tuple[str, ...]) -> Part:
    """Networks under noise of every level in both readings.

    Args:
      data: of the config.
      networks: run -> name of the network.
      known: noises with published numbers for all networks.
    """
    rows = []
    for (run, name), (noise, ours) in itertools.product(networks.items(), _NOISES.items()):
        if noise not in known:
            shown = unpublished("000", name, f"{data}/train", "standard", noise)
            rows.append({"unpublished": shown, "run": run, "our_attack": ours})
    return Part(f"noise_{data}", _NOISE, data, unpublished=tuple(rows))


def _mixup(config: str, model: str, data: str, budget: str, **changes: Any) -> Part:
    """Networks with intelligent mixup, and two that the paper does not have.

    One learns the true labels of the noisy copies, the other mixes images with other images, for as many steps.

    Args:
      config: that makes it.
      model: name of the network in the table.
      data: name of the data set in the table.
      budget: of the bounded attacks, as the table names it.
      **changes: of the evaluation.
    """
    attacks = {"none": "clean", f"FGSM:{budget}": "fgsm", f"IFGSM40:{budget}": "bim_40", f"PGD100:{budget}": "pgd_100"}
    attacks |= {"CW_l2": "carlini_wagner_l2", "DeepFool": "deepfool"}
    rows = []
    for run, (attack, ours) in itertools.product(_ABLATIONS, attacks.items()):
        shown = unpublished("000", model, f"{data}/test", _ABLATIONS[run], attack)
        made = {} if attack == "none" else {"made_on": "base"}
        rows.append({"unpublished": shown, "run": run, "our_attack": ours, **made})
    changed = {f"evaluation.{key}": value for key, value in changes.items()}
    return Part(f"intelligent_mixup_{data}", config, changes=changed, unpublished=tuple(rows))


def _noise_figure(number: str, networks: Mapping[str, str] | None = None) -> FigurePlan:
    variances = [noise for noise in _NOISES if not noise.endswith(_DEVIATION)]
    # The text does not name the worst noise, which is that of the largest variance.
    columns = ("none", *variances, "gaussian_noise:worst", *(noise for noise in _NOISES if noise not in variances))
    caption = f"Accuracy on training images with noise of a variance or a standard deviation ({number})"
    return FigurePlan("points", caption, columns=columns, networks=networks or {})


ENTRIES = (
    Entry(
        "000_table2",
        "Gaussian noise on training images of CIFAR-10",
        ("000_table2",),
        (
            _noise(
                "cifar10",
                {"vgg": "VGG", "resnet": "ResNet", "custom": "Custom"},
                tuple(f"gaussian_noise:GN{level}" for level in _LEVELS),
            ),
        ),
        {
            "full": _NOISE_FULL,
            # The largest network takes most of the time; the two others have 8 of the 12 cells.
            "custom": _NOISE_FULL._replace(
                changes={"runs": ["resnet", "custom"], "evaluation.made_on": "resnet"}, width=1.0
            ),
            "small": _NOISE_SMALL._replace(width=0.5),
            "tiny": TINY,
        },
        {"full": 20.0, "custom": 4.5, "small": 1.0},
        _noise_figure("Table 2"),
        note="Levels that the paper calls deviations are read as variances, which alone fit its numbers.",
    ),
    Entry(
        "000_figure2",
        "Gaussian noise on training images of Fashion-MNIST",
        ("000_figure2",),
        (_noise("fashion_mnist", {"custom1": "custom1", "custom2": "custom2"}, ()),),
        {"full": _NOISE_FULL, "small": _NOISE_SMALL, "tiny": TINY},
        {"full": 1.2, "small": 0.2},
        _noise_figure("Figure 2", {"custom1": "custom1, standard", "custom2": "custom2, standard"}),
        note="The text gives few of the numbers of the figure, and does not say which network they are of.",
    ),
    Entry(
        "000_figure2_imagenette",
        "Gaussian noise on training images of Imagenette",
        ("000_figure2",),
        (_noise("imagenette", {"vgg": "VGG16"}, ("gaussian_noise:GN08",)),),
        {
            "full": _NOISE_FULL,
            # The images of a folder may be sorted by class, so none are left out.
            "small": _NOISE_SMALL._replace(width=0.125, changes={"run.*.epochs": 10, "data.image_size": 64}),
            "tiny": _TINY_IMAGES,
        },
        {"small": 1.2},
        _noise_figure("Figure 2"),
        note="The images come from a folder: --folder=imagenette.",
    ),
    Entry(
        "000_table3",
        "Intelligent mixup of a VGG16 on CIFAR-10",
        ("000_table3",),
        (_mixup("cifar_intelligent_mixup", "VGG16", "cifar10", "eps0.03", num_examples=2000),),
        {"full": Scale(), "small": _SMALL._replace(width=0.25), "tiny": TINY},
        {"small": 2.0},
        FigurePlan("points", "Attacks crafted on the base network (Table 3)"),
        note=_SETTINGS,
    ),
    Entry(
        "000_table4",
        "Intelligent mixup of a small network on Fashion-MNIST",
        ("000_table4",),
        (_mixup("papers/intelligent_mixup/fashion_mnist", "custom2", "fashion_mnist", "eps0.3"),),
        {"full": Scale(), "small": _SMALL, "tiny": TINY},
        {"full": 3.4, "small": 0.3},
        FigurePlan("points", "Attacks crafted on the base network (Table 4)"),
        note=_SETTINGS,
    ),
)
