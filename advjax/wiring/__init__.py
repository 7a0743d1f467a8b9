"""From a config to the objects of an experiment (`advjax.experiment`)."""

from advjax.wiring.attack import build_attack
from advjax.wiring.config import from_config, plain
from advjax.wiring.splits import load_data, training_subset

__all__ = ["build_attack", "from_config", "load_data", "plain", "training_subset"]
