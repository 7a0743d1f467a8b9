"""Folders that come from elsewhere write nothing outside of themselves and run no code; files follow the umask."""

import json
import shutil
import stat

import pytest

from support import job

pytestmark = pytest.mark.slow

REFUSED = "one line and exit code 2; nothing is written"


def renamed(config, kind, name):
    evaluation = config["evaluation"]
    if kind == "attack":
        evaluation["attacks"]["order"][0] = name
        evaluation["attacks"][name] = evaluation["attacks"].pop("fgsm")
    elif kind == "defense":
        evaluation["defenses"] = {"order": [name], name: {"name": "gaussian_smoothing", "std": 0.1, "run": "base"}}
    elif kind == "run":
        config["runs"][1] = name
        config["run"][name] = config["run"].pop("robust")
    else:
        copies = config["run"]["robust"]["copies"]
        copies["order"][0] = name
        copies[name] = copies.pop("fgsm")


@pytest.mark.parametrize("kind", ["attack", "defense", "run", "copies"])
@pytest.mark.parametrize("name", ["{outside}", "../outside", "a/b", "..", ".hidden", "x" * 300, "a\nb", ""])
def test_names_that_are_paths(kind, name, undisturbed, tmp_path, fault):
    workdir = tmp_path / "work"
    shutil.copytree(undisturbed[0], workdir)
    name = name.format(outside=tmp_path / "outside")
    with fault("names that are paths", "config.json of a folder names attacks, defenses, runs or copies so", REFUSED):
        config = json.loads((workdir / "config.json").read_text())
        renamed(config, kind, name)
        (workdir / "config.json").write_text(json.dumps(config))
        before = job.files(tmp_path)
        evaluate = ("--mode=evaluate", f"--workdir={workdir}", "--trust_workdir", "--save_adversarial=float32")
        assert "cannot be a name" in job.run(*evaluate).only_line
        assert job.files(tmp_path) == before


PLACES = {
    "the model": lambda config, name: config["run"]["base"]["model"].update(name=name),
    "an attack": lambda config, name: config["evaluation"]["attacks"]["fgsm"].update(name=name),
    "the data": lambda config, name: config["data"].update(name=name),
    "an objective": lambda config, name: config["run"]["base"]["objective"].update(name=name),
}


@pytest.mark.parametrize("place", PLACES)
def test_functions_that_are_not_ours(place, undisturbed, tmp_path, fault, monkeypatch):
    workdir, code = tmp_path / "work", tmp_path / "harmful.py"
    shutil.copytree(undisturbed[0], workdir)
    code.write_text(f"open({str(tmp_path / 'was here')!r}, 'w')\n\n\ndef function(num_classes):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    with fault("functions of other packages", "config.json of a folder names package.module:function", REFUSED):
        config = json.loads((workdir / "config.json").read_text())
        for run in config["run"].values():
            run["model"] = {"name": "lenet5"}
        PLACES[place](config, "harmful:function")
        (workdir / "config.json").write_text(json.dumps(config))
        assert (
            "'harmful:function', a function outside advjax"
            in job.run("--mode=evaluate", f"--workdir={workdir}").only_line
        )
        assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_everything_follows_the_umask(umask, tmp_path, fault):
    workdir, programs = tmp_path / "work", tmp_path / "programs"
    with fault("permissions", "umask 022, 027 and 002", "every file and folder follows it"):
        flags = (
            f"--compilation_cache={programs}",
            "--save_adversarial=uint8",
            "--config.run.robust.copies.format=uint8",
        )
        changes = ("--config.run.base.num_steps=8", "--config.run.robust.num_steps=8")
        finished = job.run(*job.arguments(workdir, *flags, *changes), umask=umask)
        assert finished.code == 0, finished.said
        ours = [workdir, *workdir.rglob("*"), *programs.rglob("*")]
        modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in ours}
        wanted = {str(path.relative_to(tmp_path)): (0o777 if path.is_dir() else 0o666) & ~umask for path in ours}
        assert modes == wanted
