"""Files moved aside: never onto another file, and each noted before it is moved, so that it can be moved
back."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pad.errors import PadError
from pad.store.files import CannotWrite, sync_folder

LOG = "moved.csv"
_COLUMNS = ("from", "to")


def move_aside(files: Iterable[tuple[Path, Path]], folder: Path) -> Path:
    """Moves files into `folder`, from pairs of a file and its place there (relative); returns the log of
    moves in that folder (CSV: from, to), to which they are added.

    Where a place is taken, `-1`, `-2` ... comes after its stem. A file keeps its content and its times; of a
    link the link is moved. Raises PadError, naming the file, where one cannot be moved: those before it are.
    """
    log = folder / LOG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            if file.tell() == 0:
                file.write(_line(_COLUMNS))
            for source, place in files:
                target = _free(folder / place)
                file.write(_line([os.path.abspath(source), os.path.abspath(target)]))  # noqa: PTH100 - of a link
                file.flush()
                os.fsync(file.fileno())
                _rename(source, target)
    except OSError as error:
        raise CannotWrite(log, error) from None
    return log


def _free(wanted: Path) -> Path:
    target, count = wanted, 0
    while os.path.lexists(target):
        count += 1
        target = wanted.with_name(f"{wanted.stem}-{count}{wanted.suffix}")
    return target


def _rename(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb"):  # nobody else's from here on: renaming would silently replace a file
            pass
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


def _line(values: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(values)
    return buffer.getvalue().encode("utf-8", "surrogateescape")
