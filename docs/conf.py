"""Builds the documentation.

    pip install -e '.[docs]' && sphinx-build -W docs docs/_build/html

Reference pages (API, config keys and names, command line flags) are generated from the code by ``_ext/reference.py``.
Notebooks are executed; those that have not changed come from a cache in ``docs/_build``.
"""

import importlib.metadata
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))

project = "advjax"
author = "the advjax authors"
copyright = "the advjax authors, Apache License 2.0"
version = release = importlib.metadata.version("advjax")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
    "reference",
]
exclude_patterns = ["_build", "_ext", "README.md"]
suppress_warnings = ["config.cache"]

# `Name` in a docstring is a link to the object of this name.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": False}
autodoc_typehints_format = "short"
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_cache_path = str(pathlib.Path(__file__).parent / "_build" / "notebooks")
nb_merge_streams = True
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"advjax {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {"navigation_with_keys": True}
