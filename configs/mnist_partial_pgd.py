"""Partial PGD on MNIST: adversarial images mixed with clean ones (mixup report 001, section 3.7, in its sound form).

    python -m advjax.main --config=configs/mnist_partial_pgd.py

"vanilla" is plain adversarial training, the same in the four such configs: take it from another run of one with
``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  Expected numbers: not run yet.
"""

from configs import common


def get_config():
    """The experiment."""
    partial = common.mnist_run(targets={"order": ("partial_mix",), "partial_mix": {"alpha": 1.0}})
    return common.mnist_experiment("Partial PGD on MNIST", partial=partial)
