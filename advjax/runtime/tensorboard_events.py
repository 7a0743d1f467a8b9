"""TensorBoard event files, written synchronously.

The writer of tensorboardX hands events to a thread: on a full disk that thread dies, and the next events wait for it
forever.  The format is a sequence of records, each of them a length (8 bytes), a checksum of it (4), an event, and a
checksum of that (4).
"""

import os
import socket
import struct
import time

from advjax.runtime.files import write_all


class EventFile:
    """A new event file in a folder; a context manager.

    Args:
      folder: must exist.
      purge_step: TensorBoard discards the events of earlier files from this step on; None for none.
    """

    def __init__(self, folder: str | os.PathLike[str], purge_step: int | None) -> None:
        # Slow to import, and of generated names.
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        path = os.path.join(folder, f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}")
        self._event = Event
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Writes one number.

        Raises:
          OSError: it cannot be written.
        """
        from tensorboardX.summary import scalar

        self._write(self._event(wall_time=time.time(), step=step, summary=scalar(tag, value)))

    def _write(self, event: "object") -> None:
        content: bytes = event.SerializeToString()  # pyright: ignore[reportAttributeAccessIssue]
        length = struct.pack("<Q", len(content))
        write_all(self._descriptor, length + _checksum(length) + content + _checksum(content))


def _checksum(content: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    return struct.pack("<I", masked_crc32c(content))
