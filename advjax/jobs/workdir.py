"""The folder of an experiment: what it holds, and whether that belongs to the config at hand.

::

    <workdir>/config.json      the complete config
    <workdir>/data.json        what models depend on of the data, so that a model can be restored without them
    <workdir>/split.json       which examples train, validate and, if they are taken from the same split, test
    <workdir>/copies/          adversarial copies of training images, see `advjax.jobs.adversarial_augmentation`
    <workdir>/<run>/           run.json, checkpoints/, metrics.jsonl, TensorBoard events
    <workdir>/report.json, report.html, outcomes.npz, adversarial/, unfinished/      see `advjax.jobs.evaluate`
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from advjax import data
from advjax.experiment import defaults
from advjax.experiment.from_config import complete, from_config
from advjax.experiment.spec import DataFacts, Experiment, Run
from advjax.models import blocks
from advjax.runtime import checkpoint
from advjax.runtime.devices import is_main_process
from advjax.runtime.files import write_atomically
from advjax.runtime.named_function import refuse_foreign_names
from advjax.training.step import evaluation_variables
from advjax.types import PyTree, UserError, Variables

_NEVER_BUILT = ("title", "published", "published_for")
"""Keys of a config that nothing is built from; a title may look like the name of a function."""

_DIVIDING = ("fractions", "num_folds", "index_file")
"""Keys of ``data`` by which test images may be a part of the training split."""

Notify = Callable[[str], None]
"""Receives what people should know, a line at a time."""


@contextlib.contextmanager
def locked(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other jobs out of a folder; the operating system releases it however this process ends.

    A folder that the work refuses before it writes anything is not left behind.

    Raises:
      UserError: another process is working in the folder.
    """
    if not is_main_process():
        yield
        return
    folder = pathlib.Path(workdir)
    if not os.fspath(workdir) or (folder.exists() and not folder.is_dir()):
        raise UserError(f"workdir must name a folder, got {os.fspath(workdir)!r}" + " (a file)" * folder.is_file())
    is_new, lock = not folder.exists(), folder / ".lock"
    folder.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is working in {workdir}: wait for it, or choose another --workdir"
            ) from None
        try:
            yield
        finally:
            if is_new and list(folder.iterdir()) == [lock]:
                lock.unlink()
                folder.rmdir()


def read_config(workdir: str | os.PathLike[str], trusted: bool = False) -> dict[str, Any]:
    """The complete config that a folder was trained with.

    Args:
      workdir: the folder.
      trusted: whether the config may name functions outside advjax and its installed configs, that is, run code.

    Raises:
      UserError: there is none, it cannot be read, or it names such a function and is not trusted.
    """
    path = pathlib.Path(workdir, "config.json")
    if not path.exists():
        raise UserError(f"{workdir} holds no experiment: there is no {path}")
    config = _read_json(path)
    if not trusted:
        refuse_foreign_names({key: part for key, part in config.items() if key not in _NEVER_BUILT}, str(path))
    return complete(config)


def open_experiment(config: Mapping[str, Any], workdir: str | os.PathLike[str]) -> Experiment:
    """The experiment of a complete config, without reading its data if the folder knows what it needs of them.

    Raises:
      UserError: something in the config makes no sense, or the data are needed and cannot be read.
    """
    return from_config(config, _stored_facts(config, workdir))


def write_experiment(experiment: Experiment, config: Mapping[str, Any], workdir: str | os.PathLike[str]) -> None:
    """Writes down config, data facts and splits; done by the main process."""
    if not is_main_process():
        return
    folder, division = pathlib.Path(workdir), experiment.load_data().division
    _write_json(folder / "config.json", config)
    facts = {**_data_identity(config), **experiment.facts._asdict()}
    _write_json(folder / "data.json", {**facts, "sha256": _digest(facts)})
    data.write_index(folder / "split.json", division, division.parts, meta=config["data"])


def claim(run: Run, workdir: str | os.PathLike[str]) -> None:
    """Writes down which run the folder of a run holds.

    Raises:
      UserError: it holds the run trained in another way, or what was written down is damaged.
    """
    path = pathlib.Path(workdir) / run.name / "run.json"
    if run.is_taken:
        return
    if path.exists():
        if difference := _first_difference(_stored_identity(path, run), run.identity):
            key, there, here = difference
            raise UserError(
                f"{path.parent} holds run {run.name!r} of another configuration ({key} is {there!r} there, {here!r} "
                f"here): choose another --workdir, or remove {path.parent} to train it anew"
            )
    elif is_main_process():
        _write_json(path, run.identity)


def restore(run: Run, workdir: str | os.PathLike[str], image_shape: tuple[int, int, int], notify: Notify) -> Variables:
    """The variables of a trained run: of its best or last checkpoint, as its plan says.

    Raises:
      UserError: there is no intact checkpoint, or it belongs to another run than the one described.
    """
    if run.given is not None:
        _check_shapes(run, run.given, image_shape, f"what {run.identity['run']['model']['name']} returns")
        return run.given
    folder = run.checkpoint or os.path.join(workdir, run.name)
    which = "best" if run.plan.select == "best" else "latest"
    restored = checkpoint.restore_variables(
        os.path.join(folder, "checkpoints"), which=which, best_metric=run.plan.select_metric, notify=notify
    )
    variables = evaluation_variables(restored.state)
    _check_shapes(run, variables, image_shape, folder)
    _check_origin(run, restored.config, folder)
    return variables


def _check_shapes(run: Run, variables: Variables, image_shape: tuple[int, int, int], where: str) -> None:
    """Refuses variables of another network than the one described."""
    expected = jax.eval_shape(lambda: blocks.init(run.model, jax.random.key(0), image_shape))
    there, here = (_shapes(tree) for tree in (variables, expected))
    if there != here:
        path = sorted(there.items() ^ here.items())[0][0]
        raise UserError(
            f"{where} holds another model than run {run.name!r} describes: "
            f"{path} is {there.get(path, 'absent')} there and {here.get(path, 'absent')} here"
        )


def _check_origin(run: Run, there: Mapping[str, Any], folder: str) -> None:
    """Refuses variables that belong to another run than the one described.

    A run's own checkpoint must come from the very run.  Another run's, used as its checkpoint, must be of the same
    network and may not have been trained on the test images: where these are a part of the training split, it must have
    held out the same part.
    """
    if not there.keys() >= run.identity.keys():
        # Saved by `fit` alone, which does not know what the run is: the shapes have to do.
        return
    there, here = _completed(there, run.identity), run.identity
    if run.checkpoint:
        divided = any(identity["data"][way] for identity in (there, here) for way in _DIVIDING)
        if not divided:
            _check_unseen(there, here, folder)
        there, here = (_network_and_shares(identity, divided) for identity in (there, here))
    if difference := _first_difference(there, here):
        key, old, new = difference
        raise UserError(
            f"{folder} holds a run of another configuration than run {run.name!r} ({key} is {old!r} there, {new!r} "
            "here): evaluate it with the configuration that it was trained with"
        )


def _check_unseen(there: Mapping[str, Any], here: Mapping[str, Any], folder: str) -> None:
    """Refuses a network that was trained on images of the test split, unless these are meant to be training images."""
    train_split, test_split = there["data"]["train_split"], here["data"]["test_split"]
    is_meant = here["data"]["test_on_training"] or there["data_set"] != here["data_set"]
    if not is_meant and data.have_common_examples(train_split, test_split):
        raise UserError(
            f"{folder} was trained on {train_split!r}, which has images of data.test_split {test_split!r}: choose a "
            "test split without them, or say data.test_on_training"
        )


def _network_and_shares(identity: Mapping[str, Any], with_shares: bool) -> dict[str, Any]:
    """The parts of a run's identity that say which network it is, and which images it has not seen."""

    def model(identity: Mapping[str, Any]) -> dict[str, Any]:
        described = dict(identity["run"]["model"])
        # The base may have another name there.
        return described | ({"base": model(identity["needs"][described["base"]])} if described.get("base") else {})

    found: dict[str, Any] = {"run": {"model": model(identity)}}
    return found | ({"data": identity["data"], "seed": identity["seed"]} if with_shares else {})


def _stored_facts(config: Mapping[str, Any], workdir: str | os.PathLike[str]) -> DataFacts | None:
    """What the folder knows of the data, if it is intact and about the data of this config and all its runs."""
    try:
        stored = json.loads(pathlib.Path(workdir, "data.json").read_bytes())
        digest = stored.pop("sha256")
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        # The data themselves say the same.
        return None
    wanted = json.loads(json.dumps(_data_identity(config)))
    if digest != _digest(stored) or {key: stored.get(key) for key in wanted} != wanted:
        return None
    if not set(config["runs"]) <= set(stored["num_examples"]):
        return None
    if _name_at_path(config["data"]) not in (None, stored["name"]):
        return None
    facts = DataFacts(**{field: stored[field] for field in DataFacts._fields})
    return facts._replace(image_shape=tuple(facts.image_shape))


def _name_at_path(config: Mapping[str, Any]) -> str | None:
    """The name of data that are called after the path where they lie; None for others, which are the same anywhere."""
    path = pathlib.Path(config["dir"]).expanduser()
    return {"folder": path.resolve().name, "npz": path.stem}.get(config["name"])


def _data_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the facts about the data depend on; where they lie and how they are read makes no difference."""
    sizes = ("train_fraction", "undersample", "copies")
    runs = {name: {key: config["run"][name][key] for key in sizes} for name in config["runs"]}
    described = {key: value for key, value in config["data"].items() if key not in ("dir", "num_workers", "stream")}
    return {"data": described, "seed": config["seed"], "runs": runs}


def _stored_identity(path: pathlib.Path, run: Run) -> dict[str, Any]:
    try:
        return _completed(_read_json(path), run.identity)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: it does not describe a run; restore it, or remove {path.parent} to train it anew"
        ) from error


def _completed(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """The stored identity of a run with the defaults of keys that did not exist yet when it was written."""
    described = {"data": defaults.DATA, "run": defaults.RUN}
    filled = {
        part: {key: known[key] for key in here[part] if key in known} | there[part] for part, known in described.items()
    }
    needs = {name: _completed(spec, here["needs"].get(name, spec)) for name, spec in there["needs"].items()}
    return json.loads(json.dumps({**there, **filled, "needs": needs}))


def _first_difference(there: Any, here: Any, path: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            if found := _first_difference(there.get(key), here.get(key), f"{path}.{key}" if path else key):
                return found
        return None
    return None if there == here else (path, there, here)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_json(path: pathlib.Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or choose another --workdir") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object; restore it, or choose another --workdir")
    return content


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
