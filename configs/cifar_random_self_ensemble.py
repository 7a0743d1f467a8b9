"""Random self-ensemble (Liu et al., 2018): noise layers before the convolutions, in training and at test time.

    python -m advjax.main --config=configs/cifar_random_self_ensemble.py

This is the network of the Dauphine report (004); append ``:vgg16`` for the authors' own, 200 epochs of a VGG16.
Predictions are means over 50 draws.  The adaptive attack averages its gradients over draws; the report's followed a
single one.  Append ``:one_draw`` for the report's evaluation: attacks that follow one draw, and predictions by the sum
of log-probabilities.  The small network has clean accuracy 53.3% (report: 52%), 18.8 and 12.8% under FGSM and PGD-40
through one draw (16 and 9.8%), 16.8 and 14.0% through twenty, and at most 11.3% of 256 images under AutoAttack
(docs/papers/004_table2.full.md; 3.5 min of training on one CPU core).  The VGG16 has not been run.
"""

from advjax.papers.join import publish
from advjax.types import UserError
from configs import common


def get_config(variant: str = ""):
    """The experiment as it should be evaluated (""), as the report evaluated it ("one_draw"), or with a "vgg16"."""
    title = "Random self-ensemble"
    if variant not in ("", "one_draw", "vgg16"):
        raise UserError(f"configs/cifar_random_self_ensemble.py:{variant}: unknown variant; known: one_draw, vgg16")
    if variant == "vgg16":
        config = common.cifar_experiment(title, noisy=_vgg16())
    else:
        noisy = common.small_cifar_run(model={"name": "net62k", "width": 1.0, "noise": 0.2})
        config = common.small_cifar_experiment(title, noisy=noisy)
    ensemble = {"name": "random_self_ensemble", "run": "noisy", "num_draws": 50, "num_votes": 1, "num_samples": 20}
    # The attacks of the report follow a single draw and are weaker.
    attacks = {"": ("clean",), "one_draw": ("clean", "fgsm", "pgd_40"), "vgg16": ()}[variant]
    if variant == "one_draw":
        ensemble.update(num_samples=1, mean_over="log_probabilities")
        config.evaluation.made_on = ("noisy", "noisy+ensemble")
    else:
        config.evaluation.protocol = "sound"
    config.evaluation.defenses = {"order": ("ensemble",), "ensemble": ensemble}
    entries = common.small_cifar_published("noisy", "004_table2", "rse", attacks)
    if entries:
        samples = [{} if entry["our_attack"] == "clean" else {"eot_samples": 1} for entry in entries]
        publish(
            config, [{**entry, "defense": "ensemble", **known} for entry, known in zip(entries, samples, strict=True)]
        )
    return config


def _vgg16():
    schedule = {"name": "step_decay", "learning_rate": 0.1, "factor": 0.1, "epochs": (80, 140, 180)}
    return common.cifar_run(
        model={"name": "vgg16", "width": 1.0, "batch_norm": True, "noise": (0.2, 0.1)},
        epochs=200,
        optimizer={"schedule": schedule, "momentum": 0.9, "weight_decay": 5e-4},
    )
