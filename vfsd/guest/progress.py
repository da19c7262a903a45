"""One line on a terminal that says what a starting guest is busy with; nothing where standard error is no terminal."""

import sys
import time
from typing import TextIO

_FRAMES = "|/-\\"


class Progress:
    """Call `stage` at each step, `tick` while waiting, `done` before anything else is printed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._start = time.monotonic()
        self._stage = ""
        self._frame = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def stage(self, name: str) -> None:
        if name != self._stage:
            self._stage = name
            self.tick()

    def tick(self) -> None:
        if not self._live:
            return
        self._frame = (self._frame + 1) % len(_FRAMES)
        self._stream.write(f"\r\033[K{_FRAMES[self._frame]} {self.elapsed:4.1f} s  {self._stage}")
        self._stream.flush()

    def done(self) -> None:
        if self._live:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._live = False


class Silent(Progress):
    """For callers that are programs."""

    def __init__(self) -> None:
        super().__init__()
        self._live = False
