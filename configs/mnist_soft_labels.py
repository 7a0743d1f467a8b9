"""Soft labels and mixup in adversarial training on MNIST (mixup report 001, in its sound form).

    python -m advjax.main --config=configs/mnist_soft_labels.py

The report's off values are 0.001 to 0.01: ``--config.run.soft_labels.targets.soft_labels.off_value=0.001``.  "mixup"
is the run of mnist_mixup_adversarial.py, the same without soft labels.

"vanilla" is plain adversarial training, the same in the four such configs: take it from another run of one with
``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  In full not run yet: about 2.5 h a run on one CPU core.  After
five epochs against PGD-10, 10 to 18 min of a busy core (docs/results/mnist_adversarial.md): clean 86.8 %, PGD-40 on
itself 46.6 %; vanilla 91.4 % and 49.8 %.
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
