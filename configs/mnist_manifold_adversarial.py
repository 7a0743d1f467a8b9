"""Manifold mixup of adversarial images on MNIST (mixup report 001, in its sound form).

    python -m advjax.main --config=configs/mnist_manifold_adversarial.py

Images are attacked, then mixed at one of five places.

"vanilla" is plain adversarial training, the same in the four such configs: take it from another run of one with
``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  In full not run yet: about 2.5 h a run on one CPU core.  After
five epochs against PGD-10, 10 to 18 min of a busy core (docs/results/mnist_adversarial.md): clean 89.5 %, PGD-40 on
itself 44.1 %; vanilla 91.4 % and 49.8 %.
"""

from configs import common


def get_config():
    """The experiment."""
    objective = {"name": "manifold_mixup", "loss": {"name": "cross_entropy"}, "alpha": 2.0}
    manifold = common.mnist_run(objective=objective)
    return common.mnist_experiment("Manifold mixup of adversarial images on MNIST", manifold=manifold)
