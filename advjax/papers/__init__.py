"""The published results of the five papers, and ours next to them: ``python -m advjax.papers``."""
