"""Names that the package has given up are gone from code, tests, configs and documentation."""

import io
import pathlib
import re
import tokenize

import pytest

from support.paths import REPOSITORY

RETIRED = {
    *("asking", "assessment", "attacked_copies", "attempt", "attempts", "deploy", "deployed", "deployment"),
    *("findings", "goals", "hyperplanes", "judge", "judges", "judges_of", "maker", "sanity", "saved_attacks"),
    *("wiring", "workflow"),
}
"""In lower case.  Most are plain English: prose may use them, but not identifiers, module names or code in prose."""
PLACES = ("advjax", "tests", "docs", "configs", "launch", "README.md", "CONTRIBUTING.md")
CODE_IN_PROSE = re.compile(r"```.*?```|``[^`]+``|`[^`\n]+`", re.DOTALL)


def files(suffix):
    for place in PLACES:
        path = REPOSITORY / place
        found = [path] if path.is_file() and path.suffix == suffix else sorted(path.rglob(f"*{suffix}"))
        yield from (path for path in found if path != pathlib.Path(__file__))


def retired_in_code(text):
    """Identifiers, and what comments and strings have between backticks."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string.lower() in RETIRED:
            yield token.string
        elif token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from retired_in_prose(token.string)


def retired_in_prose(text):
    """What is between backticks: names, and parts of dotted names and paths."""
    for span in CODE_IN_PROSE.findall(text):
        yield from (word for word in re.findall(r"\w+", span) if word.lower() in RETIRED)


@pytest.mark.parametrize("suffix, retired", [(".py", retired_in_code), (".md", retired_in_prose)])
def test_no_retired_name_is_used(suffix, retired):
    found = {path.relative_to(REPOSITORY).as_posix(): {*retired(path.read_text())} for path in files(suffix)}
    assert len(found) > 5
    assert not {path: names for path, names in found.items() if names}


def test_no_module_or_folder_has_a_retired_name():
    for suffix in (".py", ".md"):
        for path in files(suffix):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            assert not RETIRED & {part.removeprefix("test_") for part in parts}, path


@pytest.mark.parametrize(
    "code, expected",
    [
        ("attempt.judge.run", ["attempt", "judge"]),
        ("from advjax.wiring import build", ["wiring"]),
        ("class Deployed: pass", ["Deployed"]),
        ('"""Calls `report.sanity`."""', ["sanity"]),
        ("x = 1  # See ``judges``.", ["judges"]),
        ('"""Judge for yourself how models are deployed."""', []),
    ],
)
def test_retired_names_are_found_in_code(code, expected):
    assert list(retired_in_code(code)) == expected


def test_retired_names_are_found_in_code_of_prose():
    text = "Deployed models, `wiring/` and\n```python\nworkflow.train()\n```\nbut no judge."
    assert list(retired_in_prose(text)) == ["wiring", "workflow"]
