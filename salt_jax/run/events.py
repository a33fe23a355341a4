"""TensorBoard event files, written by the caller's own thread: a full disk is an error where it happens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """One process's events of one phase.

    ``tensorboardX.SummaryWriter`` would write them from a thread that nobody hears dying, one event a scalar.

    Args:
      folder: made if absent.
      start: steps done before; TensorBoard forgets what an earlier process wrote of later ones.

    Raises:
      OSError: here and in every method, from the file system.
    """

    def __init__(self, folder: Path, start: int) -> None:
        # Here, because it imports torch wherever that is installed, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        at = {"step": start + 1, "wall_time": time.time()}
        self._file.write_event(Event(file_version="brain.Event:2", **at))
        self._file.write_event(Event(session_log=SessionLog(status=SessionLog.START), **at))
        self._file.flush()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """All scalars of a step."""
        scalars = [self._summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        event = self._event(step=step, wall_time=time.time(), summary=self._summary(value=scalars))
        self._file.write_event(event)
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()
