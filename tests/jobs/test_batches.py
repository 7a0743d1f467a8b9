"""Batches and devices: training batches must divide by them, which is said at once; those of evaluation are padded."""

import numpy as np
import pytest

from advjax import attacks
from advjax.evaluation.attack_runs import Resources, run_attack
from advjax.evaluation.epsilon_curve import epsilon_curve
from advjax.evaluation.predictions import predictions
from advjax.evaluation.scored_model import undefended
from advjax.experiment.build_attack import build_attack
from advjax.jobs import train
from advjax.types import UserError
from support.experiments import built, devices, fresh, small_config


def test_a_batch_that_does_not_divide_by_the_devices_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(UserError, match=r"^run.base.batch_size: batch size 10 is not divisible by the 4 devices"):
        train.train(small_config(20, batch_size=10), str(tmp_path), devices(), print)
    assert not list(tmp_path.iterdir())


def test_batches_of_evaluation_are_padded_to_the_devices():
    experiment = built(20)
    model = undefended("base", experiment.runs[0].model, fresh(experiment))
    images, where = experiment.load_data().validation, devices()
    assert where.mesh.size == 4 and len(images.labels) == 20
    fgsm = build_attack("fgsm", {"name": "fgsm", "epsilon": 0.1}, "test")

    def results(size):
        options = {"seed": 0, "batch_size": size, "devices": where}
        found = predictions(model, images.images, images.index, **options)
        resources = Resources(where, size, 0, None)
        verdicts, transfer = (
            run_attack(model, fgsm, images, resources, survivors_only=survivors_only).images
            for survivors_only in (True, False)
        )
        curve = epsilon_curve(
            model, "fgsm", lambda epsilon: attacks.fgsm(attacks.linf(epsilon)), (0.1,), images, resources
        )
        return found, verdicts, transfer, next(curve)[1]

    odd, even = results(6), results(8)
    for there, here in zip(odd, even, strict=True):
        assert len(there) == 20
        np.testing.assert_allclose(there, here, atol=1e-6)
    pixels = images.images.astype(np.float32) / 255
    np.testing.assert_array_equal(odd[0], np.asarray(model.bind(model.variables)(pixels)).argmax(-1))
