"""The state of a long computation on disk, so that an interruption costs nothing."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping

import numpy as np

from advjax.types import UserError

SAVE_EVERY = 60.0
"""Seconds between two saves that nobody insists on."""


@dataclasses.dataclass
class StateFile:
    """An npz file (``.npz`` is not added), replaced as a whole so that it is never half written.

    Attributes:
      path: None keeps nothing.
      meaning: what a file's identity depends on, for the message about one that belongs to something else.
    """

    path: str | os.PathLike[str] | None
    meaning: str
    saved: float = dataclasses.field(default=-SAVE_EVERY, init=False)

    def load(self, identity: str) -> dict[str, np.ndarray] | None:
        """The arrays saved last, None if there are none.

        Raises:
          UserError: the file cannot be read, or belongs to another identity.
        """
        if self.path is None or not os.path.exists(self.path):
            return None
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                arrays = dict(stored)
            there = str(arrays.pop("identity"))
        except Exception as error:
            raise UserError(f"state file {os.fspath(self.path)} cannot be read: delete it to start afresh") from error
        if there != identity:
            raise UserError(
                f"state file {os.fspath(self.path)} belongs to another run ({self.meaning} differ): "
                "delete it or name another file"
            )
        return arrays

    def save_sometimes(self, identity: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Saves unless the last save was less than ``SAVE_EVERY`` seconds ago."""
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self.save(identity, arrays)

    def save(self, identity: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces what was saved before; ``identity`` is taken as a name."""
        if self.path is None:
            return
        path = pathlib.Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez(file, identity=np.asarray(identity), **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
        self.saved = time.monotonic()
