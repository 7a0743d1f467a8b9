"""Partial PGD on MNIST: adversarial images mixed with clean ones (mixup report 001, in its sound form).

    python -m advjax.main --config=configs/mnist_partial_pgd.py

"vanilla" is plain adversarial training, the same in the four such configs: take it from another run of one with
``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  In full not run yet: about 2.5 h a run on one CPU core.  After
five epochs against PGD-10, 10 to 18 min of a busy core (docs/results/mnist_adversarial.md): clean 94.7 %, PGD-40 on
itself 38.0 %; vanilla 91.4 % and 49.8 %.
"""

from configs import common


def get_config():
    """The experiment."""
    partial = common.mnist_run(targets={"order": ("partial_mix",), "partial_mix": {"alpha": 1.0}})
    return common.mnist_experiment("Partial PGD on MNIST", partial=partial)
