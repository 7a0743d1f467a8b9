"""Speed of the attacks compared with other libraries: see ``python -m advjax.benchmarks --help``."""
