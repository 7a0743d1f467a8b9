"""The attacks of Carlini and Wagner (2017), and their line-search forms in the Adversarial Robustness Toolbox."""

from advjax.attacks.carlini_wagner.l2 import carlini_wagner_l2
from advjax.attacks.carlini_wagner.l2_line_search import carlini_wagner_l2_line_search
from advjax.attacks.carlini_wagner.linf import carlini_wagner_linf
from advjax.attacks.carlini_wagner.linf_line_search import carlini_wagner_linf_line_search

__all__ = [
    "carlini_wagner_l2",
    "carlini_wagner_l2_line_search",
    "carlini_wagner_linf",
    "carlini_wagner_linf_line_search",
]
