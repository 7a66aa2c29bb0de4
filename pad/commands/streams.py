"""Standard output and error that are closed, full, or read no further: told in one line, or not at all."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, BinaryIO, TextIO, cast

from pad.errors import PadError, printable

SHOWN = 10  # lines of a kind on the terminal


class _Output(io.FileIO):
    """File descriptor 1 or 2. When nobody reads on (`| head`), what comes later goes nowhere, and the
    command ends with the exit status that it would have had. Another failure of standard output (a full
    disk) is a PadError, once; of standard error there is nowhere to tell it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _to_nowhere(self.fileno())
            if self.fileno() == 1 and not isinstance(error, BrokenPipeError):
                raise PadError(f"cannot write to standard output: {error.strerror or error}") from None
            return len(data)


def guard() -> None:
    """Makes standard output and error fail as the module's text says, unless a program has put its own there.

    Text that the terminal's encoding lacks is escaped. Standard input and error that are closed are opened
    on nothing, so that no file of ours takes their places. Raises PadError if standard output is closed:
    then results have nowhere to go.
    """
    closed = [number for number in (0, 1, 2) if _is_closed(number)]
    for number in closed:
        _to_nowhere(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 for as long as the process lives
    if 1 in closed or sys.stdout is None:
        raise PadError("standard output is closed; to see nothing of it, redirect it to the null device")
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def _to_nowhere(number: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != number:  # it is, where `number` was closed and the lowest
        os.dup2(nothing, number)
        os.close(nothing)


def _guarded(stream: TextIO) -> TextIO:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # unbuffered (python -u): there is but one
    if type(raw) is not io.FileIO or raw.fileno() not in (1, 2):  # somebody's own, of a notebook or a test
        return stream
    stream.flush()
    output = _Output(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        cast(BinaryIO, output) if raw is buffer else io.BufferedWriter(output),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def tell_first(lines: list[str]) -> None:
    """The first of many lines of a kind on standard error, and how many more there are."""
    for line in lines[:SHOWN]:
        print(printable(line), file=sys.stderr)
    if len(lines) > SHOWN:
        print(f"... and {len(lines) - SHOWN} more like this", file=sys.stderr)
