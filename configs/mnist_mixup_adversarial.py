"""Mixup of adversarial images on MNIST (mixup report 001, section 3.6, in its sound form).

    python -m advjax.main --config=configs/mnist_mixup_adversarial.py

Images are attacked unmixed, then mixed.

"vanilla" is plain adversarial training, the same in the four such configs: take it from another run of one with
``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  Expected numbers: not run yet.
"""

from configs import common


def get_config():
    """The experiment."""
    mixup = common.mnist_run(targets={"order": ("mixup",), "mixup": {"alpha": 1.0}})
    return common.mnist_experiment("Mixup of adversarial images on MNIST", mixup=mixup)
