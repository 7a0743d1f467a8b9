"""Published numbers next to ours: joined by hand, in every shipped config, and on the command line."""

import csv
import json
import subprocess
import sys

import pytest

from advjax.evaluation import report
from advjax.evaluation.outcomes import CLEAN
from advjax.evaluation.statistics import wilson_interval
from advjax.experiment.from_config import complete, plain
from advjax.papers import __main__ as command
from advjax.papers import join, output, published
from advjax.types import UserError
from support.configs import config_of
from support.paths import REPOSITORY

CONFIGS = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))
WITH_PUBLISHED = [name for name in CONFIGS if config_of(name).published]


def row(run="fixer", attack=CLEAN, accuracy=0.875, n=1000, **changes):
    is_clean = attack == CLEAN
    facts = {
        "knowledge": "none" if is_clean else "source model",
        "made_on": None if is_clean else "base",
        "adaptive": False,
        "defense": "none",
        "subset": "all",
        "protocol": "sound" if is_clean else "faithful",
        "labels": "true" if is_clean else "predicted",
        "eot_samples": 1,
    }
    low, high = wilson_interval(round(accuracy * n), n)
    numbers = {"run": run, "attack": attack, "accuracy": accuracy, "low": low, "high": high, "n": n}
    return {**facts, **numbers, **changes}


def own(run, attack, accuracy, **changes):
    """A row of an attack on the model itself."""
    itself = {"made_on": run, "adaptive": True, "knowledge": "everything", "labels": "true", "protocol": "sound"}
    return row(run, attack, accuracy, **{**itself, **changes})


def spec(run="fixer", our_attack="clean", attack="none", model="ResNet9+fx-a", **changes):
    found = {"table": "003_table1", "dataset": "cifar10/test", "model": model, "attack": attack}
    return {**found, "run": run, "our_attack": our_attack, **changes}


ROWS = [
    row(accuracy=0.86),
    row(attack="auto_pgd", accuracy=0.5),
    own("fixer", "auto_pgd", 0.02),
    row("base", accuracy=0.9),
    own("base", "auto_pgd", 0.05, labels="predicted", protocol="faithful"),
    own("base", "auto_pgd", 0.0),
]
UNDER_AUTO_PGD = {"our_attack": "auto_pgd", "attack": "AutoPGD:8/255"}


def test_a_pair_by_hand():
    (pair,) = join.join(ROWS, [spec()])
    assert (pair.published.value, pair.published.std, pair.model, pair.attack) == (87.5, 0.2, "fixer", "clean")
    assert (pair.subset, pair.kind) == ("all", "clean")
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964, for 8,750 of 10,000 and 860 of 1,000.
    assert pair.theirs.interval == pytest.approx((86.8374, 88.1338), abs=1e-3)
    assert pair.ours.interval == pytest.approx((83.7113, 88.0131), abs=1e-3)
    assert pair.difference == pytest.approx(-1.5)
    assert pair.overlap is True


def test_intervals_apart():
    (pair,) = join.join(ROWS, [spec(**UNDER_AUTO_PGD)])
    assert (pair.kind, pair.overlap) == ("transfer", False)
    assert pair.difference == pytest.approx(50 - 81.1)


def test_kinds_are_those_of_the_report():
    labels = [{"labels": "predicted"}, {"labels": "true"}]
    requested = [spec("base", model="ResNet9:base", **UNDER_AUTO_PGD, adaptive=True, **choice) for choice in labels]
    requested.append(spec(**UNDER_AUTO_PGD, adaptive=True))
    requested.append(spec(our_attack="gn", attack="none"))
    requested.append(spec(our_attack="fgsm", attack="none", defense="copies"))
    noise = row(attack="gn", made_on=None, knowledge="nothing")
    oblivious = row(attack="fgsm", defense="copies", made_on="fixer", knowledge="undefended model")
    kinds = [pair.kind for pair in join.join([*ROWS, noise, oblivious], requested)]
    assert kinds == ["adaptive, predicted labels", "adaptive", "adaptive", "noise", "oblivious"]


def test_missing_rows_are_reported_as_not_measured():
    requested = [spec(our_attack="fgsm", attack="FGSM:8/255"), spec(run="other", adaptive=True, **UNDER_AUTO_PGD)]
    first, second = join.join([*ROWS, row(attack="fgsm", n=0, accuracy=0) | {"accuracy": None}], requested)
    assert first.ours is second.ours is first.difference is second.overlap is None
    # An empty subset has a row, and so a kind.
    assert (first.kind, second.kind) == ("transfer", "")


def test_overlap_with_an_unknown_interval_is_unknown():
    requested = {"table": "002_table1", "model": "ResNet18", "dataset": "mnist/test20", "training": "standard"}
    (pair,) = join.join(ROWS, [{**requested, "run": "fixer", "our_attack": "clean"}])
    assert (pair.theirs.n, pair.theirs.interval, pair.overlap) == (None, None, None)
    assert pair.difference == pytest.approx(86 - 97.43)


@pytest.mark.parametrize(
    "entry, message",
    [
        (spec(table="003_table9"), "unknown published table '003_table9'; known are 000_figure2, "),
        (spec(model="fx-a"), "for fixer under clean: no accuracy with model 'fx-a'; available are 'ResNet9:base', "),
        (spec(attack="PGD"), r"no accuracy with attack 'PGD'; available are 'none', 'AutoPGD:8/255', 'FGSM:8/255'"),
        (
            {key: value for key, value in spec().items() if key != "dataset"},
            r"2 accuracies match; specify dataset \('cifar10/test', 'cifar10/test\[base_correct\]'\)",
        ),
        (
            spec("base", model="ResNet9:base", adaptive=True, **UNDER_AUTO_PGD),
            r"2 rows of the report match; specify labels \('predicted', 'true'\) or protocol \('faithful', 'sound'\)",
        ),
        (spec(metric="accuracy"), "unknown key 'metric'; known are table, run, our_attack, model, "),
        ({"table": "003_table1", "run": "fixer"}, "has no our_attack; required are table, run, our_attack"),
        ("003_table1", "must be a mapping with keys table, run, our_attack, got '003_table1'"),
    ],
)
def test_errors_are_one_line(entry, message):
    with pytest.raises(UserError, match=message) as caught:
        join.join(ROWS, [entry])
    assert "\n" not in str(caught.value)


def test_entries_for_another_experiment_are_omitted():
    config = {"run": {"fixer": {"train_fraction": 0.01, "epochs": 60}}}
    when = {"run.fixer.train_fraction": 0.1, "run.fixer.epochs": 60}
    held, reasons = join.applicable([spec(when=when), spec()], config)
    assert held == [spec()] and reasons == ["run.fixer.train_fraction is 0.01"]
    assert join.applicable([spec(when={"run.fixer.epochs": 60})], config) == ([spec(when={"run.fixer.epochs": 60})], [])
    with pytest.raises(UserError, match=r"when: unknown config key run\.fixer\.depth"):
        join.applicable([spec(when={"run.fixer.depth": 1})], config)


def test_configs_name_published_numbers():
    papers = {entry["table"][:3] for name in WITH_PUBLISHED for entry in config_of(name).published}
    assert papers == {"000", "001", "002", "003", "004"}


@pytest.mark.parametrize("name", WITH_PUBLISHED)
def test_entries_of_shipped_configs_exist(name):
    config = plain(config_of(name))
    evaluation = config["evaluation"]
    for entry in config["published"]:
        selected = join.select(entry)
        assert selected.metric == "accuracy"
        assert entry["run"] in config["runs"]
        assert entry["our_attack"] in (CLEAN, *evaluation["attacks"]["order"])
        assert entry.get("made_on", entry["run"]) in config["runs"]
        defense = entry.get("defense", "none")
        assert defense == "none" or evaluation["defenses"][defense]["run"] == entry["run"]
        # Attacks are paired with attacks of the same budget.
        assert (entry["our_attack"] == CLEAN) == (selected.attack == "none")
        if entry["our_attack"] != CLEAN:
            epsilon = evaluation["attacks"][entry["our_attack"]]["epsilon"]
            assert epsilon in selected.attack if epsilon != "inf" else selected.attack in ("CW_l2", "DeepFool")
    assert config["published_for"]["run"] == config["run"]
    held, reasons = join.applicable(config["published"], config)
    chosen = [(entry["table"], join.select(entry), entry["run"], entry["our_attack"]) for entry in held]
    assert held and len(set(chosen)) == len(chosen)
    assert len(held) + len(reasons) == len(config["published"])


def test_the_fixer_config_has_both_column_groups():
    selected = [join.select(entry) for entry in config_of("cifar_fixer").published]
    values = [entry.value for entry in selected]
    fx_b = [67.3, 74.6, 45.6, 71.4, 75.7, 48.4]
    assert values == [91.2, 4.6, 17.1, 100.0, 0.0, 13.0, 87.5, 81.1, 41.7, 93.8, 95.1, 45.2, *fx_b]


def test_without_distillation_the_fixers_are_fx_b():
    config = config_of("cifar_fixer")
    config.run.fixer.objective.distillation = 0.0
    held, _ = join.applicable(config.published, plain(config))
    assert {join.select(entry).model for entry in held} == {"ResNet9:base", "ResNet9+fx-b"} and len(held) == 12


def test_rows_of_a_paper_are_under_its_own_attacks():
    """What is called faithful is the attack of the paper, with the labels that its numbers suggest."""
    for name, faithful in {
        "cifar_fixer": {"fgsm", "pgd_50", "carlini_wagner", "art_auto_pgd", "art_auto_pgd_16"},
        "cifar_intelligent_mixup": {"fgsm", "bim_40", "pgd_100", "carlini_wagner_l2", "deepfool"},
        "cross_architecture": {"fgsm_1", "fgsm_2", "fgsm_3"},
    }.items():
        evaluation = plain(config_of(name))["evaluation"]
        assert set(evaluation["faithful_attacks"] or evaluation["attacks"]["order"]) == faithful
        assert evaluation["protocol"] == "faithful"
        labels = "true" if name == "cross_architecture" else "predicted"
        assert evaluation["transfer_labels"] == labels
    toolbox = "configs.papers.fixer.art_auto_pgd:art_auto_pgd"
    assert plain(config_of("cifar_fixer"))["evaluation"]["attacks"]["art_auto_pgd"]["name"] == toolbox


def test_a_checkpoint_counts_as_the_recipe_that_it_was_trained_with(tmp_path):
    config = config_of("cifar_fixer")
    trained = complete(config)

    def kept(**changes):
        run = {**trained["run"]["base"], **changes.pop("run", {})}
        data = {**trained["data"], **changes}
        (tmp_path / "run.json").write_text(json.dumps({"data": data, "run": run, "needs": {}, "seed": 0}))
        held, reasons = left_of(config, run__base__checkpoint=str(tmp_path))
        return len(held), reasons

    number = len(left_of(config)[0])
    assert kept(dir="elsewhere") == (number, set())
    assert kept(run={"epochs": 1}) == (0, {"run.base.epochs is 1"})
    assert kept(num_validation=1000) == (0, {f"run.base.checkpoint is {tmp_path}"})
    assert kept(run={"model": {"name": "resnet9", "width": 0.5}})[0] == 0
    (tmp_path / "run.json").unlink()
    assert left_of(config) == ([], {f"run.base.checkpoint is {tmp_path}"})


def test_an_override_moves_the_comparison_to_another_point():
    config = config_of("cifar_fixed_mix")
    config.run.mixed.targets.fixed_mix.weight = 0.4
    held, _ = join.applicable(config.published, plain(config))
    assert [join.select(entry).value for entry in held if entry["run"] == "mixed"] == [37.8, 9.7, 9.0]


def left_of(config, **changes):
    """``run: (entries that hold, reasons)`` after overrides, as `plain` data of keys with "__" for "."."""
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for key in parents:
            node = node[key]
        with node.ignore_type():
            node[last] = value
    # fx-b is another point of the config of fx-a.
    specs = [entry for entry in config.published if entry.get("model") != "ResNet9+fx-b"]
    held, reasons = join.applicable(specs, plain(config))
    return [(entry["run"], entry["our_attack"], entry.get("subset", "all")) for entry in held], set(reasons)


OF_THE_BASE = [
    ("base", attack, subset) for subset in ("all", "base_correct") for attack in ("clean", "art_auto_pgd", "fgsm")
]


@pytest.mark.parametrize(
    "changes, reasons",
    [
        ({"run__fixer__objective__distillation": 0.5}, {"run.fixer.objective.distillation is 0.5"}),
        ({"run__fixer__objective__tensor": "before"}, {"run.fixer.objective.tensor is before"}),
        ({"run__fixer__model__activation": "tanh"}, {"run.fixer.model.activation is tanh"}),
        (
            {"run__fixer__model__delta": 0.1, "run__fixer__attack__made_on": "self"},
            {"run.fixer.model.delta is 0.1, run.fixer.attack.made_on is self"},
        ),
        ({"run__fixer__train_fraction": 0.01}, {"run.fixer.train_fraction is 0.01"}),
        (
            {"run__fixer__attack": None},
            {", ".join(f"run.fixer.attack.{key} is None" for key in ("name", "norm", "epsilon")) + ", and 6 more"},
        ),
    ],
)
def test_a_changed_method_is_not_the_published_one(changes, reasons):
    assert left_of(config_of("cifar_fixer"), **changes) == (OF_THE_BASE, reasons)


@pytest.mark.parametrize(
    "changes",
    [
        {"run__base__optimizer__weight_decay": 0.0},
        {"run__base__model__pool3": True},
        {"data__num_validation": 1000},
        {"data__image_size": 16},
    ],
)
def test_changing_what_all_rows_depend_on_unpairs_all(changes):
    held, reasons = left_of(config_of("cifar_fixer"), **changes)
    assert held == [] and len(reasons) == 1


def test_a_changed_attack_unpairs_its_own_rows():
    held, reasons = left_of(config_of("cifar_fixer"), evaluation__attacks__art_auto_pgd__num_steps=100)
    assert {attack for _, attack, _ in held} == {"clean", "fgsm"} and len(held) == 8
    assert reasons == {"evaluation.attacks.art_auto_pgd.num_steps is 100"}
    held, _ = left_of(config_of("cifar_fixer"), evaluation__transfer_labels="true")
    assert [entry for entry in held if entry[0] == "fixer"] == [("fixer", "clean", s) for s in ("all", "base_correct")]
    assert len(held) == 8
    held, reasons = left_of(config_of("cifar_distribution_regression"), evaluation__defenses__copies__num_draws=7)
    assert held == OF_THE_BASE and reasons == {"evaluation.defenses.copies.num_draws is 7"}


def test_settings_without_effect_on_results_unpair_nothing():
    config = config_of("cifar_fixer")
    changes = {
        "run__fixer__log_every": 7,
        "data__dir": "x",
        "evaluation__pictured": "",
    }
    held, reasons = left_of(config, **changes)
    assert len(held) == 12 and not reasons


def test_another_run_of_the_experiment_does_not_matter():
    held, reasons = left_of(config_of("cifar_two_updates"), run__fgsm__epochs=3)
    assert held == [("pgd", "pgd_40", "all")] and reasons == {"run.fgsm.epochs is 3"}


@pytest.mark.parametrize("name", WITH_PUBLISHED)
def test_no_entry_survives_another_method(name):
    config = config_of(name)
    for run in {entry["run"] for entry in config.published}:
        config.run[run].optimizer.weight_decay = 0.123
    assert left_of(config)[0] == []


def test_entries_hold_for_the_experiment_that_is_built():
    config = config_of("digits_fixer")
    join.publish(config, [spec(**UNDER_AUTO_PGD)])
    built = complete(config)
    assert join.applicable(built["published"], built) == ([built["published"][0]], [])
    built["run"]["base"]["batch_size"] = 1
    assert join.applicable(built["published"], built) == ([], ["run.base.batch_size is 1"])


def write_report(folder, rows, **config):
    folder.mkdir()
    found = report.Report(report.SCHEMA_VERSION, "", config, {}, rows, [], [], [], [])
    (folder / "report.json").write_text(json.dumps(found._asdict()))
    return str(folder)


@pytest.fixture
def measured(tmp_path):
    when = {"seed": 1}
    requested = [spec(), spec(**UNDER_AUTO_PGD), spec(our_attack="fgsm", attack="FGSM:8/255"), spec(when=when)]
    return write_report(tmp_path / "a", ROWS, published=requested, seed=0)


def test_the_command_prints_published_and_our_numbers(measured, tmp_path, capsys):
    other = write_report(tmp_path / "b", ROWS[:1], published=[spec()])
    assert command.main([f"--workdir={measured},{other}", f"--csv={tmp_path / 'comparison.csv'}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Paper 003 (fixers), Table 1" in printed
    assert "omitted: 1 published for a different experiment: seed is 0" in printed
    assert "not measured" in printed and "transfer" in printed
    assert printed.count("robust accuracy") == printed.count("is not robust accuracy") == 4
    with (tmp_path / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == output.CSV_COLUMNS
    assert [line["workdir"] for line in lines] == [measured] * 3 + [other]
    numbers = [[line[head] for head in ("published", "ours", "difference", "overlap", "kind")] for line in lines]
    assert numbers[:3] == [
        ["87.50", "86.00", "-1.50", "true", "clean"],
        ["81.10", "50.00", "-31.10", "false", "transfer"],
        ["41.70", "", "", "", ""],
    ]


@pytest.mark.parametrize("config", [str(REPOSITORY / "configs" / "cifar_fixer.py"), "cifar_fixer:auto_pgd"])
def test_published_can_come_from_another_config(config, tmp_path, capsys):
    folder = write_report(tmp_path / "a", ROWS, **plain(config_of("cifar_fixer")) | {"published": []})
    assert command.main([f"--workdir={folder}", f"--config={config}"]) == 0
    assert "87.50" in capsys.readouterr().out


def test_numbers_from_a_config_file_are_for_its_own_experiment(tmp_path, capsys):
    config = config_of("cifar_fixer")
    config.run.fixer.model.delta = 0.1
    folder = write_report(tmp_path / "a", ROWS, **plain(config) | {"published": [], "published_for": {}})
    assert command.main([f"--workdir={folder}", f"--config={REPOSITORY / 'configs' / 'cifar_fixer.py'}"]) == 0
    printed = capsys.readouterr().out
    assert (
        "87.50" not in printed and "omitted: 6 published for a different experiment: run.fixer.model.delta" in printed
    )


def test_the_command_lists_and_prints_published_tables(capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in published.TABLES)
    assert command.main(["--table=003_table1"]) == 0
    printed = capsys.readouterr().out
    assert "91.2 ±0.8" in printed and "From paper: printed in a table." in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give exactly one of --workdir=FOLDER, --table=NAME and --list"),
        (["--list", "--table=003_table1"], "give exactly one of"),
        (["--list", "--csv=x.csv"], "--csv and --config require --workdir=FOLDER"),
        (["--table=9"], "unknown published table '9'"),
        (["--tables"], "unrecognized arguments: --tables"),
        (["--workdir=nowhere"], "no report at nowhere/report.json"),
        (["--workdir={}", "--config=nothing.py"], "no config file at nothing.py"),
        (["--workdir={}"], "has no `published` entries in its config"),
    ],
)
def test_errors_on_the_command_line(arguments, message, tmp_path, capsys):
    folder = write_report(tmp_path / "a", ROWS)
    assert command.main([argument.format(folder) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and message in captured.err


@pytest.mark.parametrize("entry", [spec(run="other"), spec(when={"seed": 1})])
def test_a_folder_without_counterparts_is_an_error(entry, tmp_path, capsys):
    folder = write_report(tmp_path / "a", ROWS, published=[entry], seed=0)
    assert command.main([f"--workdir={folder}"]) == 2
    assert "has no results to compare with published numbers: " in capsys.readouterr().err


def test_the_module_runs():
    found = subprocess.run([sys.executable, "-m", "advjax.papers", "--table=9"], capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
