"""Adversarial training with two updates per batch, clean then attacked: the code of the Dauphine report (004).

    python -m advjax.main --config=configs/cifar_two_updates.py

FGSM reuses the gradient of the first update; PGD-40 attacks the network after that update.  Run "fgsm" on one CPU
core (5 min 24 s; 2026-11-21, Python 3.11, JAX 0.10.2, seed 0): clean accuracy 50.5%, FGSM 25.9% (report: 22.85%),
PGD-40 23.0%.  Run "pgd", 40 times as much work, has not been run.
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
