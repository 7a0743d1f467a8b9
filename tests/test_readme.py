"""What the README and the pages of the documentation show works as printed."""

import json
import os
import re
import shlex
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.experiment import defaults
from advjax.experiment.from_config import from_config
from support.configs import config_of
from support.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in REPOSITORY.glob("docs/*.md")),
)


def blocks(language, page="README.md"):
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)


def commands(page="README.md"):
    """The commands of the bash blocks, without those that install."""
    lines = "\n".join(blocks("bash", page)).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if "pip install" not in part and part.strip()]


def run(command, workdir, **environment):
    words = [sys.executable if word == "python" else word for word in shlex.split(command, comments=True)]
    words += [f"--workdir={workdir}"]
    # Not the virtual devices of the tests: a user has the devices of his machine.
    kept = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "NPROC")}
    found = subprocess.run(words, cwd=REPOSITORY, env={**kept, **environment}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    with open(f"{workdir}/report.json") as file:
        return json.load(file)["rows"], found.stdout


def self_contained(page):
    """Snippets that need nothing but a model and images."""
    for number, text in enumerate(blocks("python", page)):
        if "import" in text and not any(word in text for word in ("advjax.load", "models.torch", "get_config")):
            # The whole of AutoAttack is a minute of compiling, whatever it attacks.
            marks = pytest.mark.slow if re.search("auto_attack|examine|advjax.evaluate", text) else ()
            yield pytest.param(text, marks=marks, id=f"{page}-{number}")


@pytest.mark.parametrize(
    "snippet",
    [
        case
        for page in ("README.md", "docs/attacks.md", "docs/evaluating.md", "docs/fixers.md")
        for case in self_contained(page)
    ],
)
def test_python_snippets_run(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = jax.random.normal(jax.random.key(1), (12, 3))
    images = jax.random.uniform(jax.random.key(2), (5, 2, 2, 3))
    logits_fn = lambda images: images.reshape(len(images), -1) @ weights  # noqa: E731
    exec(snippet, {"logits_fn": logits_fn, "images": images, "labels": jnp.argmax(logits_fn(images), -1)})


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1600


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_or_runs_exists(page):
    path = REPOSITORY / page
    text = path.read_text()
    links = [link for link in re.findall(r"\]\((?!http)([^)#\s]+)", text) if "generated/" not in link]
    folders = (path.parent, REPOSITORY)
    assert all((path.parent / link).exists() for link in links), links
    named = [word for command in commands(page) for word in re.findall(r"(?:configs|launch)/[\w/]+\.\w+", command)]
    assert all((folders[1] / name).exists() for name in named), named


def test_the_config_of_the_guide_is_one():
    (snippet,) = [text for text in blocks("python", "docs/training.md") if "get_config" in text]
    exec(snippet, namespace := {})
    config = namespace["get_config"]()
    config.data.update(name="digits", num_validation=100)  # In place of data that may have to be downloaded.
    assert [run.name for run in from_config(config).runs] == ["robust"]


def test_the_guide_to_data_shows_keys_that_there_are():
    (snippet,) = [text for text in blocks("python", "docs/data.md") if text.startswith("data = {")]
    exec(snippet, shown := {})
    assert shown["data"].keys() <= defaults.DATA.keys()


def test_the_functions_of_the_guide_to_data_return_data(monkeypatch):
    """With a stand-in for the library of Hugging Face."""
    (snippet,) = [text for text in blocks("python", "docs/data.md") if "def photographs" in text]
    row = {"image": np.zeros((80, 70, 3), np.uint8), "labels": 2}
    library = types.SimpleNamespace(load_dataset=lambda name, split: [row, row])
    monkeypatch.setitem(sys.modules, "datasets", library)
    exec(snippet, shown := {})
    assert shown["photographs"]("train").image_shape == (64, 64, 3)
    assert shown["noise"]("test").class_names == ("a", "b")


@pytest.mark.slow
def test_the_digits_job_shows_what_the_readme_claims(tmp_path, monkeypatch):
    (command,) = [command for command in commands() if "digits_fixer.py" in command]
    workdir = tmp_path / "workdirs" / "digits_fixer"
    rows, printed = run(command, workdir)
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
    assert accuracy["fixer", "auto_pgd", "fixer", "true"] < 0.1
    assert accuracy["adversarial", "auto_pgd", "adversarial", "true"] > 0.6
    assert "robust accuracy" in printed
    monkeypatch.chdir(tmp_path)
    for page in ("README.md", "docs/training.md"):
        (snippet,) = [text for text in blocks("python", page) if "advjax.load" in text]
        exec(snippet, {})


@pytest.mark.slow
def test_the_small_cifar_job_goes_through_all_stages(tmp_path, shared):
    (command,) = [text for text in commands("docs/getting_started.md") if "cifar_fixer" in text and "num_steps" in text]
    data = str(shared / "data" / "tensorflow_datasets")
    rows, _ = run(command, tmp_path, TFDS_DATA_DIR=data)
    assert {row["run"] for row in rows} == {"base", "fixer"}
    attacks = config_of("cifar_fixer").evaluation.attacks.order
    assert {row["attack"] for row in rows} == {*attacks, "clean", "worst case"}
