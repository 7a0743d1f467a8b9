"""What the five papers have published, and how our measurements look beside it: ``python -m advjax.papers``."""
