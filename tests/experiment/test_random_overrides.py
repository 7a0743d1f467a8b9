"""A random override of a config is one clear error, or an experiment whose computations can be traced."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from advjax.experiment.from_config import from_config
from advjax.jobs.dry_run import check_evaluation, check_runs
from advjax.types import UserError
from support.configs import config_of
from support.experiments import devices

pytestmark = pytest.mark.slow

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 99999999999999999999, 10**400]),
    st.floats(),
    st.sampled_from(["8/255", "1e400", "-1/3", "1/0", "nan", "inf", "-inf", "eight", "", "0.1.2"]),
)
VALUES = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.sampled_from(["base", "fixer", "pgd", "../outside", "/tmp/outside", "linf", "l3", "cross_entropy", "adam", "x"]),
    st.lists(st.sampled_from(["base", "pgd_50", "foo", 1, None]), max_size=3),
    st.dictionaries(st.sampled_from(["name", "order", "epsilon", "foo"]), NUMBERS, max_size=2),
)


def paths(node, path=()):
    """Paths of all keys, those of inner nodes as well."""
    for key in node:
        yield (*path, key)
        value = node[key]
        if isinstance(value, ConfigDict):
            yield from paths(value, (*path, key))


PATHS = sorted(paths(config_of("digits_fixer")))


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(path=st.sampled_from(PATHS), value=VALUES, extra=st.sampled_from(["", "", "", "more", "name", "num_steps"]))
def test_a_random_override_is_one_line_or_an_experiment(path, value, extra):
    config = config_of("digits_fixer")
    node = config
    for key in path[:-1]:
        node = node[key]
    target = node.get(path[-1])
    with config.unlocked(), config.ignore_type():
        if extra and isinstance(target, ConfigDict):
            target[extra] = value
        else:
            # ConfigDict itself converts a whole number for a float, and cannot convert any; flags say so in one line.
            assume(not (value == 10**400 and isinstance(target, float)))
            node[path[-1]] = value
    try:
        experiment = from_config(config)
        check_runs(experiment, devices())
        check_evaluation(experiment, experiment.load_data().train)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
