"""The metrics of a run survive interruptions and damage; progress on the terminal."""

import contextlib
import json
import os
import pathlib
import pty
import re

import jax
import numpy as np
import pytest

from advjax.runtime import progress as progress_module
from advjax.runtime.metrics import MetricWriter, read_metrics
from advjax.runtime.progress import progress
from advjax.types import UserError


def write_steps(folder, steps, resume_step=None) -> None:
    with MetricWriter(folder, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, "train", {"loss": 1 / step})
            if step % 2 == 0:
                writer.write(step, "validation", {"robust_accuracy": step / 10})


def test_lines(tmp_path):
    with MetricWriter(tmp_path / "new" / "folder") as writer:
        writer.write(1, "train", {"loss": np.float32(0.1), "accuracy": jax.numpy.float32(0.5)})
        writer.write(2, "train", {"loss": float("nan"), "norm": float("-inf")})
        # Readable while the run goes on.
        assert len(read_metrics(tmp_path / "new" / "folder")) == 2
    path = tmp_path / "new" / "folder" / "metrics.jsonl"
    assert read_metrics(path) == [
        {"step": 1, "kind": "train", "loss": float(np.float32(0.1)), "accuracy": 0.5},
        {"step": 2, "kind": "train", "loss": None, "norm": None},
    ]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("torn", ["", '{"step": 6, "ki', '{"step": 6, "kind": "train", "loss": 0.5}'])
def test_resuming_equals_never_having_stopped(tmp_path, torn):
    write_steps(tmp_path / "whole", range(1, 9))
    write_steps(tmp_path / "resumed", range(1, 6))
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write_steps(tmp_path / "resumed", range(4, 9), resume_step=3)
    whole, resumed = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed
    assert not [path for path in (tmp_path / "resumed").iterdir() if path.name.endswith(".tmp")]


def test_without_resuming_everything_stays_but_a_torn_line(tmp_path):
    write_steps(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 2]
    write_steps(tmp_path, [1])
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 2, 1]


def test_a_failing_rewrite_loses_nothing(tmp_path, monkeypatch):
    write_steps(tmp_path, range(1, 6))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"), MetricWriter(tmp_path, resume_step=2):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="no metrics at"):
        read_metrics(tmp_path / "absent.jsonl")
    with MetricWriter(tmp_path / "other") as writer, pytest.raises(ValueError, match="step"):
        writer.write(1, "train", {"step": 2.0})


@pytest.mark.parametrize(
    "damage",
    [b"not json", b"", b'{"step": 2, "ki', b"\xff\x00", b"[1]", b"3", b'{"kind": "train"}', b'{"step": 2}']
    + [b'{"step": %s, "kind": "train"}' % step for step in (b'"2"', b"null", b"2.5", b"true", b"NaN")]
    + [b'{"step": 2, "kind": "train", "loss": NaN}'],
)
def test_a_damaged_line_blocks_nothing_and_is_reported_once(tmp_path, damage):
    """Reading skips it, resuming removes it."""
    write_steps(tmp_path / "whole", range(1, 7))
    write_steps(tmp_path / "torn", range(1, 6))
    path = tmp_path / "torn" / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], damage, *lines[2:]]) + b"\n")
    notices: list[str] = []
    records = read_metrics(path, notify=notices.append)
    assert [json.loads(line) for line in lines] == records
    assert len(notices) == 1 and "skipped 1 unreadable of 8 lines (line 3)" in notices[0] and "\n" not in notices[0]
    notices.clear()
    with MetricWriter(path.parent, resume_step=5, notify=notices.append) as writer:
        assert len(notices) == 1
        writer.write(6, "train", {"loss": 1 / 6})
        writer.write(6, "validation", {"robust_accuracy": 6 / 10})
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert read_metrics(path, notify=notices.append) and len(notices) == 1


def test_tensorboard_events(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    write_steps(tmp_path, [1, 2])
    (path,) = tmp_path.glob("events.out.tfevents.*")
    content, found = path.read_bytes(), {}
    while content:
        # A record is its length (8 bytes), a checksum (4), the event, a checksum (4).
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            found[event.step, value.tag] = value.simple_value
    assert found == pytest.approx(
        {(1, "train/loss"): 1.0, (2, "train/loss"): 0.5, (2, "validation/robust_accuracy"): 0.2}
    )


@pytest.mark.parametrize("pattern", ["metrics.jsonl", "events.*"])
def test_a_full_disk_is_one_line(tmp_path, pattern):
    with (
        pytest.raises(UserError, match=r"metrics cannot be written in .*No space left"),
        MetricWriter(tmp_path) as writer,
    ):
        writer.write(1, "train", {"loss": 1.0})
        (path,) = tmp_path.glob(pattern)
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor_of(path))
        writer.write(2, "train", {"loss": 1.0})
    # The record that could not be written is missing, and no other.
    assert [record["step"] for record in read_metrics(tmp_path)] == ([1] if pattern == "metrics.jsonl" else [1, 2])


def descriptor_of(path):
    """The number under which this process has the file open."""
    links = [link for link in pathlib.Path("/proc/self/fd").iterdir() if link.exists()]
    return next(int(link.name) for link in links if os.readlink(link) == str(path))


def test_only_process_0_speaks(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write_steps(tmp_path / "run", [1, 2])
    assert not (tmp_path / "run").exists()
    with progress("training", 2) as bar:
        bar.advance(2, loss=1.0)
    assert capfd.readouterr() == ("", "")


def test_plain_lines_without_a_terminal(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with progress("training", 7400, initial=20) as bar:
        for _ in range(25):
            now += 1.0
            bar.advance(2, loss=0.5)
            bar.advance(0, accuracy=0.25)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "training 40/7400  2/s  1:01:20 left  loss 0.5  accuracy 0.25",
        "training 60/7400  2/s  1:01:10 left  loss 0.5  accuracy 0.25",
        "training 70/7400  2/s  1:01:05 left  loss 0.5  accuracy 0.25",
    ]


def test_nothing_is_said_twice(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with progress("attacking", 10) as bar:
        now = 20.0
        bar.advance(10)
    assert capsys.readouterr().err == "attacking 10/10  0.5/s\n"


def test_last_line_also_after_an_error(capsys):
    with pytest.raises(RuntimeError), progress("attacking", 10):
        raise RuntimeError
    assert capsys.readouterr().err == "attacking 0/10  0/s  ? left\n"


def test_what_was_done_before_has_no_rate(capsys):
    with progress("attacking", 10, initial=10):
        pass
    assert capsys.readouterr().err == "attacking 10/10  done before\n"


def test_bar_on_a_terminal(monkeypatch):
    controller, terminal = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(progress_module.sys, "stderr", stderr)
        with progress("training [x]", 4, initial=1) as bar:
            for loss in (3.0, 2.0, 1.0):
                bar.advance(loss=loss)
        monkeypatch.undo()
    shown = ""
    with contextlib.suppress(OSError):  # How a terminal ends.
        while piece := os.read(controller, 4096):
            shown += piece.decode(errors="replace")
    os.close(controller)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).strip().splitlines()[-1]
    assert re.search(r"training \[x\] .*4/4 .*/s\s+loss 1", last), last
