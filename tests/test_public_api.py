"""docs/api.md says what there is: no name is missing, and none is made up."""

import importlib
import inspect
import re
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from advjax import attacks, data, types
from advjax import main as main_module
from advjax.evaluation import report
from advjax.experiment import defaults, registry
from advjax.papers import __main__ as papers_module
from advjax.papers import join, published
from advjax.runtime import devices as sharding
from support.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "api.md"


def tables() -> dict[str, list[tuple[str, str]]]:
    """``"section/heading of the first column" -> rows``."""
    found, section, heading = {}, "", None
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:].strip("`")
        cells = re.fullmatch(r"\| (.*?) \| (.*) \|", line)
        if not cells:
            heading = heading if line.startswith("|--") else None
        elif heading is None:
            heading = f"{section}/{cells[1]}"
            found[heading] = []
        else:
            found[heading].append((cells[1], cells[2]))
    return found


TABLES = tables()


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def first_column(table: str) -> list[str]:
    return [name for cell, _ in TABLES[table] for name in quoted(cell)]


def leaves(tree: Mapping, path: str = "") -> list[str]:
    """Paths of what is no mapping, or an empty one."""
    found = []
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        found += leaves(value, here) if isinstance(value, Mapping) and value else [here]
    return found


def config_keys() -> list[str]:
    keys = [key for key in leaves(defaults.EXPERIMENT) if key != "run"]
    return keys + leaves(defaults.RUN, "run.RUN")


def defined_in_types() -> list[str]:
    imported = {"Callable", "Any", "NamedTuple", "TypeAlias", "jax", "np"}
    return [name for name in vars(types) if not name.startswith("_") and name not in imported]


def papers_flags() -> list[str]:
    return re.findall(r"^  (--\w+)", papers_module.parser().format_help(), re.MULTILINE)


EXPECTED = {
    "advjax.attacks/name": lambda: attacks.__all__,
    "advjax.types/name": defined_in_types,
    "Command line/flag": lambda: [
        f"--{flag.name}"
        for flag in flags.FLAGS.flags_by_module_dict()[main_module.__name__]
        if not flag.name.startswith("config.")
    ],
    "Config/key": config_keys,
    "report.json/field": lambda: report.Report._fields,
    "report.json/field of a row": lambda: report.Row.__annotations__,
    "advjax.papers/key of `published`": lambda: join.KEYS,
    "advjax.papers/flag": papers_flags,
    "advjax.papers/name": lambda: [
        f"{module.__name__.split('.')[-1]}.{name}" for module in (published, join) for name in module.__all__
    ],
}


@pytest.mark.parametrize("table", EXPECTED)
def test_tables_name_what_there_is(table):
    documented = first_column(table)
    assert len(documented) == len(set(documented)), "named twice"
    there = set(EXPECTED[table]())
    assert not there - set(documented), f"not in docs/api.md: {sorted(there - set(documented))}"
    assert not set(documented) - there, f"docs/api.md names what is not there: {sorted(set(documented) - there)}"


NAMES = {
    "attacks": registry.ATTACKS,
    "attacks in stages": registry.STAGED_ATTACKS,
    "noises, listed among the attacks of an evaluation": registry.NOISES,
    "attacks for training alone": registry.TRAINING_ATTACKS,
    "norms": registry.NORMS,
    "attack losses": registry.ATTACK_LOSSES,
    "losses": registry.LOSSES,
    "augmentations": registry.AUGMENTATIONS,
    "transforms of targets": registry.TRANSFORMS,
    "models": registry.MODELS,
    "models around a base": registry.PATCHES,
    "objectives": registry.OBJECTIVES,
    "schedules": registry.SCHEDULES,
    "optimizers": registry.OPTIMIZERS,
    "averages": registry.AVERAGES,
    "defences": registry.DEFENSES,
    "mappings": sharding.MAPPINGS,
    "data sets": data.KNOWN_NAMES,
}


@pytest.mark.parametrize("name", first_column("Networks of your own, and trained ones/name"))
def test_names_for_own_networks_are_there(name):
    module, _, attribute = name.rpartition(".")
    assert inspect.getdoc(getattr(importlib.import_module(f"advjax.{module}"), attribute))


def test_names_that_a_config_may_use():
    documented = {kind: sorted(quoted(cell)) for kind, cell in TABLES["Config/kind"]}
    assert documented == {kind: sorted(table) for kind, table in NAMES.items()}


def test_exported_names_exist_and_are_documented():
    for module in (attacks, data):
        assert len(module.__all__) == len(set(module.__all__))
        for name in module.__all__:
            assert hasattr(module, name), f"{module.__name__}.__all__ names {name!r}, which is not there"
    for name in attacks.__all__:
        value = getattr(attacks, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"advjax.attacks.{name} has no docstring"


def test_every_annotation_of_an_exported_function_resolves():
    for name in attacks.__all__:
        value = getattr(attacks, name)
        if inspect.isfunction(value):
            assert "return" in typing.get_type_hints(value), f"advjax.attacks.{name} says nothing about its result"


def test_schema_version_on_the_page():
    assert f"`schema_version` is {report.SCHEMA_VERSION} " in PAGE.read_text()


def test_the_attack_in_contributing_works():
    """Between two classes of a linear model the gradient never turns: four quarter steps are one step of FGSM."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "momentum_fgsm" in block]
    namespace: dict = {}
    exec(code, namespace)
    weights = np.random.default_rng(0).normal(size=(48, 2)).astype(np.float32)
    images = np.random.default_rng(1).uniform(0.3, 0.7, size=(6, 4, 4, 3)).astype(np.float32)

    def logits_fn(x: jax.Array) -> jax.Array:
        return x.reshape(len(x), -1) @ weights

    labels = jnp.argmax(logits_fn(images), axis=-1)
    threat_model, key = attacks.linf(0.2), jax.random.key(0)
    found = namespace["momentum_fgsm"](threat_model, num_steps=4, step_size=0.05)(logits_fn, images, labels, key)
    expected = attacks.fgsm(threat_model)(logits_fn, images, labels, key)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-6)
    assert np.all(found.distance > 0.19)
    assert np.any(found.success)
