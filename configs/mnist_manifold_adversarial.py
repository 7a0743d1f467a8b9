"""Manifold mixup of adversarial images on MNIST (mixup report, 001, in a sound form).

    python -m advjax.main --config=configs/mnist_manifold_adversarial.py

Images are attacked, then mixed at one of five layers.

Run "vanilla" is plain adversarial training, identical in all four configs of this kind; reuse it from another workdir
with ``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  Not run in full yet: about 2.5 h per run on one CPU core.
After five epochs against PGD-10, 10 to 18 min on a busy core (docs/results/mnist_adversarial.md): clean accuracy
89.5%, 44.1% under PGD-40 crafted on the model itself; vanilla 91.4% and 49.8%.
"""

from configs import common


def get_config():
    """The experiment."""
    objective = {"name": "manifold_mixup", "loss": {"name": "cross_entropy"}, "alpha": 2.0}
    manifold = common.mnist_run(objective=objective)
    return common.mnist_experiment("Manifold mixup of adversarial images on MNIST", manifold=manifold)
