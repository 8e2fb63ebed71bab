"""TensorBoard's event file, written without its background thread."""

from __future__ import annotations

import itertools
import os
import socket
import time
from io import BytesIO
from pathlib import Path

from torch import Tensor

from ..files.lines import write_all
from .tracker import Opening

FLUSH_SECONDS, FLUSH_BYTES = 30.0, 1 << 20


class Board:
    """Scalars and images for TensorBoard, in one new event file in `folder`.

    `torch.utils.tensorboard.SummaryWriter` writes in a thread, where a full disk ends in a traceback and, a call later,
    in an exception nobody expects. Here every method raises OSError at once.

    purge_step: entries of earlier files from this step on are hidden; None hides none.
    """

    def __init__(self, folder: str | os.PathLike, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto import event_pb2  # slow to import, and only stages that log need it
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.record_writer = event_pb2.Event, RecordWriter
        self.waiting, self.flushed = bytearray(), time.monotonic()
        self.path = self._new_file(Path(folder))
        self._add(self.event(file_version="brain.Event:2"))
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(self.event(step=purge_step, session_log=start))
        self.flush()

    @staticmethod
    def _new_file(folder: Path) -> Path:
        stem = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        names = (f"{stem}.{number}" for number in itertools.count())
        while True:
            path = folder / next(names)
            try:
                path.touch(exist_ok=False)
                return path
            except FileExistsError:
                continue

    def scalars(self, step: int, **values: float) -> None:
        from torch.utils.tensorboard.summary import scalar

        for name, value in values.items():
            self._add(self.event(step=step, summary=scalar(name, value)))

    def image(self, step: int, name: str, picture: Tensor) -> None:
        """picture uint8 [C, H, W]."""
        from torch.utils.tensorboard.summary import image

        self._add(self.event(step=step, summary=image(name, picture, dataformats="CHW")))

    def _add(self, event) -> None:
        event.wall_time = time.time()
        record = BytesIO()
        self.record_writer(record).write(event.SerializeToString())
        self.waiting += record.getvalue()
        if len(self.waiting) >= FLUSH_BYTES or time.monotonic() - self.flushed >= FLUSH_SECONDS:
            self.flush()

    def close(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what has gathered; the file must still be there."""
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            write_all(file, bytes(self.waiting))
        self.waiting.clear()
        self.flushed = time.monotonic()


def begin(opening: Opening) -> Board:
    """A new event file in the run's folder."""
    return Board(opening.logdir, opening.start_step or None)
