"""Exported names have docstrings and annotations, report fields are documented, and CONTRIBUTING's attack works."""

import importlib
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import advjax
from advjax import attacks
from advjax.evaluation import report
from advjax.experiment import registry
from support.paths import REPOSITORY

JOBS = ("advjax.jobs.evaluate_functions", "advjax.jobs.fit", "advjax.jobs.load")
EXPORTING = ("advjax.attacks", "advjax.data", "advjax.defenses", "advjax.models.torch", *JOBS)


@pytest.mark.parametrize("name", EXPORTING)
def test_exported_names_exist_and_have_docstrings(name):
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    for exported in module.__all__:
        value = getattr(module, exported)
        if inspect.isfunction(value) or inspect.isclass(value):
            # A class without a docstring has that of its base, and a named tuple one that repeats its fields.
            assert value.__doc__ and not value.__doc__.startswith(f"{exported}("), f"{name}.{exported} has no docstring"


@pytest.mark.parametrize("name", EXPORTING)
def test_the_annotations_of_exported_functions_are_complete(name):
    module = importlib.import_module(name)
    for exported in module.__all__:
        value = getattr(module, exported)
        if inspect.isfunction(value):
            signature = inspect.signature(value, eval_str=False)
            annotations = [parameter.annotation for parameter in signature.parameters.values()]
            assert inspect.Signature.empty not in (*annotations, signature.return_annotation), f"{name}.{exported}"


def test_every_annotation_of_an_attack_resolves():
    for name in attacks.__all__:
        value = getattr(attacks, name)
        if inspect.isfunction(value):
            assert not any(isinstance(hint, str) for hint in inspect.get_annotations(value, eval_str=True).values())


def test_names_at_the_top_are_imported_when_used():
    assert advjax.load is importlib.import_module("advjax.jobs.load").load
    assert set(advjax.__all__) <= set(dir(advjax))
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = advjax.lode


@pytest.mark.parametrize("table", [name for name in vars(registry) if name.isupper()])
def test_whatever_a_config_can_name_has_a_docstring(table):
    """The documentation generates its tables of names from these."""
    for name, value in getattr(registry, table).items() if isinstance(getattr(registry, table), dict) else ():
        is_documented_elsewhere = value is None or isinstance(value, str) or value.__name__.startswith(("<", "_"))
        assert is_documented_elsewhere or inspect.getdoc(value), f"{table}[{name!r}]"


def test_the_fields_of_a_report_are_documented():
    page = (REPOSITORY / "docs" / "reports.md").read_text()
    documented = {
        name for cell in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert {*report.Report._fields, *report.Row.__annotations__} <= documented
    assert f"`schema_version` is {report.SCHEMA_VERSION} " in page


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
