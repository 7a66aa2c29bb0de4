"""Files and folders that appear whole or not at all, and stay when the power goes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pad.errors import PadError

_ORPHAN = re.compile(r"\..+\.\d+\.tmp", re.DOTALL)  # what a killed `atomic` leaves


class CannotWrite(PadError):
    """The disk refuses: it is full, or read-only, or the name is too long. What lay there is as it was."""

    def __init__(self, path: Path | str, error: OSError) -> None:
        super().__init__(f"cannot write {path}: {error.strerror or error}")


@contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the name `path` when the block ends without an exception; by then
    it is on the disk.

    Missing parent folders are made. Raises CannotWrite naming `path` where it cannot be written.
    """
    path = Path(path)
    # Long names are cut: with what is added they must not become longer than a file system takes.
    name = path.name.encode("utf-8", "surrogateescape")[:200].decode("utf-8", "ignore")
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise CannotWrite(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file of its own name, on the disk when this returns. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder stay, where the system can."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_orphans(folder: Path) -> None:
    """Removes what killed writers of `atomic` left in a folder that nobody else writes to."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _ORPHAN.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


# Folders -----------------------------------------------------------------------------------------


def sibling(folder: Path, role: str) -> Path:
    """Where the folder's "new" or "old" content lies while it is replaced."""
    return folder.parent / f".{folder.name}.{role}"


def replace_folder(new: Path, folder: Path) -> None:
    """Renames the folder `new` to `folder`, in place of one that is there.

    A folder cannot be renamed over another that is not empty, so that one steps aside as `.NAME.old` first. A
    kill at any moment leaves the old or the new one whole: between the two renames only `.NAME.old` is there,
    from where `restore_folder` brings it back. One writer at a time.

    Raises OSError, with the old one in its place.
    """
    old = sibling(folder, "old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists() and old.is_dir():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.is_dir():
            old.rename(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Undoes a replacement that was killed half-way, and removes what it left. Raises OSError."""
    new, old = sibling(folder, "new"), sibling(folder, "old")
    if not folder.exists() and old.is_dir():
        old.rename(folder)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
