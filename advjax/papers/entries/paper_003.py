"""Fixers (003): Table 1, and Figures 3 to 7, of which the paper prints no numbers."""

from collections.abc import Mapping

from advjax.papers.entries import parts_003 as parts
from advjax.papers.recipe import TINY, Entry, FigurePlan, Scale

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
        (*parts.figure_4(), parts.base_of_the_text(), parts.honest()),
        _SCALES,
        {"quarter": 40.0, "small": 11.0, "mini": 4.5},
        # The table and the text have two names for the base.
        FigurePlan(
            "points",
            "Attacks crafted on the base network (Figure 4)",
            columns=tuple(parts.ATTACKS),
            networks={"base": "ResNet9:base, full train"},
        ),
        note="fx-b is not defined in the paper: read as fx-a without distillation. Two networks are ours: trained "
        "against attacks on themselves, on the same images.",
    ),
    Entry(
        "003_figure3",
        "Eight fixers: activation, weight of the correction, weight of the distillation",
        (),
        tuple(parts.ablation()),
        {
            **_SCALES,
            # The fixers' images and epochs of Figure 5 at 1%, as many of them as at "mini".
            "one_percent": _MINI._replace(
                changes={**_CHEAPER, **parts.trained("fixer", 0.01), "run.fixer.epochs": round(parts.EPOCHS[0.01] / 8)}
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
        parts.figure_parts({parts.panel(share): parts.methods(share) for share in parts.EPOCHS}),
        _SCALES,
        {"mini": 20.0},
        FigurePlan("points", "Attacks crafted on the base network (Figure 5)"),
        note="The paper prints no numbers of this figure but the lead of fx-a over adversarial training on clean "
        "images.",
        leads=tuple(parts.lead(share) for share in parts.LEADS),
    ),
    Entry(
        "003_figure5_one_percent",
        "Fixers and their rivals on 1% of the training images",
        (),
        parts.figure_parts({parts.panel(0.01): parts.methods(0.01)}),
        _SCALES,
        {"small": 6.0, "mini": 3.5},
        FigurePlan("points", "Attacks crafted on the base network (Figure 5, right)"),
        note="Part of Figure 5, which alone can be afforded on two cores.",
        leads=(parts.lead(0.01),),
    ),
    Entry(
        "003_figure6",
        "Fixers and their rivals, trained against AutoPGD, FGSM and C&W",
        (),
        parts.figure_parts(
            {
                f"cifar10/test, trained against {name}": parts.methods(0.1, attack)
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
        tuple(parts.hist()),
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
