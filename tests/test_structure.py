"""The import order that the README promises."""

import ast

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


def test_attacks_need_nothing_but_types():
    found = {other for part, path in parts() if part == "attacks" for other in imported(path)}
    assert found <= {"attacks", "types"}


def test_models_and_data_do_not_know_each_other_or_the_attacks():
    for part in ("models", "data"):
        found = {other for other_part, path in parts() if other_part == part for other in imported(path)}
        assert found <= {part, "types"}


def test_only_the_threat_model_asks_for_a_norm():
    for path in (REPOSITORY / "advjax").rglob("*.py"):
        text = path.read_text()
        assert path.name == "threat_model.py" or not any(word in text for word in ("norm ==", "norm.name ==", "ord ="))


def test_test_modules_have_names_of_their_own():
    """pytest imports them by these names alone."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
