"""Progress on stderr."""

import jax

from advjax.runtime import compile_time, progress


class Clock:
    def __init__(self):
        self.now, self.compiling = 100.0, 7.0

    def monotonic(self):
        return self.now


def test_the_time_left_leaves_compilation_out(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "seconds_compiling", lambda: clock.compiling)
    with progress.progress("attack", 100) as bar:
        # A minute of compilation, then 20 images in 10 seconds.
        clock.now, clock.compiling = 170.0, 67.0
        bar.advance(20, robust=5)
    assert capsys.readouterr().err.splitlines() == ["attack 20/100  2/s  0:00:40 left  robust 5"]


def test_compilation_is_counted():
    before = compile_time.seconds_compiling()
    jax.jit(lambda x: x * 3.25 + 1)(2.0)
    compiled = compile_time.seconds_compiling()
    assert compiled > before
    assert compile_time.seconds_compiling() == compiled
