"""SIGTERM is remembered while there is work to save; the agreement of several processes is in test_devices.py."""

import os
import signal

from advjax.runtime.preemption import Preemption


def test_sigterm_is_remembered_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested() and preemption.requested()
    assert signal.getsignal(signal.SIGTERM) is before
