"""What checkpoints are chosen by: validation images, if there are any, as the run is to withstand attacks on them."""

import pytest
from test_workflow import devices

from advjax import defaults, wiring, workflow
from advjax.metrics import read_metrics
from advjax.types import UserError


def built(num_validation=0, image_size=16, **changes):
    """One small network on digits, a few steps long."""
    method = {"model": {"name": "lenet5"}, "num_steps": 2, "batch_size": 16, "train_fraction": 0.05, **changes}
    return wiring.from_config(
        defaults.experiment(
            data={"name": "digits", "image_size": image_size, "num_validation": num_validation},
            runs=("base",),
            run={"base": defaults.run(**method)},
            evaluation={"batch_size": 16},
        )
    )


@pytest.mark.parametrize(
    "changes, what",
    [({}, "select is 'best'"), ({"select": "last", "patience": 2}, "patience is 2")],
)
def test_no_validation_images_are_refused_where_they_are_needed(changes, what):
    with pytest.raises(UserError, match=f"^run.base: {what}, but there are no .* data.num_validation .*select='last'"):
        built(**changes)


def test_a_run_without_validation_images_keeps_its_last_checkpoint(tmp_path):
    experiment = built(select="last")
    workflow.train(experiment, str(tmp_path), devices(), print)
    assert {line["kind"] for line in read_metrics(tmp_path / "base")} == {"train"}
    assert workflow.restore(experiment.runs[0], str(tmp_path), experiment.image_shape, print).params
