"""Training on fixed-weight mixes with unmixed labels: "mixup inference" in the code of the Dauphine report (004).

    python -m advjax.main --config=configs/cifar_fixed_mix.py

``--config.run.mixed.targets.fixed_mix.weight=`` .1, .2, .4, .6, .8 and 1 are the points of its Fig. 3.  Clean accuracy
is 57.4% plain and 45.5% mixed, 7.2 and 9.8% under FGSM, 3.5 and 6.9% under PGD-40 (docs/papers/004_section3.full.md,
beside the report's; 7 min on one CPU core).
"""

from collections.abc import Iterator
from typing import Any

from advjax.papers.join import publish
from configs import common


def get_config():
    """The experiment."""
    mixed = common.small_cifar_run(targets={"order": ("fixed_mix",), "fixed_mix": {"weight": 0.6}})
    config = common.small_cifar_experiment("Training on fixed mixes", plain=common.small_cifar_run(), mixed=mixed)
    publish(
        config,
        (
            *common.small_cifar_published("plain", "004_section3", "standard", ("clean", "fgsm", "pgd_10", "pgd_40")),
            *_published("004_section5", (0.6,)),
            *_published("004_figure3", (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ),
    )
    return config


def _published(table: str, weights: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    for weight in weights:
        when = {"targets.fixed_mix.weight": weight}
        attacks = ("clean", "fgsm", "pgd_40")
        yield from common.small_cifar_published("mixed", table, f"fixed_mix:lam{weight}", attacks, when)
