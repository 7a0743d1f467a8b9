"""Damaged files of a folder: one line, or a job that recovers to the same bits; never a traceback or another number."""

import io
import json
import random
import shutil
import signal

import numpy as np
import pytest

from support import job

pytestmark = pytest.mark.slow

REFUSED = "one line and exit code 2"
RECOVERED = "the job recovers and ends with the same bits"

JSON_FORMS = {
    "empty": lambda text: "",
    "torn": lambda text: text[: len(text) // 2],
    "binary": lambda text: "\x00\x7f" * 20,
    "null": lambda text: "null",
    "a list": lambda text: "[1, 2]",
    "without keys": lambda text: "{}",
    "numbers for values": lambda text: json.dumps(dict.fromkeys(json.loads(text), 3)),
    "half of the keys": lambda text: json.dumps(dict(list(json.loads(text).items())[::2])),
}


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of a finished folder."""
    workdir = tmp_path / "work"
    shutil.copytree(undisturbed[0], workdir)
    return workdir


@pytest.fixture(scope="module")
def stopped_in_training(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("training") / "work"
    running = job.Job(*job.arguments(workdir))
    metrics = workdir / "robust" / "metrics.jsonl"
    assert running.signal_when(signal.SIGTERM, lambda: metrics.exists() and metrics.read_text().count("\n") >= 4)
    assert running.wait().code == 42, running.said()
    return workdir


@pytest.fixture(scope="module")
def stopped_in_evaluation(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluation") / "work"
    running = job.Job(*job.arguments(workdir))
    assert running.signal_when(signal.SIGTERM, lambda: any(workdir.glob("unfinished/fgsm*/00001")))
    assert running.wait().code == 42, running.said()
    return workdir


def copied(folder, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(folder, workdir)
    return workdir


def same_or_one_line(finished, workdir, undisturbed):
    """The two outcomes that are right; which of them it was."""
    if finished.code == 0:
        assert job.results(workdir) == undisturbed[1]
        return RECOVERED
    assert finished.error
    return REFUSED


@pytest.mark.parametrize("form", JSON_FORMS)
def test_run_json(form, finished, fault):
    path = finished / "base" / "run.json"
    with fault("run.json damaged", "eight forms: torn, binary, other types, missing keys, ...", REFUSED):
        path.write_text(JSON_FORMS[form](path.read_text()))
        before = job.files(finished)
        assert str(path.parent) in job.run(*job.arguments(finished)).only_line
        assert job.files(finished) == before


@pytest.mark.parametrize("form", JSON_FORMS)
def test_config_json(form, finished, fault):
    path = finished / "config.json"
    with fault("config.json damaged", "the same forms, evaluated from the folder", REFUSED):
        path.write_text(JSON_FORMS[form](path.read_text()))
        before = job.files(finished)
        assert job.run("--mode=evaluate", f"--workdir={finished}", "--trust_workdir").only_line
        assert job.files(finished) == before


FACTS = {
    **JSON_FORMS,
    "another count": lambda text: text.replace('"num_classes": 10', '"num_classes": 9'),
    "another size": lambda text: json.dumps({**json.loads(text), "num_examples": {"base": 96, "robust": 192}}),
    "a word for a size": lambda text: json.dumps({**json.loads(text), "image_shape": ["8", 8, 1]}),
}


@pytest.mark.parametrize("form", FACTS)
def test_data_json(form, stopped_in_training, tmp_path, undisturbed, fault):
    workdir = copied(stopped_in_training, tmp_path)
    path = workdir / "data.json"
    with fault("data.json damaged", "the same forms, and other values", RECOVERED):
        changed = FACTS[form](path.read_text())
        assert changed != path.read_text()
        path.write_text(changed)
        finished = job.run(*job.arguments(workdir))
        assert finished.code == 0, finished.said
        assert job.results(workdir) == undisturbed[1]


@pytest.mark.parametrize("form", ["torn", "without keys", "half of the keys"])
def test_split_json(form, finished, tmp_path, fault):
    path = finished / "split.json"
    with fault("split.json damaged", "torn, missing keys; given as data.index_file", REFUSED):
        path.write_text(JSON_FORMS[form](path.read_text()))
        other = tmp_path / "other"
        changes = (f"--config.data.index_file={path}", "--config.data.num_validation=0")
        assert str(path) in job.run(*job.arguments(other, *changes)).only_line
        assert not other.exists()


def flipped(content, chance):
    """One byte of a file changed."""
    content = bytearray(content)
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def without_entry(content, suffix):
    with np.load(io.BytesIO(content)) as file:
        kept = {name: file[name] for name in file.files if not name.endswith(suffix)}
    buffer = io.BytesIO()
    np.savez(buffer, **kept)
    return buffer.getvalue()


def with_entry(content, name, value):
    with np.load(io.BytesIO(content)) as file:
        kept = {key: file[key] for key in file.files}
    buffer = io.BytesIO()
    np.savez(buffer, **{**kept, name: value})
    return buffer.getvalue()


OUTCOME_FORMS = {
    "empty": lambda content: b"",
    "torn": lambda content: content[: len(content) // 2],
    "no npz file": lambda content: b"not an archive" * 30,
    "an array missing": lambda content: without_entry(content, "0/predictions"),
    "all facts missing": lambda content: without_entry(content, "outcomes"),
    "an array of another length": lambda content: with_entry(content, "0/predictions", np.zeros(3, np.int32)),
    "an array of another type": lambda content: with_entry(content, "0/labels", np.array(["a", "b"])),
    "facts of another kind": lambda content: with_entry(content, "outcomes", np.array("[3]")),
    "a byte flipped": lambda content: content[:300] + bytes([content[300] ^ 4]) + content[301:],
}


@pytest.mark.parametrize("form", OUTCOME_FORMS)
def test_outcomes_npz(form, finished, fault):
    path = finished / "outcomes.npz"
    with fault("outcomes.npz damaged", "nine forms, then compared", REFUSED):
        path.write_bytes(OUTCOME_FORMS[form](path.read_bytes()))
        assert str(finished) in job.run("--mode=compare", f"--workdir={finished}").only_line


@pytest.mark.parametrize("form", JSON_FORMS)
def test_report_json(form, finished, fault):
    path = finished / "report.json"
    with fault("report.json damaged", "eight forms, then compared", REFUSED):
        path.write_text(JSON_FORMS[form](path.read_text()))
        assert str(finished) in job.run("--mode=compare", f"--workdir={finished}").only_line


METRICS_FORMS = {
    "torn last line": lambda lines: [*lines, '{"step": 48, "ki'],
    "torn line in between": lambda lines: [lines[0][: len(lines[0]) // 2] + "\n", *lines],
    "a step that is a word": lambda lines: [*lines, '{"step": "7", "kind": "train"}\n'],
    "a step that is a fraction": lambda lines: [*lines, '{"step": 7.5, "kind": "train"}\n'],
    "a step that is null": lambda lines: [*lines, '{"step": null, "kind": "train"}\n'],
    "a step to come": lambda lines: [*lines, '{"step": 99999, "kind": "train"}\n'],
    "without a step": lambda lines: [*lines, '{"kind": "train"}\n'],
    "a list": lambda lines: [*lines, "[7]\n"],
    "binary": lambda lines: [*lines, "\x00\x01\x02\n"],
}


@pytest.mark.parametrize("form", METRICS_FORMS)
def test_metrics_jsonl(form, stopped_in_training, tmp_path, undisturbed, fault):
    workdir = copied(stopped_in_training, tmp_path)
    path = workdir / "robust" / "metrics.jsonl"
    with fault("metrics.jsonl damaged", "nine forms: torn lines, wrong steps, ...", RECOVERED):
        path.write_text("".join(METRICS_FORMS[form](path.read_text().splitlines(keepends=True))))
        finished = job.run(*job.arguments(workdir))
        assert finished.code == 0, finished.said
        assert job.results(workdir) == undisturbed[1]


def forget(store, field):
    """Removes a field of a part as if it had never been written."""
    part = store / "00001"
    contents = json.loads((part / "contents.json").read_text())
    del contents[field]
    (part / "contents.json").write_text(json.dumps(contents))
    (part / f"{field}.npy").unlink()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


STORE_FORMS = {
    **{f"without {field}": lambda store, field=field: forget(store, field) for field in ("success", "rows", "images")},
    "array missing": lambda store: (store / "00001" / "success.npy").unlink(),
    "flipped success": lambda store: flip(store / "00001" / "success.npy"),
    "flipped pixel": lambda store: flip(store / "00001" / "images.npy"),
    "flipped predictions": lambda store: flip(store / "00000" / "misclassified.npy"),
    "torn contents": lambda store: (store / "00001" / "contents.json").write_text('{"succ'),
    "torn identity": lambda store: (store / "identity.json").write_text('{"sta'),
    "first part missing": lambda store: shutil.rmtree(store / "00000"),
    "empty identity": lambda store: (store / "identity.json").write_text(""),
}


@pytest.mark.parametrize("form", STORE_FORMS)
def test_a_store_of_results(form, stopped_in_evaluation, tmp_path, fault):
    workdir = copied(stopped_in_evaluation, tmp_path)
    store = next(path.parent for path in sorted(workdir.glob("unfinished/fgsm*/00001")))
    with fault("a store of results damaged", "eleven forms: missing fields, flipped bytes, torn files", REFUSED):
        STORE_FORMS[form](store)
        refused = job.run(*job.arguments(workdir))
        assert str(store) in refused.error and "delete" in refused.error


def test_copies_of_training_images(stopped_in_training, tmp_path, fault):
    workdir = copied(stopped_in_training, tmp_path)
    (images,) = workdir.glob("copies/*/00000/images.npy")
    with fault("copies of training images damaged", "one flipped bit", REFUSED):
        flip(images)
        refused = job.run(*job.arguments(workdir))
        assert str(images.parents[1]) in refused.error and "delete" in refused.error


def test_one_byte_of_the_only_checkpoint_of_a_finished_run(tmp_path, fault):
    workdir, select_last = tmp_path / "work", "--config.run.base.select=last"
    assert job.run(*job.arguments(workdir, select_last)).code == 0
    expected, chance, outcomes = job.results(workdir), random.Random(0), set()
    *others, last = sorted((workdir / "base" / "checkpoints").iterdir(), key=lambda step: int(step.name))
    for step in others:
        shutil.rmtree(step)
    path = max((last / "state").rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    outcome = "weights: one line and exit code 2; optimizer state: the same bits, since weights are enough"
    # Weights and optimizer state are about half of the file each.
    for _ in range(6):
        with fault("one bit of the only checkpoint", "flipped at random in a finished run", outcome):
            path.write_bytes(flipped(whole, chance))
            finished = job.run(*job.arguments(workdir, select_last))
            outcomes.add(finished.code)
            if finished.code == 0:
                assert job.results(workdir) == expected
            else:
                assert "is damaged" in finished.error
    assert outcomes == {0, 2}


@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit_anywhere(seed, stopped_in_evaluation, stopped_in_training, tmp_path, undisturbed, fault):
    chance = random.Random(seed)
    workdir = copied((stopped_in_training, stopped_in_evaluation)[seed % 2], tmp_path)
    # Metrics have no checksums: a digit may change, in a curve. What else is not counted is written anew.
    paths = [path for path in sorted(workdir.rglob("*")) if path.is_file() and path.stat().st_size]
    path = chance.choice([path for path in paths if path.name != "metrics.jsonl" and "tfevents" not in path.name])
    with fault(
        "one bit of any file but metrics", "flipped at random in an interrupted job", f"{RECOVERED}, or {REFUSED}"
    ):
        path.write_bytes(flipped(path.read_bytes(), chance))
        same_or_one_line(job.run(*job.arguments(workdir)), workdir, undisturbed)
