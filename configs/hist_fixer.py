"""Fixers in a classifier of histology patches (fixer paper, 003, Fig. 7), on an image folder with patient identifiers.

    python -m advjax.main --config=configs/hist_fixer.py --config.data.dir=FOLDER

The folder must contain a ``manifest.csv`` with patients (see ``advjax.data.image_folder``).  No patient is in more
than one of the three splits, whose proportions are the paper's: 18,000, 2,000 and 14,000 of 34,000.  The paper's
patches of TCGA-LUAD, 128 pixels wide and with four classes, are not public in this form, so there are no published
numbers to compare with; the network has as many classes as the folder.  Training images are streamed.  Append
``:transfer`` for the paper's adversarial training in place of the fixers.  Not run yet.
"""

from advjax.types import UserError
from configs import cifar_fixer, cifar_fixer_baselines, common


def get_config(method: str = "fixer"):
    """The experiment with "fixer" or "transfer", the whole network trained on images attacked through the base."""
    if method not in ("fixer", "transfer"):
        raise UserError(f"configs/hist_fixer.py:{method}: unknown method; known are fixer, transfer")
    source = cifar_fixer if method == "fixer" else cifar_fixer_baselines
    config: common.Config = source.get_config()
    config.runs = ("base", method)
    for name in set(config.run) - set(config.runs):
        del config.run[name]
    config.title = "Fixers in a classifier of histology patches"
    config.data.update(
        name="folder",
        image_size=128,
        num_validation=0,
        train_split="train+test",
        fractions=(0.53, 0.06, 0.41),
        by_patient=True,
        stream=True,
    )
    for run in config.run.values():
        run.augmentation.pad_crop.padding = 16
        run.augmentation.coarse_dropout.holes = 8
    # 4x4 max pooling, then global average pooling (Table 8).
    for run in config.run.values():
        if "head" in run.model:
            run.model.update(head="max4_average", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    config.evaluation.batch_size = 128
    config.published, config.published_for = (), {}
    return config
