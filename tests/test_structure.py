"""The structure of the package and of its tests: layers, imports, who may ask about norms."""

import ast
import subprocess
import sys

import pytest

from support.paths import REPOSITORY

ORDER = (
    "types < cpu < attacks, models, runtime < data < training, defenses < evaluation < reporting < experiment < jobs"
    " < papers, benchmarks < main"
)
"""The order of imports: a module imports from its own package and from packages further to the left."""
RANK = {name: rank for rank, names in enumerate(ORDER.split(" < ")) for name in names.split(", ")}
PACKAGE = REPOSITORY / "advjax"


def imports(path):
    """Absolute dotted names of what a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources():
    """``(module or package at the top of advjax, path)`` of every file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def test_three_modules_and_thirteen_packages_at_the_top():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules == {"__init__", "main", "types"}
    assert packages == set(RANK) - modules and len(packages) == 13
    assert {top for top, _ in sources()} == modules | packages


def test_imports_go_one_way():
    wrong = []
    for top, path in sources():
        if top == "__init__":
            continue
        for name in imports(path):
            other = name.removeprefix("advjax.").split(".")[0]
            if name.split(".")[0] == "advjax" and other != top and not RANK.get(other, len(RANK)) < RANK[top]:
                wrong.append(f"{path.relative_to(REPOSITORY)} imports {name}")
    assert not wrong, "\n".join([ORDER, *wrong])


def within(folder, path):
    """First names below ``folder`` of what a module there imports, wherever the import stands."""
    package = ".".join(folder.relative_to(REPOSITORY).parts)
    below = [name.removeprefix(f"{package}.") for name in imports(path) if name.startswith(f"{package}.")]
    return [name.split(".")[0] for name in below]


def circle(graph):
    """Some circle of a graph ``{node: successors}``, as the list of its nodes; [] if there is none."""
    done = set()

    def visit(node, trail):
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        done.add(node)
        return next((found for after in graph.get(node, ()) if (found := visit(after, [*trail, node]))), [])

    return next((found for node in graph if (found := visit(node, []))), [])


@pytest.mark.parametrize(
    "folder",
    [path.parent for path in sorted(PACKAGE.rglob("*/__init__.py"))],
    ids=lambda folder: folder.relative_to(REPOSITORY).as_posix(),
)
def test_no_import_circle_within_a_package(folder):
    """Neither at the top of a module nor inside a function, where an import could hide a circle."""
    parts = {path.stem: [path] for path in folder.glob("*.py") if path.name != "__init__.py"}
    parts |= {path.parent.name: list(path.parent.rglob("*.py")) for path in folder.glob("*/__init__.py")}
    graph = {
        part: sorted({name for path in paths for name in within(folder, path)} & parts.keys() - {part})
        for part, paths in parts.items()
    }
    assert circle(graph) == []


def test_a_circle_is_found():
    assert circle({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["a"]}) == ["a", "b", "d", "a"]
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_attacks_need_nothing_but_types_cpu_jax_numpy_and_optax():
    allowed = {"advjax.attacks", "advjax.cpu", "advjax.types"}
    found = set()
    for top, path in sources():
        if top in ("attacks", "cpu", "types"):
            for name in imports(path):
                first, *rest = name.split(".")
                found.add(".".join([first, *rest[:1]]) if first == "advjax" else first)
    assert found - sys.stdlib_module_names <= allowed | {"jax", "numpy", "optax"}


def test_importing_the_attacks_loads_no_other_framework():
    code = "import sys, advjax.attacks; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    loaded = set(done.stdout.split())
    assert {"advjax", "jax", "optax"} <= loaded
    assert not loaded & {"flax", "orbax", "tensorflow_datasets", "tensorflow", "ml_collections", "torch"}


NORMS = {"LINF", "L2", "L1"}
BY_NAME = {"attacks/square.py": "the paper has one way to draw squares for linf and another for l2"}
"""Attacks that look up what they do in a table by the name of the norm."""


def questions_about_norms(tree):
    """``(kind, line)`` of what asks which norm there is: comparisons with one, and look-ups by its name.

    Names of norms in messages and in reports decide nothing.
    """
    aliases = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and is_name_of_norm(node.value, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Name) and side.id in NORMS for side in sides):
                yield "norm", node.lineno
            elif any(is_name_of_norm(side, aliases) for side in sides):
                yield "name", node.lineno
        elif isinstance(node, ast.Subscript) and is_name_of_norm(node.slice, aliases):
            yield "name", node.lineno
        elif isinstance(node, ast.keyword) and node.arg == "ord":
            yield "ord", node.value.lineno


def is_name_of_norm(node, aliases):
    if isinstance(node, ast.Name):
        return node.id in aliases
    is_norm = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "norm"
    return is_norm and node.attr == "name"


def test_no_attack_for_several_norms_asks_which_one_it_has():
    asked = {}
    for path in sorted((REPOSITORY / "advjax").rglob("*.py")):
        name = path.relative_to(REPOSITORY / "advjax").as_posix()
        kinds = {kind for kind, _ in questions_about_norms(ast.parse(path.read_text()))}
        if kinds and name != "attacks/threat_model.py":
            asked[name] = kinds
    # Both ways: an exception that is none any more has to go.
    assert asked == {name: {"name"} for name in BY_NAME}


@pytest.mark.parametrize(
    "code",
    [
        "if threat_model.norm is LINF: pass",
        "if L2 == norm: pass",
        "if threat_model.norm.name == 'linf': pass",
        "name = threat_model.norm.name\nmoves = MOVES[name]",
        "np.linalg.norm(x, ord=1)",
    ],
)
def test_such_questions_are_found(code):
    assert list(questions_about_norms(ast.parse(code)))


def test_test_modules_have_names_of_their_own():
    """pytest imports them by these names alone."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_no_test_module_imports_another():
    """What several of them need is in ``tests/support``."""
    paths = sorted((REPOSITORY / "tests").rglob("*.py"))
    modules = {path.stem for path in paths if path.name.startswith("test_")} | {"conftest", "tests"}
    wrong = [
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in paths
        for name in imports(path)
        if modules & set(name.split("."))
    ]
    assert not wrong
