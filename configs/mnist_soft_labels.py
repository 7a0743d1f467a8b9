"""Soft labels and mixup in adversarial training on MNIST (mixup report, 001, in a sound form).

    python -m advjax.main --config=configs/mnist_soft_labels.py

The report uses off-class values from 0.001 to 0.01: ``--config.run.soft_labels.targets.soft_labels.off_value=0.001``.
Run "mixup", the same without soft labels, is also in mnist_mixup_adversarial.py.

Run "vanilla" is plain adversarial training, identical in all four configs of this kind; reuse it from another workdir
with ``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  Not run in full yet: about 2.5 h per run on one CPU core.
After five epochs against PGD-10, 10 to 18 min on a busy core (docs/results/mnist_adversarial.md): clean accuracy
86.8%, 46.6% under PGD-40 crafted on the model itself; vanilla 91.4% and 49.8%.
"""

from configs import common


def get_config():
    """The experiment."""
    mixup = {"order": ("mixup",), "mixup": {"alpha": 1.0}}
    soft_labels = {**mixup, "order": ("soft_labels", "mixup"), "soft_labels": {"off_value": 0.01}}
    return common.mnist_experiment(
        "Soft labels on MNIST",
        mixup=common.mnist_run(targets=mixup),
        soft_labels=common.mnist_run(targets=soft_labels),
    )
