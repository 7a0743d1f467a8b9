"""Mixup of adversarial images on MNIST (mixup report 001, in its sound form).

    python -m advjax.main --config=configs/mnist_mixup_adversarial.py

Images are attacked unmixed, then mixed.

"vanilla" is plain adversarial training, the same in the four such configs: take it from another run of one with
``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  In full not run yet: about 2.5 h a run on one CPU core.  After
five epochs against PGD-10, 10 to 18 min of a busy core (docs/results/mnist_adversarial.md): clean 89.4 %, PGD-40 on
itself 43.2 %; vanilla 91.4 % and 49.8 %.
"""

from configs import common


def get_config():
    """The experiment."""
    mixup = common.mnist_run(targets={"order": ("mixup",), "mixup": {"alpha": 1.0}})
    return common.mnist_experiment("Mixup of adversarial images on MNIST", mixup=mixup)
