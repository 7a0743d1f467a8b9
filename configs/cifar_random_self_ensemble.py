"""Random self-ensemble (Liu et al., 2018): noise layers before the convolutions, in training and at test time.

    python -m advjax.main --config=configs/cifar_random_self_ensemble.py

This is the network of the Dauphine report (004); append ``:vgg16`` for the authors' own, 200 epochs of a VGG16.
Predictions are means over 50 draws.  The adaptive attack averages its gradients over draws; the report's did not.  On
one CPU core (3.5 min of training; 2026-11-21, Python 3.11, JAX 0.10.2, seed 0), the small network has clean accuracy
53.9% (report: 52%) and 13.2% under FGSM (docs/results/dauphine.md).  Its PGD attacks and the VGG16 have not been run.
"""

from advjax.papers.join import publish
from configs import common


def get_config(network: str = "net62k"):
    """The experiment with network "net62k" or "vgg16"."""
    title = "Random self-ensemble"
    if network == "vgg16":
        config = common.cifar_experiment(title, noisy=_vgg16())
    else:
        noisy = common.small_cifar_run(model={"name": network, "width": 1.0, "noise": 0.2})
        config = common.small_cifar_experiment(title, noisy=noisy)
    ensemble = {"name": "random_self_ensemble", "run": "noisy", "num_draws": 50, "num_votes": 1, "num_samples": 20}
    config.evaluation.defenses = {"order": ("ensemble",), "ensemble": ensemble}
    if network == "net62k":
        # Only clean accuracies are comparable: the attacks of the report follow a single draw and are weaker.
        (clean,) = common.small_cifar_published("noisy", "004_table2", "rse", ("clean",))
        publish(config, ({**clean, "defense": "ensemble"},))
    return config


def _vgg16():
    schedule = {"name": "step_decay", "learning_rate": 0.1, "factor": 0.1, "epochs": (80, 140, 180)}
    return common.cifar_run(
        model={"name": "vgg16", "width": 1.0, "batch_norm": True, "noise": (0.2, 0.1)},
        epochs=200,
        optimizer={"schedule": schedule, "momentum": 0.9, "weight_decay": 5e-4},
    )
