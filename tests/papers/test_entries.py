"""Every entry: its configs build at every scale, and its cells are published numbers."""

import pytest

from advjax.experiment.from_config import from_config
from advjax.experiment.spec import DataFacts
from advjax.papers import published, recipe
from advjax.papers.cells import cells, specs_of
from advjax.papers.entries import ENTRIES, find
from advjax.papers.running import jobs_of, run_digest, under_auto_attack
from advjax.types import UserError

SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def facts_of(config):
    """What a workdir would know of the data, so that they need not be read."""
    side = config["data"]["image_size"]
    shape = SHAPES.get(config["data"]["name"], (64, 64, 3))
    shape = (side, side, shape[2]) if side else shape
    return DataFacts(config["data"]["name"], shape, 10, 100, dict.fromkeys(config["runs"], 400))


def distinct_parts():
    """The parts of all entries, without those that several share."""
    found = {}
    for entry in ENTRIES.values():
        for part in entry.parts:
            found.setdefault((part.name, part.config, part.argument, repr(part.changes)), (entry, part))
    return list(found.values())


@pytest.mark.parametrize("entry, part", distinct_parts(), ids=lambda value: value.name)
def test_a_part_builds_at_its_smallest_and_largest_size(entry, part):
    for scale in ("full", "tiny"):
        config = recipe.build(part, entry.scales[scale], 3)
        if scale == "full" and config["evaluation"]["defenses"]["order"]:
            # Whether a defense fits its network is found out by tracing many draws of it.
            continue
        built = from_config(config, facts_of(config))
        assert [run.name for run in built.runs] == config["runs"] and built.seed == 3
    plan = recipe.build(part, entry.scales["tiny"], 0)["evaluation"]
    assert plan["num_examples"] <= 16 and plan["num_checked"] == 0


@pytest.fixture(scope="module")
def jobs():
    """The jobs of every entry at the paper's size."""
    return {name: jobs_of(entry, "full", "nowhere", seeds=1) for name, entry in ENTRIES.items()}


@pytest.fixture(scope="module")
def all_cells(jobs):
    """The cells of every entry, none of them measured."""
    return {name: cells(jobs[name], entry.tables) for name, entry in ENTRIES.items()}


def test_the_cells_of_every_entry_are_published(all_cells):
    for name, found in all_cells.items():
        assert {cell.published.table for cell in found} - {""} == set(ENTRIES[name].tables)
        for cell in found:
            assert (cell.theirs is None) == (cell.published.table == "")
            # Attacks through many draws of a defense are on fewer images even there.
            few = ("evaluation.num_examples is 1000",) if cell.model == "drn with copies" else ()
            assert cell.ours is None and cell.reduced == few


def test_no_two_results_of_a_part_are_the_same_cell(jobs):
    for name, found in jobs.items():
        for job in found:
            shown = [
                spec for spec in specs_of(job.part) if "unpublished" in spec or spec["table"] in ENTRIES[name].tables
            ]
            assert len(cells([job], ENTRIES[name].tables)) == len(shown), (name, job.part.name)


def test_the_rows_that_the_cells_are_compared_with_will_be_measured(jobs):
    for job in (job for found in jobs.values() for job in found):
        attacks = {"clean", *job.config["evaluation"]["attacks"]["order"]}
        specs = job.part.specs if job.part.specs is not None else job.config["published"]
        for spec in (*specs, *job.part.unpublished):
            for row in spec.get("mean_of", (spec,)):
                assert row["run"] in job.config["run"] and row.get("our_attack", spec["our_attack"]) in attacks


@pytest.mark.parametrize("name", ENTRIES)
def test_auto_attack_has_a_budget_wherever_it_will_be_run(name):
    entry = ENTRIES[name]
    for scale in entry.scales:
        found = jobs_of(entry, scale, "nowhere", seeds=1)
        attacked = [job for job in found if job.has_auto_attack]
        for job in attacked:
            attacks = under_auto_attack(job.config, job.scale)["evaluation"]["attacks"]
            assert list(attacks["order"]) == ["auto_attack"] and attacks["auto_attack"]["epsilon"] not in ("inf", None)
        # Where a part with cells leaves it out, another one of the entry has the same networks.
        names = {name for job in attacked for name in job.config["runs"]}
        left_out = [job for job in found if not job.part.auto_attack and job.part.specs != ()]
        assert not entry.scales[scale].num_auto_attack or all(set(job.config["runs"]) <= names for job in left_out)


def test_every_published_accuracy_has_a_cell(all_cells):
    """Besides an experiment that the report leaves out, means over fifty epochs, and another data set's base."""
    covered = {cell.published[:6] for found in all_cells.values() for cell in found}
    lost = {}
    for table in published.TABLES:
        rows = [row for row in published.read(table) if row.metric == "accuracy" and row[:6] not in covered]
        if rows:
            lost[table] = len(rows)
    assert lost == {"001_last_epochs": LAST_EPOCHS, "001_pgd100": PGD_100, "003_text": 3}


LAST_EPOCHS, PGD_100 = (
    sum(row.metric == "accuracy" for row in published.read(table)) for table in ("001_last_epochs", "001_pgd100")
)


def test_noise_on_training_images_is_measured_on_images_that_were_trained_on():
    parts = [
        (entry.scales, part) for entry in ENTRIES.values() for part in entry.parts if part.name.startswith("noise_")
    ]
    assert len(parts) == 3
    for scales, part in parts:
        # The smallest size only shows that an entry runs.
        for scale in scales.keys() - {"tiny"}:
            config = recipe.build(part, scales[scale], 0)
            assert config["data"]["test_split"] == config["data"]["train_split"]
            assert {run["train_fraction"] for run in config["run"].values()} == {1.0}


def test_the_tables_of_the_mixup_report_are_about_the_networks_before_the_last_epoch(jobs):
    last = {"001_table4": 799, "001_table6": 499, "001_table8_cifar10": 499}
    for name, epochs in last.items():
        runs = [
            (name, run) for job in jobs[name] for name, run in job.config["run"].items() if name in job.config["runs"]
        ]
        adversarial = [run for name, run in runs if run["objective"]["name"].endswith(":adversarial")]
        assert adversarial and {run["epochs"] for run in adversarial} == {epochs}


def test_at_every_size_each_class_of_a_benchmark_has_an_image():
    """Of the smallest one, CIFAR-10 with validation images left out, a class has about 4,000."""
    for entry in ENTRIES.values():
        for scale in entry.scales:
            for part in entry.parts:
                config = recipe.build(part, entry.scales[scale], 0)
                if config["data"]["name"] in SHAPES:
                    fractions = {name: config["run"][name]["train_fraction"] for name in config["runs"]}
                    assert min(fractions.values()) * 4000 >= 1, (entry.name, scale, part.name, fractions)


def test_entries_that_share_a_part_share_its_folder(tmp_path):
    folders = {}
    for name in ("003_table1", "003_figure6"):
        for job in jobs_of(ENTRIES[name], "small", tmp_path, 1):
            folders.setdefault(job.part.name, set()).add(job.folder)
    assert all(len(found) == 1 for found in folders.values())
    first, second = (jobs_of(ENTRIES["004_table1"], "small", tmp_path, 2)[i] for i in (0, 2))
    assert first.part == second.part and first.folder != second.folder


def test_parts_that_are_one_experiment_share_a_folder_whatever_they_are_called(tmp_path):
    own = jobs_of(ENTRIES["003_figure5_one_percent"], "mini", tmp_path, 1)
    for job in own:
        job.folder.mkdir(parents=True)
    ablation = jobs_of(ENTRIES["003_figure3"], "one_percent", tmp_path, 1)
    assert [job.folder for job in ablation[:2]] == [job.folder for job in own[:2]]
    others = {job.folder for job in ablation[2:]}
    assert len(others) == 6 and not others & {job.folder for job in own}
    # A folder of its own is preferred: it was there when parts were known by their names.
    named = own[0].folder.with_name(own[0].folder.name.replace(own[0].part.name, ablation[0].part.name))
    named.mkdir()
    assert jobs_of(ENTRIES["003_figure3"], "one_percent", tmp_path, 1)[0].folder == named


def test_figure_4_has_every_attack_on_every_network(all_cells):
    found = [cell.published for cell in all_cells["003_table1"] if cell.published.dataset == "cifar10/test"]
    attacks = {cell.attack for cell in found}
    assert len(attacks) == 6
    networks = {cell.model for cell in found}
    for network in networks:
        assert {cell.attack for cell in found if cell.model == network} == attacks
    assert {cell.training for cell in found if cell.model == "ResNet9+fx-a"} == {"10% of train, AutoPGD"}


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        *((f"001_table{number}", "001_table1") for number in (4, 5, 7, 8)),
        *((name, "001_table2") for name in ("001_table6", "001_table7_cifar10", "001_table8_cifar10")),
    ],
)
@pytest.mark.parametrize("scale", ["full", "small"])
def test_adversarial_training_starts_from_the_clean_network_of_the_tables(name, clean, scale, tmp_path):
    (first,) = jobs_of(ENTRIES[clean], scale, tmp_path, seeds=1)
    wanted = run_digest(first.config, "vanilla")
    starts = [job for job in jobs_of(ENTRIES[name], scale, tmp_path, seeds=1) if "clean" in job.config["runs"]]
    assert starts and all(run_digest(job.config, "clean") == wanted for job in starts)
    assert first.config["run"]["vanilla"]["select"] == "best" and first.config["data"]["validate_on_test"]


def test_single_epochs_are_attacked_as_the_tables_are():
    """The attack of validation is written down a second time: the two must not drift apart."""
    checked = set()
    for entry in ENTRIES.values():
        for part in entry.parts:
            config = recipe.full_config(part)
            attacks = {spec["run"]: spec["our_attack"] for spec in part.specs or () if "when" in spec}
            for run, name in attacks.items():
                if name == "clean":
                    continue
                attack = {key: value for key, value in config["run"][run]["validation_attack"].items() if value}
                assert attack.pop("made_on") == "self"
                tables = config["evaluation"]["attacks"][name]
                assert attack | {"epsilon": float(attack["epsilon"])} == tables | {"epsilon": float(tables["epsilon"])}
                checked.add((part.config, name))
    assert len(checked) == 3


@pytest.mark.parametrize("paper", sorted({name[:3] for name in ENTRIES}))
def test_every_change_of_a_scale_is_about_some_part_of_the_paper(paper):
    """Parts without the key are left alone, so a misspelled one would change nothing."""
    entries = [entry for name, entry in ENTRIES.items() if name.startswith(paper)]
    scales = [scale for entry in entries for name, scale in entry.scales.items() if name != "tiny"]
    parts = {(part.config, part.argument): part for entry in entries for part in entry.parts}.values()
    paths = {(config, path) for scale in scales for config, some in scale.of_config.items() for path in some}
    paths |= {("", path) for scale in scales for path in scale.changes}
    for config, path in paths:
        full = [recipe.full_config(part) for part in parts if config in ("", part.config)]
        assert any(not recipe._apply(one, {path: 0}, lenient=True) for one in full), (config, path)


def test_a_scale_changes_sizes_and_nothing_else():
    (part, *_) = ENTRIES["003_table1"].parts
    scale = recipe.Scale(width=0.125, share=0.5, epochs=1 / 3, num_examples=100, num_stochastic=7)
    full, small = recipe.full_config(part), recipe.build(part, scale, 4, {"cifar10": "there"})
    base, fixer = small["run"]["base"], small["run"]["fixer"]
    assert (base["model"]["width"], base["train_fraction"], base["epochs"]) == (0.125, 0.5, 13)
    assert (fixer["train_fraction"], fixer["epochs"], small["seed"], small["data"]["dir"]) == (0.05, 20, 4, "there")
    assert (
        small["evaluation"]["num_examples"] == 100 and small["evaluation"]["attacks"] == full["evaluation"]["attacks"]
    )
    assert fixer["objective"] == full["run"]["fixer"]["objective"]
    stochastic = next(part for part in ENTRIES["003_table1"].parts if part.name.startswith("drn"))
    assert recipe.build(stochastic, scale, 0)["evaluation"]["num_examples"] == 7
    assert recipe.build(part, recipe.Scale(), 0) == full


def test_a_figure_has_the_name_of_the_paper_too():
    assert find("004_figure2") is ENTRIES["004_figures1_2"]
    assert find("001_figure9") is ENTRIES["001_table4"] and find("003_figure4") is ENTRIES["003_table1"]
    with pytest.raises(UserError, match=r"001_table3 is in the entries 001_table1 \(MNIST\) and"):
        find("001_table3")


def test_unknown_names_are_one_line():
    with pytest.raises(UserError, match=r"no entry is named '003_table2'; there are 004_section3"):
        find("003_table2")
    with pytest.raises(UserError, match=r"004_table1 has no scale 'huge'; it has full, small, tiny"):
        jobs_of(ENTRIES["004_table1"], "huge", "nowhere", 1)
    part = recipe.Part("part", "cifar_fixed_mix", changes={"run.nobody.epochs": 1})
    with pytest.raises(UserError, match=r"part part: unknown config key run\.nobody\.epochs"):
        recipe.full_config(part)
    with pytest.raises(UserError, match="no installed config nothing"):
        recipe.full_config(recipe.Part("part", "nothing"))
