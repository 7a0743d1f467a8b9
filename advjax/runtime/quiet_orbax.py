"""What Orbax says besides its exceptions, which tell everything that a user can act on."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Drops Orbax's log messages, unless absl is more verbose than by default, and tracebacks of late arrays."""
    with _without_late_arrays(), _without_log():
        yield


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    if absl_logging.get_verbosity() > absl_logging.WARNING:
        yield
        return

    def passes(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


@contextlib.contextmanager
def _without_late_arrays() -> Iterator[None]:
    """Where one array cannot be written or read, Orbax closes the event loop that the others still report to.

    Each of them then prints a traceback, from a thread of TensorStore and on behalf of no object.  Everything else that
    Python cannot raise is reported as before.
    """
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = report
