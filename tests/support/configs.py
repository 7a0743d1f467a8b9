"""Shipped configs: loaded by name, changed, and shrunk to experiments that take seconds."""

from advjax.runtime.named_function import make_configs_importable
from support.files import module_from
from support.paths import REPOSITORY


def config_of(name, *arguments):
    # Configs import one another, wherever the tests are run from.
    make_configs_importable()
    return module_from(REPOSITORY / "configs" / f"{name}.py").get_config(*arguments)


def changed(**changes):
    """The digits experiment with two of its runs, and these changes."""
    config = config_of("digits_fixer")
    with config.unlocked(), config.ignore_type():
        config.runs = ("base", "fixer")
        del config.run["adversarial"]
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for key in parents:
            node = node[key]
        with node.unlocked(), node.ignore_type():
            node[last] = value
    return config


def shrink(config):
    """The same experiment with as little of everything as possible."""
    with config.unlocked(), config.ignore_type():
        if not config.data.fractions:
            config.data.num_validation = 12
        for run in config.run.values():
            shrink_run(run)
        evaluation = config.evaluation
        different = {config.run[name].to_json(): name for name in reversed(config.runs)}.values()
        config.runs = tuple(name for name in config.runs if name in different)
        if not isinstance(evaluation.made_on, str):
            evaluation.made_on = tuple(name for name in evaluation.made_on if name in different)
        # One size of batches, or each attack would be compiled three times.
        evaluation.num_examples, evaluation.batch_size = 8, 1
        evaluation.num_checked = 0
        if evaluation.curve is not None:
            evaluation.curve.update(epsilons=("8/255",), num_examples=8)
            shrink_attack(evaluation.curve.attack)
        # Attacks have their own tests; of what is built here, one is made.
        evaluation.attacks.order = evaluation.attacks.order[:1]
        evaluation.pictured = ""
        shrink_attack(evaluation.attacks[evaluation.attacks.order[0]])
        for name in evaluation.defenses.order:
            evaluation.defenses[name].update(num_draws=2, num_votes=1, num_samples=1)
    return config


def shrink_run(run):
    # Two: a learning rate cycle has at least that many.
    run.num_steps, run.batch_size, run.train_fraction = 2, 8, 0.01
    if "warmup" in run.optimizer.schedule:
        run.optimizer.schedule.warmup = 1
    if "width" in run.model:
        run.model.width = 0.0625
    if run.model.name in ("resnet18", "resnet50", "resnet101"):
        # Compiled in a tenth of the time; the networks themselves have their own tests.
        run.model.update(name="resnet18", stage_sizes=(1, 1, 1, 1))
    if "num_copies" in run.model:
        run.model.num_copies = 2
    if run.attack is not None:
        shrink_attack(run.attack)
    run.copies.order = run.copies.order[:1]
    if run.average is not None and run.average.name == "swa":
        run.average.update(start=0, every=1, refresh_steps=1)


def shrink_attack(attack):
    if "num_steps" in attack:
        attack.num_steps = 1
    if "num_restarts" in attack:
        attack.num_restarts = 1
