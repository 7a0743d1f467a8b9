"""TRADES on CIFAR-10 (Zhang et al., 2019): a price on answers that change, beside the loss on clean images.

    python -m advjax.main --config=configs/cifar_trades.py

``--config.run.robust.objective.beta=1`` gives up robustness for clean accuracy.  Not run yet.  For a ResNet18 the
MAIR list has 49.5 % under AutoAttack, on a recipe of its own.
"""

from configs import common


def get_config():
    """The experiment."""
    robust = common.cifar_run(
        objective={"name": "trades", "loss": {"name": "cross_entropy"}, "beta": 6.0},
        attack={"name": "most_divergent", **common.CIFAR_LINF, "num_steps": 10, "step_size": "2/255"},
    )
    return common.cifar_experiment("TRADES on CIFAR-10", robust=robust)
