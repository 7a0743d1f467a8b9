"""What cannot be trained or measured is one line that names the config key, before anything is trained or written."""

import warnings

import numpy as np
import pytest

from advjax.experiment.from_config import complete, from_config
from advjax.jobs.dry_run import check_evaluation, check_runs
from advjax.jobs.train import train
from advjax.training import loop
from advjax.types import UserError
from support.configs import changed
from support.experiments import devices
from support.tiny_data import tiny_dataset

MIXUP = {"order": ("mi",), "mi": {"name": "mixup_inference", "run": "base"}}


def fgsm(**arguments):
    return {"name": "fgsm", "norm": "linf", "epsilon": "8/255", **arguments}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"run__fixer__model__after": ("foo",)}, "run.fixer.model: no block named foo: the blocks are conv1,"),
        ({"run__fixer__model__after": ()}, "run.fixer"),
        ({"run__fixer__trainable": "^nothing"}, "run.fixer: .*\\^nothing"),
        ({"run__fixer__trainable": "^(nothing"}, "run.fixer"),
        ({"run__base__model__mean": (0.5, 0.5, 0.5)}, "run.base.model: "),
        ({"run__base__augmentation__pad_crop__padding": 100}, "run.base: .*padding"),
        ({"run__base__batch_size": 65}, "run.base.batch_size: "),
        (
            {"run__base__batch_size": 24, "run__base__gradient_accumulation": 5},
            "run.base: gradient_accumulation is 5, but the .* images of a batch on each device cannot be split",
        ),
        ({"run__fixer__objective__tensor": "nothing"}, "run.fixer"),
        ({"run__fixer__model": {"name": "lenet5"}, "run__fixer__start": "base"}, r"run.fixer[.:]"),
        (
            {
                "run__fixer__model": {"name": "resnet9", "width": 0.5, "pool3": False, "head": "average"},
                "run__fixer__start": "base",
                "run__fixer__objective": {"name": "supervised", "loss": {"name": "cross_entropy"}},
                "run__fixer__trainable": "",
            },
            "run.fixer: the model has other parameters than run 'base', which it starts from",
        ),
        (
            {"run__base__extra_images": {"file": "/nothing.npz", "share": 0.5}},
            "run.base: extra_images: there is no file /nothing.npz",
        ),
        ({"run__fixer__attack__epsilon": 8}, "run.fixer.*epsilon is 8, but no two images in"),
        ({"evaluation__attacks__fgsm__epsilon": 8}, "evaluation.attacks.fgsm: epsilon is 8, but no two images in"),
        (
            {"evaluation__attacks__fgsm": fgsm(norm="l2", epsilon=8.1)},
            "evaluation.attacks.fgsm: epsilon is 8.1, .*further apart than 8 in l2",
        ),
        (
            {"evaluation__curve": {"attack": fgsm(), "epsilons": ("1/255", 2), "num_examples": 3}},
            "evaluation.curve: epsilon is 2, but",
        ),
        (
            {"evaluation__curve": {"attack": fgsm(), "epsilons": ("-1/255",), "num_examples": 3}},
            "evaluation.curve: epsilon must be 0 or more",
        ),
        (
            {"evaluation__defenses": {**MIXUP, "mi": {**MIXUP["mi"], "pool_size": 0}}},
            "evaluation.defenses.mi: .*pool_size",
        ),
        ({"evaluation__defenses": {**MIXUP, "mi": {**MIXUP["mi"], "mode": "x"}}}, "evaluation.defenses.mi: mode must"),
    ],
)
def test_what_cannot_work_is_one_line_that_names_the_key(changes, message):
    # A warning would be a second line.
    with warnings.catch_warnings(), pytest.raises(UserError, match=message) as caught:
        warnings.filterwarnings("error", message="epsilon")
        experiment = from_config(changed(**changes))
        check_runs(experiment, devices())
        check_evaluation(experiment, experiment.load_data().train)
    assert "\n" not in str(caught.value)


def test_it_is_said_before_anything_is_written(tmp_path):
    for changes in ({"run__fixer__model__after": ("foo",)}, {"evaluation__attacks__fgsm__epsilon": 8}):
        with pytest.raises(UserError):
            train(changed(**changes), str(tmp_path / "work"), devices(), print)
        assert not (tmp_path / "work").exists()


def test_a_defense_that_finds_no_image_of_a_class_is_refused():
    config = changed(evaluation__defenses=MIXUP)
    dataset = tiny_dataset(num_classes=10)
    with pytest.raises(UserError, match=r"evaluation\.defenses\.mi: the pool has no image of class 3"):
        check_evaluation(from_config(config), dataset.take(np.flatnonzero(dataset.labels != 3)))


def test_the_shipped_config_passes():
    experiment = from_config(complete(changed()))
    check_runs(experiment, devices())
    check_evaluation(experiment, experiment.load_data().train)


def test_extra_images_that_do_not_fit_are_refused(tmp_path):
    file = str(tmp_path / "extra.npz")
    for size, labels, message in (
        ((16, 16), [0, 9], r"has images of \(16, 16, 1\), and digits of \(8, 8, 1\)"),
        ((8, 8), [0, 10], "has the label 10, and digits has 10 classes"),
        ((8, 8), [0, -1], "labels of .* range from -1"),
    ):
        np.savez(file, image=np.zeros((2, *size, 1), np.uint8), label=labels)
        experiment = from_config(complete(changed(run__base__extra_images={"file": file, "share": 0.5})))
        with pytest.raises(UserError, match=message):
            check_runs(experiment, devices())


def test_extra_images_are_trained_on_beside_the_others(tmp_path):
    """An epoch remains a pass over the images of the data set, which then takes more steps."""
    file, labels = str(tmp_path / "extra.npz"), np.arange(30) % 10
    np.savez(file, image=np.zeros((30, 16, 16, 1), np.uint8), label=labels)
    changes = {
        "data__image_size": 16,
        "runs": ("base",),
        "run__base__model": {"name": "lenet5", "width": 0.1},
        "run__base__epochs": 1,
        "run__base__batch_size": 400,
    }
    plain = from_config(complete(changed(**changes)))
    changes["run__base__extra_images"] = {"file": file, "share": 0.75}
    config = complete(changed(**changes))
    (run,) = from_config(config).runs
    assert (run.plan.extra_rows, run.plan.num_steps) == (300, 13) and plain.runs[0].plan.num_steps == 4
    seen = []

    def feed(dataset, *, extra, extra_rows, **options):
        seen.append((len(dataset.labels), len(extra.labels), extra.class_names, extra_rows))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "make_feed", feed)
        train(config, str(tmp_path / "work"), devices(), print)
    assert seen == [(1298, 30, tuple(map(str, range(10))), 300)]
