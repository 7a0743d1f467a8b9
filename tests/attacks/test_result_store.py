"""The store of results: parts survive, damage and foreign results are refused in one line, nothing is left behind."""

import errno
import json
import os
import pathlib
import shutil
import stat

import numpy as np
import pytest

from advjax.attacks import result_store
from advjax.attacks.result_store import ResultStore
from advjax.types import UserError

IDENTITY = {"attack": "pgd", "seed": 3, "bounds": [0.0, 1.0], "variables": None}
FINGERPRINT = {"clean_logits": np.linspace(-3, 3, 24, dtype=np.float32).reshape(8, 3)}
PART = {
    "images": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "broken": np.asarray([True, False]),
    "seconds": np.asarray(1.5),
    "none": np.zeros((0, 5), np.int32),
}


def filled(folder, count=2):
    store = ResultStore(folder, IDENTITY, FINGERPRINT)
    for number in range(count):
        store.append({name: array + number if name == "images" else array for name, array in PART.items()})
    return store


def reopened(folder, identity=IDENTITY, fingerprint=FINGERPRINT):
    return ResultStore(folder, identity, fingerprint)


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_parts_come_back_in_order_and_stay_on_disk(tmp_path):
    folder = tmp_path / "deep" / "store"
    assert reopened(folder).parts() == []
    assert not folder.exists()
    filled(folder, 12)
    parts = reopened(folder).parts()
    assert len(parts) == 12
    for number, part in enumerate(parts):
        assert set(part) == set(PART)
        np.testing.assert_array_equal(part["images"], PART["images"] + number)
        for name in ("broken", "seconds", "none"):
            np.testing.assert_array_equal(part[name], PART[name])
            assert part[name].dtype == PART[name].dtype and part[name].shape == PART[name].shape
        assert isinstance(part["images"], np.memmap) and not part["images"].flags.writeable
    assert json.loads((folder / "identity.json").read_text()) == IDENTITY


@pytest.mark.parametrize("part", ["fact", "fingerprint"])
def test_results_of_an_earlier_version_are_refused(tmp_path, part):
    """Nobody knows what they lack, so that they cannot be told from those of another run."""
    if part == "fact":
        filled(tmp_path)
        new, lacking = {"identity": IDENTITY | {"new_fact": 1}}, "new fact"
    else:
        ResultStore(tmp_path, IDENTITY).append(PART)
        new, lacking = {"fingerprint": FINGERPRINT}, "clean logits"
    with pytest.raises(UserError) as caught:
        reopened(tmp_path, **new)
    reason = f"was written by an earlier version of advjax, which did not record {lacking}"
    assert str(caught.value) == f"{tmp_path} {reason}: delete it or name another folder"


def test_a_second_process_goes_on_where_the_first_stopped(tmp_path):
    filled(tmp_path / "store", 1)
    reopened(tmp_path / "store").append({"images": np.ones(3)})
    assert [set(part) for part in reopened(tmp_path / "store").parts()] == [set(PART), {"images"}]


def test_without_a_folder_nothing_is_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = ResultStore(None, IDENTITY)
    store.append(PART)
    assert store.parts() == [] and everything(tmp_path) == []


def test_an_empty_folder_is_used(tmp_path):
    filled(tmp_path, 1)
    assert len(reopened(tmp_path).parts()) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"attack": "bim", "bounds": [0.0, 2.0]}, "attack, bounds"),
        ({"variables": "abc"}, "variables"),
    ],
)
def test_results_of_another_run_are_refused(tmp_path, change, named):
    filled(tmp_path)
    with pytest.raises(UserError) as caught:
        reopened(tmp_path, IDENTITY | change)
    assert str(caught.value) == (
        f"{tmp_path} belongs to another run ({named} differ): delete it or name another folder"
    )


def test_a_fact_less_is_another_run(tmp_path):
    filled(tmp_path)
    with pytest.raises(UserError, match=r"\(seed differ\)"):
        reopened(tmp_path, {name: fact for name, fact in IDENTITY.items() if name != "seed"})


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        (lambda a: a * np.float32(1 + 1e-6), True),
        (lambda a: a + np.float32(2e-4), True),
        (lambda a: a + np.float32(4e-4), False),
        # Gradients at a kink: a quarter of the rows may differ, not more.
        (lambda a: np.concatenate([-a[:2] + 1, a[2:]]), True),
        (lambda a: np.concatenate([-a[:3] + 1, a[3:]]), False),
        (lambda a: a[:-1], False),
        (lambda a: a.astype(np.float64), False),
        (lambda a: np.full_like(a, np.nan), False),
    ],
)
def test_a_fingerprint_is_compared_up_to_rounding(tmp_path, change, accepted):
    filled(tmp_path)
    other = {"clean_logits": change(FINGERPRINT["clean_logits"])}
    if accepted:
        assert len(reopened(tmp_path, fingerprint=other).parts()) == 2
    else:
        with pytest.raises(UserError, match=r"\(clean logits differ\)"):
            reopened(tmp_path, fingerprint=other)


@pytest.mark.parametrize("fingerprint", [None, {}, {"gradients": FINGERPRINT["clean_logits"]}])
def test_another_kind_of_fingerprint_is_refused(tmp_path, fingerprint):
    filled(tmp_path)
    with pytest.raises(UserError, match="clean logits"):
        reopened(tmp_path, fingerprint=fingerprint)


def test_equal_gaps_in_a_fingerprint_are_equal(tmp_path):
    gaps = {"gradients": np.asarray([np.nan, np.inf, -np.inf, 1.0])}
    ResultStore(tmp_path, IDENTITY, gaps).append(PART)
    assert len(reopened(tmp_path, fingerprint=gaps).parts()) == 1
    for other in ([np.nan, np.inf, np.inf, 2.0], [0.0, 0.0, 0.0, 0.0]):
        with pytest.raises(UserError, match="gradients"):
            reopened(tmp_path, fingerprint={"gradients": np.asarray(other)})


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def saved(path, array):
    np.save(path, array)


IMAGES, CONTENTS = "00001/images.npy", "00001/contents.json"
DAMAGE = {
    "empty array": lambda folder: (folder / IMAGES).write_bytes(b""),
    "cut in the header": lambda folder: cut(folder / IMAGES, 0.1),
    "cut in the data": lambda folder: cut(folder / IMAGES, 0.9),
    "not an array": lambda folder: (folder / IMAGES).write_bytes(b"not an array at all" * 20),
    "an archive": lambda folder: np.savez((folder / IMAGES).open("wb"), a=np.ones(3)),
    "a pickle": lambda folder: np.save(folder / IMAGES, np.asarray([{}], object), allow_pickle=True),
    "another dtype": lambda folder: saved(folder / IMAGES, PART["images"].astype(np.float64)),
    "another shape": lambda folder: saved(folder / IMAGES, PART["images"][:1]),
    "empty array cut": lambda folder: cut(folder / "00001/none.npy", 0.5),
    "missing array": lambda folder: (folder / IMAGES).unlink(),
    "a folder for an array": lambda folder: ((folder / IMAGES).unlink(), (folder / IMAGES).mkdir()),
    "missing contents": lambda folder: (folder / CONTENTS).unlink(),
    "torn contents": lambda folder: cut(folder / CONTENTS, 0.5),
    "contents of another kind": lambda folder: (folder / CONTENTS).write_text("[1, 2]"),
    "contents that say nothing": lambda folder: (folder / CONTENTS).write_text('{"images": 3}'),
    "contents of binary": lambda folder: (folder / CONTENTS).write_bytes(b"\xff\xfe\x00"),
    "missing part": lambda folder: shutil.rmtree(folder / "00000"),
    "torn identity": lambda folder: cut(folder / "identity.json", 0.5),
    "missing identity": lambda folder: (folder / "identity.json").unlink(),
    "empty identity": lambda folder: (folder / "identity.json").write_bytes(b""),
    "identity of another kind": lambda folder: (folder / "identity.json").write_text("[]"),
    "cut fingerprint": lambda folder: cut(folder / "fingerprint/clean_logits.npy", 0.7),
    "missing fingerprint": lambda folder: (folder / "fingerprint/clean_logits.npy").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_line(tmp_path, damage):
    filled(tmp_path)
    DAMAGE[damage](tmp_path)
    with pytest.raises(UserError) as caught:
        reopened(tmp_path).parts()
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} is damaged: delete the folder to start afresh (") and "\n" not in message


def test_what_an_older_version_wrote_is_told_in_one_line(tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, identity=np.asarray("abc"))
    for use in (lambda: reopened(path), lambda: ResultStore(path, IDENTITY).append(PART)):
        with pytest.raises(UserError) as caught:
            use()
        assert "is a file, not a folder of results (older versions wrote such files): delete it" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_leftovers_of_an_interrupted_write_are_ignored_and_removed(tmp_path):
    folder = tmp_path / "store"
    filled(folder, 1)
    leftover, beside = folder / ".incomplete.00001", tmp_path / ".incomplete.store"
    for path in (leftover, beside):
        path.mkdir()
        (path / "images.npy").write_bytes(b"half")
    assert len(reopened(folder).parts()) == 1
    reopened(folder).append(PART)
    assert len(reopened(folder).parts()) == 2 and not leftover.exists()
    shutil.rmtree(folder)
    filled(folder, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("full", ["np.save", "fsync", "rename"])
@pytest.mark.parametrize("first", [True, False])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, full, first):
    folder = tmp_path / "store"
    if not first:
        filled(folder, 1)
    before = everything(tmp_path)

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half_saved(path, array, **options):
        pathlib.Path(path).write_bytes(b"half")
        fail()

    with monkeypatch.context() as patch:
        if full == "np.save":
            patch.setattr(result_store.np, "save", half_saved)
        else:
            patch.setattr(result_store.os, full, fail)
        with pytest.raises(UserError, match=f"^results cannot be saved in {folder}: No space left on device$"):
            reopened(folder).append(PART)
    assert everything(tmp_path) == before
    reopened(folder).append(PART)
    assert len(reopened(folder).parts()) == 1 + (not first)


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    filled(tmp_path, 1)
    before = everything(tmp_path)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(result_store.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reopened(tmp_path).append(PART)
    assert everything(tmp_path) == before


def test_two_writers_do_not_overwrite_each_other(tmp_path, monkeypatch):
    filled(tmp_path, 1)
    monkeypatch.setattr(result_store, "_numbers", lambda folder: set())
    with pytest.raises(UserError, match="results cannot be saved"):
        reopened(tmp_path).append({"images": np.zeros(1)})
    monkeypatch.undo()
    np.testing.assert_array_equal(reopened(tmp_path).parts()[0]["images"], PART["images"])


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synchronized, names = set(), {}
    fsync, rename = os.fsync, os.rename

    def recording_fsync(descriptor):
        synchronized.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def recording_rename(source, target):
        names[str(target)] = {str(path) for path in [source, *pathlib.Path(source).rglob("*")]} - synchronized
        rename(source, target)

    monkeypatch.setattr(result_store.os, "fsync", recording_fsync)
    monkeypatch.setattr(result_store.os, "rename", recording_rename)
    filled(tmp_path / "store", 1)
    assert names == {str(tmp_path / "store"): set(), str(tmp_path / "store/00000"): set()}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    previous = os.umask(umask)
    try:
        filled(tmp_path / "store")
    finally:
        os.umask(previous)
    for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize(
    "arrays", [{"a": np.asarray(["text"])}, {"a": np.asarray([None])}, {"../a": np.ones(1)}, {"a/b": np.ones(1)}]
)
def test_what_it_does_not_take(tmp_path, arrays):
    with pytest.raises(ValueError, match="arrays of numbers under plain names"):
        ResultStore(tmp_path / "store", IDENTITY).append(arrays)
    assert (
        not list((tmp_path / "store").glob("*incomplete*")) and reopened(tmp_path / "store", IDENTITY, {}).parts() == []
    )
