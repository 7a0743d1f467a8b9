"""Requests to stop are remembered until the state is saved; how processes agree is tested in test_devices.py."""

import os
import signal

import pytest

from advjax.runtime.preemption import Preemption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_the_old_handlers_return(number, capfd):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    with Preemption() as preemption:
        assert not preemption.requested()
        os.kill(os.getpid(), number)
        assert preemption.requested() and preemption.requested()
    assert {each: signal.getsignal(each) for each in before} == before
    notice = capfd.readouterr().err
    assert ("press Ctrl-C again to stop without saving" in notice) == (number == signal.SIGINT)


@pytest.fixture
def interruptible():
    """Python's own handler: a shell starts its background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_ends_the_work(interruptible):
    with pytest.raises(KeyboardInterrupt), Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
