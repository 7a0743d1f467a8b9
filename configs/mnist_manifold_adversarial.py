"""Manifold mixup of adversarial images on MNIST (mixup report 001, section 3.6, in its sound form).

    python -m advjax.main --config=configs/mnist_manifold_adversarial.py

Images are attacked, then mixed at one of five places.

"vanilla" is plain adversarial training, the same in the four such configs: take it from another run of one with
``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  Expected numbers: not run yet.
"""

from configs import common


def get_config():
    """The experiment."""
    objective = {"name": "manifold_mixup", "loss": {"name": "cross_entropy"}, "alpha": 2.0}
    manifold = common.mnist_run(objective=objective)
    return common.mnist_experiment("Manifold mixup of adversarial images on MNIST", manifold=manifold)
