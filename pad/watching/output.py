"""The lines of JSON that a watcher writes: to standard output, or to a file in which none is lost or
doubled."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pad.errors import PadError
from pad.store.files import CannotWrite
from pad.watching.state import Event, State

_BEGINNING = b'{"id": '  # of a line
_TAIL = 1 << 20  # bytes at the end of a file in which its last line is looked for


class Output(Protocol):
    """Where lines go."""

    def write(self, events: Sequence[Event]) -> None:
        """Events that are in the state. Raises CannotWrite where there is no room; then `write` may be called
        again, with the same or with more."""


class StandardOutput:
    """A line for each event, at once. What was judged by a watcher that was killed before the line came out
    is in the state alone."""

    def write(self, events: Sequence[Event]) -> None:
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(event.line() for event in events))
        sys.stdout.buffer.flush()


class OutputFile:
    """A line for each event of the state, once, whatever was killed when: the file says how far it is, and
    what it lacks is written from the state.

    Raises PadError for a file that holds something else.
    """

    def __init__(self, path: Path, state: State) -> None:
        self.path, self._state = path, state
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
            self._size, self._last = self._whole_lines()
        except OSError as error:
            raise CannotWrite(path, error) from None
        self.write([])

    def _whole_lines(self) -> tuple[int, int]:
        """How many bytes are whole lines, and the id in the last of them."""
        size = self._file.seek(0, os.SEEK_END)
        start = max(0, size - _TAIL)
        self._file.seek(start)
        tail = self._file.read(size - start)
        end = tail.rfind(b"\n") + 1
        if not end:
            if tail[: len(_BEGINNING)] != _BEGINNING[: len(tail)]:
                raise PadError(
                    f"--out {self.path} holds something else than lines of `pad watch`: name another file"
                )
            return 0, 0
        last = tail[tail.rfind(b"\n", 0, end - 1) + 1 : end]
        try:
            return start + end, int(json.loads(last)["id"])
        except (ValueError, KeyError, TypeError):
            raise PadError(
                f"--out {self.path} holds something else than lines of `pad watch`: name another file"
            ) from None

    def write(self, events: Sequence[Event]) -> None:
        try:
            self._file.truncate(self._size)
            while lacking := self._state.events(self._last):
                content = b"".join(event.line() for event in lacking)
                self._file.seek(self._size)
                if self._file.write(content) != len(content):
                    raise OSError(None, "No space left on device")
                self._size += len(content)
                self._last = lacking[-1].id
        except OSError as error:
            raise CannotWrite(self.path, error) from None


def open_output(path: Path | None, state: State) -> Output:
    """The output that --out names; None is standard output."""
    return StandardOutput() if path is None else OutputFile(path, state)
