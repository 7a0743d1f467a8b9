"""The import order that the README promises."""

import ast

import pytest
from conftest import REPOSITORY

LAYERS = [
    {"types"},
    {"attacks", "models", "data", "sharding", "metrics", "defaults", "preemption"},
    {"checkpoint"},
    {"training", "defenses"},
    {"evaluation"},
    {"papers"},
    {"names"},
    {"experiment"},
    {"wiring"},
    {"attacked_copies", "presets"},
    {"workflow"},
    {"judges", "trained"},
    {"saved_attacks", "attempts"},
    {"assessment"},
    {"benchmarks"},
    {"main"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imported(path):
    """Parts of advjax that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module] if node.module != "advjax" else [f"advjax.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (module.split(".")[1] for module in modules if module.startswith("advjax."))


def parts():
    for path in sorted((REPOSITORY / "advjax").rglob("*.py")):
        part = path.relative_to(REPOSITORY / "advjax").parts[0].removesuffix(".py")
        if part != "__init__":
            yield part, path


def test_imports_go_one_way():
    for part, path in parts():
        for other in imported(path):
            assert other == part or RANK[other] <= RANK[part], f"{path} imports advjax.{other}"


def imports_within(folder, path):
    """First names below ``folder`` of what a module there imports, wherever the import stands."""
    package = ".".join(folder.relative_to(REPOSITORY).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            if module.startswith(f"{package}."):
                yield module.removeprefix(f"{package}.").split(".")[0]


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
    [path.parent for path in sorted((REPOSITORY / "advjax").rglob("*/__init__.py"))],
    ids=lambda folder: folder.relative_to(REPOSITORY).as_posix(),
)
def test_no_import_circle_within_a_package(folder):
    """Neither at the top of a module nor inside a function, where an import could hide a circle."""
    parts = {path.stem: [path] for path in folder.glob("*.py") if path.name != "__init__.py"}
    parts |= {path.parent.name: list(path.parent.rglob("*.py")) for path in folder.glob("*/__init__.py")}
    graph = {
        part: sorted({name for path in paths for name in imports_within(folder, path)} & parts.keys() - {part})
        for part, paths in parts.items()
    }
    assert circle(graph) == []


def test_a_circle_is_found():
    assert circle({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["a"]}) == ["a", "b", "d", "a"]
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_attacks_need_nothing_but_types():
    found = {other for part, path in parts() if part == "attacks" for other in imported(path)}
    assert found <= {"attacks", "types"}


def test_models_and_data_do_not_know_each_other_or_the_attacks():
    for part in ("models", "data"):
        found = {other for other_part, path in parts() if other_part == part for other in imported(path)}
        assert found <= {part, "types"}


NORMS = {"LINF", "L2", "L1"}
OF_ONE_NORM = {
    "attacks/auto_pgd_l1.py": "its sparse steps and its exact projection are those of l1",
    "attacks/carlini_wagner.py": "the objective of the paper has the squared l2 norm in it",
    "attacks/carlini_wagner_l2_line_search.py": "as carlini_wagner.py",
    "attacks/carlini_wagner_linf.py": "the objective of the paper has the linf norm in it, one pixel at a time",
    "attacks/carlini_wagner_linf_line_search.py": "searches the box that the ball of linf is",
}
"""Attacks for one norm alone, which refuse all others: what they may ask is whether they have been given theirs."""
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
    assert asked == {name: {"norm"} for name in OF_ONE_NORM} | {name: {"name"} for name in BY_NAME}


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
    names = [path.name for path in (REPOSITORY / "tests").rglob("*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
