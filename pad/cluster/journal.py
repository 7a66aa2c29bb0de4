"""What a large evaluation has done so far, so that it goes on where it was stopped.

One file of lines: the first says which evaluation it is, each other one which piece of the images is done,
with its rows. It grows by whole lines, of which the last may be torn by a kill; that one is done again.
Numbers come back exactly as they went in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pad.judging.rows import Row
from pad.store.files import CannotWrite


class Journal:
    """The pieces of one evaluation that are done.

    Args:
        path: of the file, made where it is not there.
        job: what the rows depend on. A file of another job is begun anew.

    Attributes:
        done: the rows of each piece by its number.

    Raises CannotWrite where the file cannot be written.
    """

    def __init__(self, path: Path, job: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[int, list[Row]] = {}
        head = json.dumps(job, sort_keys=True).encode("ascii") + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read(head)
            self._file: BinaryIO = path.open("r+b" if whole else "wb")
            self._file.truncate(whole)
            self._file.seek(whole)
            if not whole:
                self._write(head)
        except OSError as error:
            raise CannotWrite(path, error) from None

    def _read(self, head: bytes) -> int:
        """Takes what an earlier evaluation has done; the length of its whole lines, 0 for another job."""
        if not self.path.is_file():
            return 0
        with self.path.open("rb") as file:
            if file.readline() != head:
                return 0
            whole = len(head)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    piece, rows = json.loads(line)
                    self.done[int(piece)] = [_row(values) for values in rows]
                except (ValueError, TypeError):  # bytes that a crash of the machine has left
                    break
                whole += len(line)
            return whole

    def add(self, piece: int, rows: Sequence[Row]) -> None:
        """One more piece is done. Raises CannotWrite."""
        try:
            self._write(json.dumps([piece, [_values(row) for row in rows]]).encode("ascii") + b"\n")
        except OSError as error:
            raise CannotWrite(self.path, error) from None

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """All is done, and written elsewhere."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _values(row: Row) -> list[Any]:
    # Views stay a mapping; whatever else there is are numbers and texts.
    return [getattr(row, field.name) for field in dataclasses.fields(Row)]


def _row(values: list[Any]) -> Row:
    return Row(*values)
