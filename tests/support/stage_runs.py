"""Runs of three stages on a linear model on which every outcome occurs."""

import functools

import numpy as np

from advjax import attacks
from advjax.attacks import combine, runner
from support import attack_models as am

COUNT = 23


class StageRuns:
    """A linear model on images of which some are wrong, some break at once, some later and some never."""

    def __init__(self):
        self.images = am.gray_images(COUNT)
        self.model = am.random_linear(self.images, num_classes=4)
        logits = np.asarray(self.model(self.images))
        self.labels = np.argmax(logits, axis=-1).astype(np.int32)
        self.labels[-3:] = (self.labels[-3:] + 1) % 4
        bounds = am.lower_bounds(self.model, self.images, self.labels, "linf")
        self.threat_model = attacks.linf(float(np.sort(bounds[:-3])[15]))
        epsilon = self.threat_model.epsilon
        weak = attacks.pgd(self.threat_model, num_steps=1, step_size=epsilon / 2, loss=attacks.dlr)
        strong = functools.partial(attacks.bim, num_steps=4, step_size=epsilon / 2, returns="best")
        self.stages = (
            combine.restarts("weak", weak, 2),
            combine.targets("aimed", lambda aim: attacks.fab(self.threat_model, num_steps=5, aim=aim), 9),
            combine.restarts("strong", strong(self.threat_model), 1),
        )

    def run(self, *, stages=None, **options):
        """``run_stages`` on a model given by its variables, or that is a closure, with ``variables=None``.

        Closures are traced by every call.
        """
        data = {"images": self.images, "labels": self.labels, "variables": self.model}
        arguments = {"batch_size": 8} | data | options
        logits_fn = self.model if arguments["variables"] is None else self.bind
        return runner.run_stages(stages or self.stages, self.threat_model, logits_fn, **arguments)

    @staticmethod
    def bind(model):
        return model


def same(first, second):
    """Equal verdicts, to the last bit; only the time may differ."""
    for field in first._fields:
        if field != "seconds":
            np.testing.assert_array_equal(getattr(first, field), getattr(second, field), err_msg=field)
