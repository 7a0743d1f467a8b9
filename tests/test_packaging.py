"""What is installed: every package and data file, the configs, the command, and what the tests need of the source."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest

import advjax
from advjax import main
from advjax.runtime.named_function import INSTALLED_CONFIGS
from support.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_every_package_is_listed():
    found = {path.parent.relative_to(REPOSITORY) for path in REPOSITORY.glob("advjax/**/*.py")}
    found |= {"advjax" / path.parent.relative_to(REPOSITORY) for path in REPOSITORY.glob("configs/**/*.py")}
    # Folders that hold only packages are packages, too.
    found |= {"advjax" / path.relative_to(REPOSITORY) for path in [REPOSITORY / "configs" / "papers"]}
    assert sorted(".".join(path.parts) for path in found) == SETUPTOOLS["packages"]
    assert SETUPTOOLS["package-dir"] == {"advjax.configs": "configs"}


def test_every_data_file_is_listed():
    others = {
        path for path in (REPOSITORY / "advjax").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    listed = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            found = set(REPOSITORY.joinpath(*package.split(".")).glob(pattern))
            assert found, pattern
            listed |= found
    assert listed == others and REPOSITORY / "advjax" / "py.typed" in listed


def test_the_command_is_the_module():
    assert PROJECT["project"]["scripts"] == {"advjax": "advjax.main:run"}
    assert 'if __name__ == "__main__":\n    run()' in (REPOSITORY / "advjax" / "main.py").read_text()
    assert callable(main.run)


def test_version_and_citation_agree():
    version = PROJECT["project"]["version"]
    assert re.search(rf"^version: {re.escape(version)}$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    assert advjax.__version__ in (importlib.metadata.version("advjax"), "unknown")


def test_the_configs_are_found_and_not_by_way_of_the_current_folder(tmp_path):
    assert INSTALLED_CONFIGS.samefile(REPOSITORY / "configs") or INSTALLED_CONFIGS.parent.name == "advjax"
    code = "import sys; from advjax.experiment.config_flag import find_config; print(*find_config(sys.argv))"
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.append({str(REPOSITORY)!r}); {code}",
        "--config=cifar_fixer:pgd",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1].endswith("configs/cifar_fixer.py:pgd")


def test_the_extras_of_the_image_exist():
    texts = [(REPOSITORY / "launch" / name).read_text() for name in ("Dockerfile", "gke.sh")]
    named = {extra for text in texts for extras in re.findall(r"EXTRAS=([\w,]+)", text) for extra in extras.split(",")}
    assert {"digits", "cuda13", "tpu"} <= named <= PROJECT["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize(
    "place", ["tests", "configs", "docs", "launch", ".ci", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md"]
)
def test_the_source_distribution_has_what_the_tests_read(place):
    assert place in (REPOSITORY / "MANIFEST.in").read_text().split() and (REPOSITORY / place).exists()
