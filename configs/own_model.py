"""Your own classifier under AutoAttack: any function of images, named on the command line.

    python -m advjax.main --config=configs/own_model.py

evaluates ``brightness`` below, which shows what such a function looks like: it tells digits apart by their brightness,
and not well.  Your own function, in a module that Python can import, and your own data::

    advjax --config=own_model:package.module:function --config.data.name=cifar10 --workdir=report
    advjax --config=own_model:package.module:function --config.data.name=folder --config.data.dir=photos \
        --config.evaluation.attacks.auto_attack.epsilon=4/255 --workdir=report

The function takes float32 images [n, h, w, c] in [0, 1] and returns logits [n, classes], in inference mode.  Arrays
that it closes over are its weights.  With ``--mode=evaluate``, ``--preset=quick`` runs a short ensemble instead of
AutoAttack.
"""

import jax.numpy as jnp

from advjax.experiment import defaults


def get_config(function="configs.own_model:brightness"):
    """The experiment; ``function`` is ``package.module:function``."""
    return defaults.experiment(
        title=f"Robustness of {function.partition(':')[2]}",
        data={"name": "digits"},
        runs=("model",),
        run={"model": defaults.run(model={"name": "logits_fn", "function": function})},
        evaluation={
            "attacks": {
                "order": ("auto_attack",),
                "auto_attack": {"name": "auto_attack", "version": "standard", "norm": "linf", "epsilon": "8/255"},
            },
            "made_on": "model",
            "pictured": "auto_attack",
        },
    )


def brightness(images):
    """Logits of ten classes: how close the mean of an image is to each of ten values."""
    levels = jnp.linspace(0.2, 0.4, 10)
    return -100 * (jnp.mean(images, axis=(1, 2, 3))[:, None] - levels) ** 2
