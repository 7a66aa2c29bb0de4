"""Files moved aside so that it can be undone: never onto another file, and each noted before it is moved."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pad.errors import PadError
from pad.store.files import CannotWrite, atomic, sync_folder

LOG = "moved.csv"
_COLUMNS = ["from", "to"]


class Move(NamedTuple):
    """A file and its new place, both absolute."""

    source: Path
    target: Path


def plan(files: Iterable[tuple[Path, Path]], folder: Path) -> list[Move]:
    """Where files go in `folder`, from pairs of a file and its place there (relative). Where that is taken,
    by an earlier file or one that is there, `-1`, `-2` ... comes after its stem."""
    taken: set[Path] = set()
    moves = []
    for source, place in files:
        target = _free(_absolute(folder / place), taken)
        taken.add(target)
        moves.append(Move(_absolute(source), target))
    return moves


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - a link stays a link


def _free(wanted: Path, taken: set[Path]) -> Path:
    target, count = wanted, 0
    while target in taken or os.path.lexists(target):
        count += 1
        target = wanted.with_name(f"{wanted.stem}-{count}{wanted.suffix}")
    return target


def move_files(moves: Sequence[Move], log: Path, check: Callable[[], None] = lambda: None) -> None:
    """Moves files by renaming them, and notes each in `log` (CSV: from, to) before; what the log holds
    already stays. `check` is called after each.

    Raises PadError, naming the file, where one cannot be moved, or something is in its new place by now;
    those before it are moved, and noted.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            if file.tell() == 0:
                file.write(_line(_COLUMNS))
            for move in moves:
                file.write(_line([str(move.source), str(move.target)]))
                file.flush()
                os.fsync(file.fileno())
                _rename(move)
                check()
    except OSError as error:
        raise CannotWrite(log, error) from None


def _rename(move: Move) -> None:
    """By the name alone: the content is not touched, nor is a file that has the new name."""
    source, target = move
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb"):  # nobody else's from here on: renaming would silently replace a file
            pass
    except FileExistsError:
        raise PadError(f"{target} is there already, so {source} stays where it is; try again") from None
    except OSError as error:
        raise CannotWrite(target, error) from None
    try:
        source.replace(target)
    except OSError as error:
        with suppress(OSError):
            target.unlink()
        if error.errno == errno.EXDEV:
            raise PadError(f"{source} cannot be moved to another disk; name a folder on its own") from None
        raise PadError(f"cannot move {source} to {target}: {error.strerror or error}") from None
    sync_folder(target.parent)


def read_log(log: Path) -> list[Move]:
    """What a log holds. Raises PadError if it is none."""
    try:
        text = log.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise PadError(f"cannot read {log}: {error.strerror or error}") from None
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if not rows or rows[0] != _COLUMNS or any(len(row) != 2 for row in rows):
        raise PadError(f"{log} is no log of moves: it must have the columns {', '.join(_COLUMNS)}")
    return [Move(Path(source), Path(target)) for source, target in rows[1:]]


def undo(log: Path) -> tuple[int, list[str]]:
    """Moves back what a log holds, the last first: how many files, and a line for each that is no longer in
    its place, or whose old place is taken; the latter stay in the log. Raises PadError if a file cannot be
    moved."""
    left: list[Move] = []
    lines: list[str] = []
    back = 0
    for move in reversed(read_log(log)):
        source, target = move
        if not os.path.lexists(target):
            if not os.path.lexists(source):  # else a kill came between the note and the move
                lines.append(f"{target} is no longer there")
        elif os.path.lexists(source):
            left.append(move)
            lines.append(f"{target} stays: there is a file {source} again")
        else:
            _rename(Move(target, source))
            back += 1
    with atomic(log) as file:
        file.writelines(_lines(reversed(left)))
    return back, lines[::-1]


def _lines(moves: Iterable[Move]) -> Iterator[bytes]:
    yield _line(_COLUMNS)
    for move in moves:
        yield _line([str(move.source), str(move.target)])


def _line(values: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(values)
    return buffer.getvalue().encode("utf-8", "surrogateescape")
