"""Partial PGD on MNIST: adversarial images mixed with clean ones (mixup report, 001, in a sound form).

    python -m advjax.main --config=configs/mnist_partial_pgd.py

Run "vanilla" is plain adversarial training, identical in all four configs of this kind; reuse it from another workdir
with ``--config.run.vanilla.checkpoint=WORKDIR/vanilla``.  Not run in full yet: about 2.5 h per run on one CPU core.
After five epochs against PGD-10, 10 to 18 min on a busy core (docs/results/mnist_adversarial.md): clean accuracy
94.7%, 38.0% under PGD-40 crafted on the model itself; vanilla 91.4% and 49.8%.
"""

from configs import common


def get_config():
    """The experiment."""
    partial = common.mnist_run(targets={"order": ("partial_mix",), "partial_mix": {"alpha": 1.0}})
    return common.mnist_experiment("Partial PGD on MNIST", partial=partial)
