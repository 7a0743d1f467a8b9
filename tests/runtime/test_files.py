import os
import re
import stat

import pytest

from advjax.runtime.files import write_atomically
from support.paths import REPOSITORY


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, done, fsync, replace = tmp_path / "folder" / "report.json", [], os.fsync, os.replace

    def synchronized(descriptor):
        done.append(("fsync", stat.S_ISDIR(os.fstat(descriptor).st_mode)))
        fsync(descriptor)

    def renamed(old, new):
        assert os.path.getsize(old) == 3
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synchronized)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomically(path, lambda file: file.write(b"new"))
    assert done == [("fsync", False), "rename", ("fsync", True)]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "report.json", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_says_of_which_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*report\.json'"):
        write_atomically(tmp_path / "report.json", lambda file: os.write(os.open("/dev/full", os.O_WRONLY), b"new"))


def test_nobody_else_replaces_files():
    """All other writers use ``write_atomically``, or only ever add to a folder of their own."""
    ways = re.compile(r"\.write_(text|bytes)\(|os\.(replace|rename)\(|\.rename\(|mkstemp|NamedTemporaryFile")
    known = {"attacks/result_store.py", "benchmarks/measure.py", "runtime/checkpoint.py", "runtime/files.py"}
    folder = REPOSITORY / "advjax"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if ways.search(path.read_text())}
    assert found == known
