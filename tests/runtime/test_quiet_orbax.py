"""What is dropped while Orbax works, and what is not."""

import asyncio
import gc
import sys
import threading

import pytest
import tensorstore

from advjax.runtime.quiet_orbax import quiet_orbax


@pytest.fixture
def reported(monkeypatch):
    """The exceptions that could not be raised and were reported."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: found.append(unraisable.exc_value))
    return found


def let_an_array_end_after_its_event_loop():
    """As an array does of which another could not be written."""
    promise, future = tensorstore.Promise.new()
    waiting = []

    async def fail():
        waiting.append(asyncio.ensure_future(wait()))
        await asyncio.sleep(0)
        raise OSError("no space left on device")

    async def wait():
        await future

    loop = asyncio.new_event_loop()
    with pytest.raises(OSError, match="no space"):
        loop.run_until_complete(fail())
    loop.close()
    late = threading.Thread(target=promise.set_result, args=(1,))
    late.start()
    late.join()


def fail_in_a_finalizer(message):
    class Failing:
        def __del__(self):
            raise RuntimeError(message)

    Failing()
    gc.collect()


def test_arrays_that_end_after_their_event_loop_are_not_reported(reported):
    let_an_array_end_after_its_event_loop()
    assert [str(error) for error in reported] == ["Event loop is closed"]
    with quiet_orbax():
        let_an_array_end_after_its_event_loop()
    assert len(reported) == 1


@pytest.mark.parametrize("message", ["Event loop is closed", "something else"])
def test_objects_that_cannot_raise_are_reported(message, reported):
    with quiet_orbax():
        fail_in_a_finalizer(message)
    assert [str(error) for error in reported] == [message]


def test_the_hook_is_put_back(reported):
    before = sys.unraisablehook
    with pytest.raises(KeyError), quiet_orbax():
        assert sys.unraisablehook is not before
        raise KeyError
    assert sys.unraisablehook is before
