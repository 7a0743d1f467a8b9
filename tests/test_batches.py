"""Batches and devices: training batches must be divisible, which is checked first; evaluation batches are padded."""

import numpy as np
import pytest
from test_validation import built, fresh
from test_workflow import devices

from advjax import attacks
from advjax.attacks.combine import restarts
from advjax.evaluation.evaluate import attacker, curve_runner, predictor, staged_attacker
from advjax.evaluation.scored_model import undefended
from advjax.jobs import train
from advjax.types import UserError


def test_a_batch_that_does_not_divide_by_the_devices_is_refused_before_anything_is_done(tmp_path):
    experiment = built(20, batch_size=10)
    with pytest.raises(UserError, match=r"^run.base.batch_size: batch size 10 is not divisible by the 4 devices"):
        train.train(experiment, str(tmp_path), devices(), print)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def evaluated():
    experiment = built(20)
    variables = fresh(experiment)
    return undefended(experiment.runs[0].model), variables, experiment.data.validation


def test_batches_of_evaluation_are_padded_to_the_devices(evaluated):
    model, variables, images = evaluated
    where = devices()
    assert where.mesh.size == 4 and len(images.labels) == 20
    fgsm = attacks.fgsm(attacks.linf(0.1))

    def results(size):
        found = predictor(model, where, size)(variables, images.images, images.index, 0)
        attacked = attacker(model, fgsm, "fgsm", where, size)(variables, images, 0, None).images
        curve = curve_runner(model, lambda epsilon: fgsm, "fgsm", where, size)(variables, images, 0.1, 0)
        stages = (restarts("fgsm", fgsm, 1),)
        staged = staged_attacker(model, stages, attacks.linf(0.1), "fgsm", where, size, title="fgsm")
        return found, attacked, curve, staged(variables, images, 0, None).images

    odd, even = results(6), results(8)
    for there, here in zip(odd, even, strict=True):
        assert len(there) == 20
        np.testing.assert_allclose(there, here, atol=1e-6)
    pixels = images.images.astype(np.float32) / 255
    np.testing.assert_array_equal(odd[0], np.asarray(model.bind(variables)(pixels)).argmax(-1))
