"""TRADES on CIFAR-10 (Zhang et al., 2019): clean loss plus a penalty on predictions that change within the ball.

    python -m advjax.main --config=configs/cifar_trades.py

``--config.run.robust.objective.beta=1`` trades robustness for clean accuracy.  Not run yet.  For a ResNet-18, the
MAIR benchmark, with its own recipe, lists 49.5% under AutoAttack.
"""

from configs import common


def get_config():
    """The experiment."""
    robust = common.cifar_run(
        objective={"name": "trades", "loss": {"name": "cross_entropy"}, "beta": 6.0},
        attack={"name": "most_divergent", **common.CIFAR_LINF, "num_steps": 10, "step_size": "2/255"},
    )
    return common.cifar_experiment("TRADES on CIFAR-10", robust=robust)
