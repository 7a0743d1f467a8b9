"""Distribution regression over randomly resized copies (Kou et al., 2020) in the fixer paper (003), row "drn".

    python -m advjax.main --config=configs/cifar_distribution_regression.py

The base is frozen; 280 parameters are trained on clean images.  Published: clean 88.4%, AutoPGD crafted on the base
13.9%.  Measured only small (docs/papers/003_table1.mini.md).
"""

from advjax.experiment import defaults
from advjax.papers.join import publish
from configs import cifar_fixer, common


def get_config():
    """The experiment."""
    config: common.Config = cifar_fixer.get_config()
    drn = defaults.run(
        model={"name": "distribution_regression", "base": "base", "num_copies": 50, "smallest": 26, "largest": 31},
        train_fraction=0.1,
        epochs=50,
        batch_size=16,
        optimizer={"name": "adam", "schedule": {"name": "constant", "learning_rate": 0.1}},
        trainable="^drn",
        validate_every_epochs=5,
    )
    config.title, config.runs = "Distribution regression behind a CIFAR-10 classifier", ("base", "drn")
    del config.run.fixer
    config.run.drn = drn
    copies = {"name": "random_self_ensemble", "run": "drn", "num_draws": 1, "num_votes": 3, "num_samples": 20}
    config.evaluation.defenses = {"order": ("copies",), "copies": copies}
    publish(config, cifar_fixer.table_1("drn", "ResNet9+drn", defense="copies"))
    return config
