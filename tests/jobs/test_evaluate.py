"""An evaluation with everything in it: a defense with randomness, queries, noise, and images that are kept."""

import pathlib
import shutil
import threading

import numpy as np
import pytest
from absl.testing import flagsaver

from advjax import attacks, main
from advjax.attacks.combine import restarts
from advjax.data import pixels
from advjax.evaluation import adversarial_sets, report
from advjax.evaluation.outcomes import read_outcomes
from advjax.experiment import defaults, registry
from advjax.experiment.build_attack import build_attack
from advjax.experiment.from_config import complete, from_config
from advjax.experiment.presets import with_preset
from advjax.jobs import evaluate, rescore, train
from advjax.runtime.preemption import PreemptedError
from advjax.types import UserError
from support.experiments import devices

NUM_SAMPLES = 2
NOISES = defaults.gaussian_noises("0.08")
DEFENSES = {
    "order": ("smoothing",),
    "smoothing": {
        "name": "gaussian_smoothing",
        "std": 0.1,
        "run": "other",
        "num_draws": 3,
        "num_votes": 1,
        "num_samples": NUM_SAMPLES,
    },
}
ATTACKS = {
    "order": ("pgd", "square", *NOISES),
    "pgd": {"name": "pgd", "epsilon": "0.15", "num_steps": 5, "step_size": "0.05"},
    "square": {"name": "square", "epsilon": "0.15", "num_queries": 20},
    **NOISES,
}
MODELS = [("base", "none"), ("other", "none"), ("other", "smoothing")]


def config_of(runs=("base", "other"), **evaluation):
    """Two small networks, which are compiled in no time."""
    optimizer = {"name": "adam", "schedule": {"name": "one_cycle", "peak_learning_rate": 0.005}}
    method = {"model": {"name": "lenet5"}, "batch_size": 64, "optimizer": optimizer}
    # One size of batches, or each attack would be compiled three times.
    plan = {"attacks": ATTACKS, "num_examples": 24, "batch_size": 4, "pictured": "pgd", "num_checked": 0, **evaluation}
    return defaults.experiment(
        data={"name": "digits", "image_size": 16, "num_validation": 20},
        runs=runs,
        run={"base": defaults.run(num_steps=200, **method), "other": defaults.run(num_steps=150, **method)},
        evaluation=plan,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("work"))
    train.train(config_of(), folder, devices(), print)
    return folder


@pytest.fixture(scope="module")
def found(workdir):
    curve = {"attack": {"name": "fgsm"}, "epsilons": ("0", "0.15"), "num_examples": 24}
    plan = config_of(defenses=DEFENSES, save_adversarial="float32", curve=curve)
    return evaluate.evaluate_experiment(plan, workdir, devices(), print)


def clean_images():
    return pixels(from_config(config_of()).load_data().test.images[:24])


def rows_of(found, run, defense):
    return [row for row in found.rows if (row["run"], row["defense"], row["subset"]) == (run, defense, "all")]


def test_every_model_is_attacked_in_every_way(found):
    knowledge = {model: {(row["attack"], row["knowledge"]) for row in rows_of(found, *model)} for model in MODELS}
    noise = {(name, "nothing") for name in NOISES}
    itself = {("clean", "none"), ("pgd", "everything"), ("square", "scores"), ("worst case", "everything"), *noise}
    transfer = {(attack, "source model") for attack in ("pgd", "square")}
    oblivious = {(attack, "undefended model") for attack in ("pgd", "square")}
    assert knowledge["base", "none"] == itself
    assert knowledge["other", "none"] == itself | transfer
    for defense in DEFENSES["order"]:
        assert knowledge["other", defense] == itself | transfer | oblivious


def test_a_defended_model_alone_sees_the_whole_attack_on_it(workdir, tmp_path):
    attack = {"order": ("pgd",), "pgd": {**ATTACKS["pgd"], "returns": "last"}}
    plan = config_of(
        attacks=attack, defenses=DEFENSES, made_on=("base", "other+smoothing"), protocol="faithful", num_examples=120
    )
    found = evaluate.evaluate_experiment(plan, workdir, devices(), print, lambda: False, str(tmp_path))
    faithful = {
        (row["run"], row["defense"], row["made_on"], row["knowledge"], row["eot_samples"])
        for row in found.rows
        if row["protocol"] == "faithful" and row["attack"] == "pgd"
    }
    assert faithful == {
        ("base", "none", "base", "everything", 1),
        ("other", "none", "base", "source model", 1),
        ("other", "smoothing", "base", "source model", 1),
        # Of every run with a defense.
        ("other", "smoothing", "other", "undefended model", 1),
        ("other", "smoothing", "other", "everything", NUM_SAMPLES),
    }
    clean, whole, verdict = (
        entry
        for entry in read_outcomes(tmp_path / "outcomes.npz")
        if (entry.run, entry.defense) == ("other", "smoothing")
        and (entry.attack == "clean" or (entry.attack == "pgd" and entry.adaptive and entry.eot_samples == NUM_SAMPLES))
    )
    assert (whole.protocol, verdict.protocol) == ("faithful", "sound")
    wrong = clean.predictions != clean.labels
    # Whole: also on images that need no attack, and to the last step.
    assert np.any(wrong) and np.all(whole.distances > 0) and np.all(whole.steps == 5)
    assert np.mean(verdict.steps) < 5 and np.any(verdict.distances[wrong] == 0)


def test_the_curve_of_every_model_begins_at_its_clean_accuracy_and_falls(found):
    curves = {}
    for point in found.curve:
        curves.setdefault((point["run"], point["defense"]), []).append((point["epsilon"], point["accuracy"]))
    assert list(curves) == MODELS
    for model, points in curves.items():
        assert [epsilon for epsilon, _ in points] == [0.0, 0.15]
        assert points[1][1] < points[0][1]
        if model[1] == "none":
            (clean,) = (row for row in rows_of(found, *model) if row["attack"] == "clean")
            assert points[0][1] == clean["accuracy"]


def test_an_evaluation_that_is_stopped_does_not_wait_for_a_report_card(workdir, monkeypatch, tmp_path):
    begun, may_end = threading.Event(), threading.Event()

    def endless(*arguments):
        begun.set()
        may_end.wait(60)
        return []

    monkeypatch.setattr(evaluate, "_examined", endless)
    try:
        with pytest.raises(PreemptedError):
            evaluate.evaluate_experiment(
                config_of(num_checked=8), workdir, devices(), print, begun.is_set, str(tmp_path)
            )
        assert begun.is_set() and not may_end.is_set()
    finally:
        may_end.set()


@pytest.mark.parametrize("during", ["report cards", "curve"])
def test_an_evaluation_stops_also_after_its_attacks(during, workdir, monkeypatch, tmp_path):
    asked, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(evaluate, "measure", lambda *arguments: asked.set())
    monkeypatch.setattr(evaluate, "_examined", lambda *arguments: may_end.wait(60))
    curve = {"attack": {"name": "fgsm"}, "epsilons": ("0", "0.15"), "num_examples": 24}
    plan = config_of(curve=curve, num_checked=8 if during == "report cards" else 0)
    try:
        with pytest.raises(PreemptedError, match=during):
            evaluate.evaluate_experiment(plan, workdir, devices(), print, asked.is_set, str(tmp_path))
    finally:
        may_end.set()


def test_defenses_are_attacked_through_the_mean_of_their_draws(found):
    for model in MODELS:
        samples = [row["eot_samples"] for row in rows_of(found, *model) if row["knowledge"] == "everything"]
        assert set(samples) == ({1} if model[1] == "none" else {NUM_SAMPLES, 2 * NUM_SAMPLES})
        named = [check["name"] for check in found.checks if (check["run"], check["defense"]) == model]
        assert ("draws for a gradient" in named) == (model[1] != "none")
        assert {"bounds", "finite gradients"} <= set(named)


def test_robust_accuracy_is_what_all_adaptive_attacks_leave(found, workdir):
    outcomes = read_outcomes(f"{workdir}/outcomes.npz")
    assert [(entry["run"], entry["defense"]) for entry in found.summary] == MODELS
    for entry in found.summary:
        ways = {}
        for outcome in outcomes:
            if (outcome.run, outcome.defense) == (entry["run"], entry["defense"]) and outcome.attack != "worst case":
                ways.setdefault(outcome.knowledge, []).append(outcome.predictions == outcome.labels)
        worst = {knowledge: np.all(correct, axis=0) for knowledge, correct in ways.items()}
        assert entry["robust"]["accuracy"] == (worst["everything"] & worst["scores"]).mean()
        assert entry["white_box"]["accuracy"] == worst["everything"].mean()
        assert entry["queries"]["accuracy"] == worst["scores"].mean()
        assert entry["clean"]["accuracy"] == worst["none"].mean()
        assert entry["robust"]["accuracy"] < entry["clean"]["accuracy"]
        if "undefended model" in worst:
            assert entry["oblivious"]["accuracy"] == worst["undefended model"].mean()


def test_noise_is_the_same_for_every_model_and_no_attack(found, workdir):
    outcomes = [outcome for outcome in read_outcomes(f"{workdir}/outcomes.npz") if outcome.attack in NOISES]
    assert len(outcomes) == len(MODELS) * len(NOISES)
    for name in NOISES:
        sizes = [outcome.distances for outcome in outcomes if outcome.attack == name]
        assert all(np.array_equal(size, sizes[0]) for size in sizes)
        # 256 pixels, some of them clipped at black or white.
        std = 0.08 if name.endswith("std") else 0.08**0.5
        assert 0.3 * std * 16 < sizes[0].mean() < std * 16
    assert not any(report.is_robust_accuracy(row) or row["made_on"] for row in found.rows if row["attack"] in NOISES)


def test_kept_images_give_the_stored_verdicts(found, workdir):
    path = f"{workdir}/adversarial/pgd.other+smoothing.npz"
    plan = config_of(defenses=DEFENSES)
    kept, verdicts = rescore.rescore(plan, workdir, path, devices(), print)
    assert [verdict.differing for verdict in verdicts] == [None, None, 0]
    expected = ["source model", "source model", "everything"]
    assert [verdict.knowledge for verdict in verdicts] == expected
    row = next(
        r for r in rows_of(found, "other", "smoothing") if (r["attack"], r["eot_samples"]) == ("pgd", NUM_SAMPLES)
    )
    assert verdicts[2].attacked["accuracy"] == row["accuracy"]
    facts = kept.provenance
    assert (facts["attack"], facts["norm"], facts["epsilon"]) == ("pgd", "linf", 0.15)
    assert facts["spec"] == ATTACKS["pgd"] and facts["model_hash"] == row["model_hash"]
    assert facts["defense"]["name"] == "gaussian_smoothing" and facts["versions"]["jax"]
    np.testing.assert_allclose(kept.distances, np.abs(kept.images - clean_images()).max(axis=(1, 2, 3)), atol=1e-6)


def test_an_attack_on_the_undefended_run_is_oblivious_of_its_defenses(found, workdir):
    path = f"{workdir}/adversarial/square.other.npz"
    _, verdicts = rescore.rescore(config_of(defenses=DEFENSES), workdir, path, devices(), print)
    knowledge = [verdict.knowledge for verdict in verdicts]
    assert knowledge == ["source model", "scores", "undefended model"]


def test_images_in_8_bits_say_how_many_lose_their_effect(workdir, tmp_path):
    said = []
    plan = config_of(("base",), attacks={**ATTACKS, "order": ("pgd",)}, save_adversarial="uint8")
    found = evaluate.evaluate_experiment(plan, workdir, devices(), said.append, folder=str(tmp_path))
    path = f"{tmp_path}/adversarial/pgd.base.npz"
    kept, (verdict,) = rescore.rescore(plan, workdir, path, devices(), print)
    assert kept.images.dtype == np.uint8 and verdict.differing == 0
    facts = kept.provenance
    outcome = next(o for o in read_outcomes(tmp_path / "outcomes.npz") if o.adaptive)
    wrong, still = outcome.predictions != outcome.labels, kept.predictions != kept.labels
    assert (facts["num_wrong"], facts["num_lost"]) == (wrong.sum(), (wrong & ~still).sum())
    assert found.notes[0] == "evaluated on 24 of 359 images, the first"
    assert found.notes[1:] == [
        f"pgd on base: {facts['num_lost']} of {wrong.sum()} misclassifications are lost in 8 bits"
    ]
    assert found.notes[1] in said
    assert adversarial_sets.allowed(attacks.linf(0.15), clean_images(), pixels(kept.images)).all()


def test_presets_attack_with_the_pictured_epsilon():
    described = {**ATTACKS, "pgd": {**ATTACKS["pgd"], "epsilon": "8/255"}}
    curve = {"attack": {"name": "fgsm"}, "epsilons": (0.1,), "num_examples": 4}
    config = complete(config_of(attacks=described, curve=curve))
    for preset, name, stages in (("quick", "quick_check", 3), ("standard", "auto_attack", 4)):
        chosen = with_preset(config, preset)
        plan = from_config(chosen).evaluation
        (attack,) = plan.attacks
        assert (attack.name, attack.epsilon, attack.norm, len(attack.stages)) == (name, 8 / 255, "linf", stages)
        assert plan.curve is None and plan.pictured == name
        assert chosen["evaluation"]["attacks"]["order"] == [name]
        assert chosen["run"] == config["run"]
    assert with_preset(config, "paper") == config
    other = with_preset(complete(config_of(attacks={**ATTACKS, "order": (*NOISES, "square")}, pictured="")), "quick")
    assert from_config(other).evaluation.attacks[0].epsilon == 0.15
    with pytest.raises(UserError, match="preset quick needs an epsilon: the config has no attack with one"):
        with_preset(complete(config_of(attacks={**ATTACKS, "order": tuple(NOISES)}, pictured="")), "quick")


def test_a_report_stores_the_config_that_flags_have_changed(flags, workdir, tmp_path, preset):
    shutil.copytree(workdir, tmp_path / "work", ignore=shutil.ignore_patterns("quick", "report*", "adversarial"))
    given = dict(mode="evaluate", preset=preset, save_adversarial="float32", workdir=[str(tmp_path / "work")])
    with flagsaver.flagsaver(**given):
        main._run(print)
    stored = report.read_report(tmp_path / "work" / "quick" / "report.json").config["evaluation"]
    assert stored["save_adversarial"] == "float32" and stored["attacks"]["order"] == ["quick_check"]
    assert list((tmp_path / "work" / "quick" / "adversarial").iterdir())


@pytest.fixture
def flags():
    if not main.FLAGS.is_parsed():
        main.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(compilation_cache=""):
        yield main.FLAGS


@pytest.mark.parametrize(
    "given, message",
    [
        ({"mode": "compare"}, "nothing to compare: name one or more evaluated folders"),
        ({"mode": "train", "workdir": ["a", "b"]}, "several folders in --workdir: they can only be evaluated"),
        ({"mode": "evaluate", "workdir": ["a", "a"]}, "--workdir=a,a must name different folders"),
        ({"mode": "evaluate", "workdir": ["gs://a"]}, "--workdir=gs://a is not a folder"),
        ({"mode": "train", "preset": "quick"}, "--preset=quick needs --mode=evaluate"),
        ({"mode": "train", "adversarial": ["x"]}, "--adversarial needs --mode=evaluate"),
        ({"mode": "evaluate", "workdir": ["nowhere"]}, "nowhere holds no experiment"),
        ({"mode": "compare", "workdir": ["nowhere"]}, "no report at nowhere"),
        ({"mode": "train"}, "no config given"),
    ],
)
def test_flags_that_make_no_sense_are_one_clear_line(flags, given, message):
    with flagsaver.flagsaver(**given), pytest.raises(UserError, match=message):
        main._run(print)


@pytest.fixture
def preset(monkeypatch):
    """The quick preset as an attack of two steps."""

    def stages(threat_model):
        return (restarts("weak", attacks.bim(threat_model, num_steps=2, step_size=0.05), 1),)

    monkeypatch.setitem(registry.ATTACK_ENSEMBLES, "quick_check", stages)
    return "quick"


def test_a_folder_is_evaluated_with_a_preset_and_compared(flags, workdir, capsys, preset):
    with flagsaver.flagsaver(mode="evaluate", preset=preset, workdir=[workdir]):
        main._run(print)
    assert "quick_check" in capsys.readouterr().out
    with flagsaver.flagsaver(mode="compare", preset=preset, workdir=[workdir]):
        main._run(print)
    printed = capsys.readouterr().out
    outcomes = read_outcomes(f"{workdir}/quick/outcomes.npz")
    base, other = (next(o for o in outcomes if o.run == run and o.adaptive) for run in ("base", "other"))
    only_base = ((base.predictions == base.labels) & (other.predictions != other.labels)).sum()
    lines = [line.split() for line in printed.splitlines() if "linf 0.15" in line and "base" in line]
    assert ["linf", "0.15", "base", "other", str(only_base)] == lines[0][:5]


def test_two_folders_are_evaluated_and_compared_by_one_command(flags, workdir, capsys, preset, tmp_path):
    second = shutil.copytree(workdir, tmp_path / "second", ignore=shutil.ignore_patterns("quick", "report*"))
    with flagsaver.flagsaver(mode="evaluate", preset=preset, workdir=[workdir, str(second)]):
        main._run(print)
    printed = capsys.readouterr().out
    found = [report.read_report(f"{folder}/quick/report.json") for folder in (workdir, second)]
    accuracies = [
        {(row["run"], row["attack"]): row["accuracy"] for row in one.rows if row["adaptive"]} for one in found
    ]
    assert len(accuracies[0]) == 2 and accuracies[0] == accuracies[1]
    first = pathlib.Path(workdir).name
    # The same network in both folders: no image that only one of them has right.
    lines = [line for line in printed.splitlines() if f"{first}: base" in line and "second: base" in line]
    assert {line.split("  ")[0] for line in lines} == {"clean", "linf 0.15"}
    assert all(line.split()[-3:] == ["0", "0", "1"] for line in lines)


def test_kept_images_are_scored_from_the_command_line(flags, found, workdir, capsys):
    with flagsaver.flagsaver(mode="evaluate", workdir=[workdir], adversarial=[f"{workdir}/adversarial/pgd.base.npz"]):
        main._run(print)
    printed = capsys.readouterr().out
    assert "pgd (linf 0.15), made on base" in printed and "float32" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("base "))
    assert "everything" in line and line.rstrip().endswith("the same")


def test_noise_of_a_config_is_built_without_a_threat_model():
    named = build_attack("n", NOISES["gn08_variance"], "here")
    assert named.is_noise and named.epsilon is None and named.is_query and not named.is_examinable
    with pytest.raises(UserError, match="here: unknown key 'epsilon'; known are level, reading, bounds"):
        build_attack("n", {**NOISES["gn08_std"], "epsilon": 0.1}, "here")
    assert list(defaults.gaussian_noises()) == [
        f"gn{level}_{reading}" for level in ("01", "05", "08") for reading in ("std", "variance")
    ]
