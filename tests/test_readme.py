"""What the README shows works as printed."""

import json
import os
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from advjax.experiment import defaults
from support.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """The commands of the bash blocks, without those that install."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if "pip install" not in part and part.strip()]


def run(command, workdir, timeout, **environment):
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    words += [f"--workdir={workdir}"]
    # Not the virtual devices of the tests: a user has the devices of his machine.
    kept = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "NPROC")}
    found = subprocess.run(
        words, cwd=REPOSITORY, env={**kept, **environment}, timeout=timeout, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    with open(f"{workdir}/report.json") as file:
        return json.load(file)["rows"], found.stdout


# The whole of AutoAttack is a minute of compiling, whatever it attacks.
SNIPPETS = [pytest.param(text, marks=pytest.mark.slow if "auto_attack" in text else ()) for text in blocks("python")]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_python_snippets_run(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = jax.random.normal(jax.random.key(1), (12, 3))
    images = jax.random.uniform(jax.random.key(2), (5, 2, 2, 3))
    logits_fn = lambda images: images.reshape(len(images), -1) @ weights  # noqa: E731
    exec(snippet, {"logits_fn": logits_fn, "images": images, "labels": jnp.argmax(logits_fn(images), -1)})


def test_every_file_and_module_that_a_command_names_exists():
    named = [word for command in commands() for word in re.findall(r"(?:configs|launch|docs)/[\w./]+", command)]
    assert "configs/digits_fixer.py" in named and "configs/cifar_fixer.py" in named
    assert all((REPOSITORY / name).exists() for name in named)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/benchmarks.md"])
def test_every_link_to_a_file_leads_somewhere(page):
    page = REPOSITORY / page
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert all((page.parent / link).exists() for link in links)


def test_the_guide_shows_keys_that_there_are():
    guide = (REPOSITORY / "docs" / "guide.md").read_text()
    (snippet,) = re.findall(r"```python\n(data = .*?)```", guide, re.DOTALL)
    exec(snippet, shown := {})
    assert shown["data"].keys() <= defaults.DATA.keys()
    named = re.findall(r"(?:configs|launch)/[\w./]+\w", guide)
    assert named and all((REPOSITORY / name).exists() for name in named)


@pytest.mark.slow
def test_the_digits_job_shows_what_the_readme_claims(tmp_path):
    (command,) = [command for command in commands() if "digits_fixer" in command]
    rows, printed = run(command, tmp_path, 900)
    accuracy = {
        (row["run"], row["attack"], row["made_on"], row["labels"]): row["accuracy"]
        for row in rows
        if row["subset"] == "all"
    }
    clean = accuracy["base", "clean", None, "true"]
    assert clean >= 0.97
    assert accuracy["base", "auto_pgd", "base", "true"] < 0.1
    assert accuracy["base", "auto_pgd", "base", "predicted"] < 0.1
    assert accuracy["fixer", "clean", None, "true"] >= clean - 0.03
    assert accuracy["fixer", "auto_pgd", "base", "predicted"] > 0.6
    assert ("fixer", "auto_pgd", "fixer", "true") in accuracy
    assert "robust accuracy" in printed


@pytest.mark.slow
def test_the_small_cifar_job_goes_through_all_stages(tmp_path, shared):
    (command,) = [command for command in commands() if "cifar_fixer" in command and "num_steps" in command]
    data = str(shared / "data" / "tensorflow_datasets")
    rows, _ = run(command, tmp_path, 1200, TFDS_DATA_DIR=data)
    assert {row["run"] for row in rows} == {"base", "fixer"}
    attacks = {"fgsm", "pgd_50", "carlini_wagner", "auto_pgd", "auto_pgd_16"}
    assert {row["attack"] for row in rows} == attacks | {"clean", "worst case"}
