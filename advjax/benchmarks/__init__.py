"""How fast the attacks are: ``python -m advjax.benchmarks --help``."""
