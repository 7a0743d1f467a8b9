"""Random self-ensemble (Liu et al., 2018) as in the Dauphine report (004): noise before both convolutions, always.

    python -m advjax.main --config=configs/cifar_random_self_ensemble.py

A prediction is the mean of 50 draws.  The adaptive attack averages its gradients over draws, as the report's did not.
Expected numbers: not run yet.
"""

from advjax.papers.join import publish
from configs import common


def get_config():
    """The experiment."""
    noisy = common.small_cifar_run(model={"name": "net62k", "width": 1.0, "noise": 0.2})
    config = common.small_cifar_experiment("Random self-ensemble", noisy=noisy)
    ensemble = {"name": "random_self_ensemble", "run": "noisy", "num_draws": 50, "num_votes": 1, "num_samples": 20}
    config.evaluation.defenses = {"order": ("ensemble",), "ensemble": ensemble}
    # The report's attacks follow one draw: they are weaker than these, and their numbers no counterpart.
    (clean,) = common.small_cifar_published("noisy", "004_table2", "rse", ("clean",))
    publish(config, ({**clean, "defense": "ensemble"},))
    return config
