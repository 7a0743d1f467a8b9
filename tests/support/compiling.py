"""Tests of plumbing that compares bits: compiled quickly by the fast tests, and as users' programs by the slow ones."""

import pytest

BOTH_WAYS = ("quickly", pytest.param("as users do", marks=[pytest.mark.slow, pytest.mark.optimized]))
"""Parameters of a fixture, of which all that is compiled for a test has to depend."""
