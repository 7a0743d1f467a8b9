"""Adversarial training with two updates per batch, clean then attacked: the code of the Dauphine report (004).

    python -m advjax.main --config=configs/cifar_two_updates.py

FGSM reuses the gradient of the first update; PGD-40 attacks the network after that update.  Trained with FGSM, clean
accuracy is 51.6%, and 27.4% under FGSM (report: 22.9%); with PGD-40, 44.6%, and 24.9% under PGD-40 (24.0%).  The worst
of both attacks and PGD-10 leaves 24.5 and 24.3% (docs/papers/004_table1.full.md).  On one CPU core, the first takes 5
min, the second two hours and more: 15,310 steps at about two a second.
"""

from advjax.papers.join import publish
from configs import common


def get_config():
    """The experiment."""
    linf = {"norm": "linf", "epsilon": "0.03"}
    pgd = {"name": "pgd", **linf, "num_steps": 40, "step_size": "0.01", "random_start": False, "returns": "last"}
    config = common.small_cifar_experiment(
        "Adversarial training with two updates",
        fgsm=common.small_cifar_run(attack={"name": "fgsm", **linf}, two_updates="reused_gradient"),
        pgd=common.small_cifar_run(attack=pgd, two_updates="attack"),
    )
    on_fgsm = common.small_cifar_published("fgsm", "004_table1", "adv_FGSM", ("fgsm",))
    publish(config, (*on_fgsm, *common.small_cifar_published("pgd", "004_table1", "adv_PGD", ("pgd_40",))))
    return config
