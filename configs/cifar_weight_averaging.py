"""Weight averaging in adversarial training on CIFAR-10: an exponential moving average, and SWA over the last third.

    python -m advjax.main --config=configs/cifar_weight_averaging.py

The learning rate is constant, so that the averages have an effect.  Not run yet.  For a ResNet-18 trained for 100
epochs, the FastAT benchmark reports 50.5% under AutoAttack with averaged weights and 44.3% without.
"""

from configs import common

# 49,000 images in batches of 128.
STEPS_PER_EPOCH = 383


def get_config():
    """The experiment."""

    def run(average):
        optimizer = {"schedule": {"name": "constant", "learning_rate": 0.02}, "momentum": 0.9, "weight_decay": 5e-4}
        return common.cifar_run(attack=common.CIFAR_PGD, optimizer=optimizer, average=average)

    swa = {"name": "swa", "start": 20 * STEPS_PER_EPOCH, "every": STEPS_PER_EPOCH, "refresh_steps": 50}
    return common.cifar_experiment(
        "Weight averaging on CIFAR-10", ema=run({"name": "ema", "decay": 0.999, "refresh_steps": 0}), swa=run(swa)
    )
