"""Where pictures come from: a folder in which they appear, or lines on standard input.

A file in the folder is taken once it is whole: it has not changed for SETTLED seconds, and can be decoded;
one that cannot be is waited for, PATIENCE seconds after its last change, before it counts as damaged. So it
matters not whether a file is renamed into place, linked, or written slowly. A file that changes later is
another picture.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from PIL import Image

from pad.errors import PadError, printable
from pad.images.conventions import counts_as_image
from pad.images.read import ImageError, read_image

log = logging.getLogger(__name__)

SETTLED = 0.3  # seconds
PATIENCE = 10.0  # seconds
POLL = 0.1  # seconds between two looks into a folder, or as long as a look takes
MOST_PIXELS = 1 << 24  # after which no more pictures are taken at a time
MOST_LINE = 128 << 20  # bytes of a line on standard input
_HALF_WRITTEN = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".filepart", ".download")


@dataclass(frozen=True)
class Arrival:
    """A picture that has come, opened, or why it cannot be. `key` is b"" where it cannot be told from
    others."""

    path: str
    key: bytes
    image: Image.Image | None
    error: str = ""


class Source(Protocol):
    """Where pictures come from."""

    def take(self, most: int, timeout: float) -> list[Arrival]:
        """What has come, in order, at most `most`; waits up to `timeout` seconds for the first."""

    @property
    def ended(self) -> bool:
        """Whether nothing will ever come any more."""

    @property
    def waiting(self) -> bool:
        """Whether something has come that is not taken yet, as far as is known."""

    def present(self) -> set[bytes]:
        """Keys of pictures that still lie there, and would come again after a new start."""

    def close(self) -> None: ...


@dataclass
class _File:
    """What is known of a file that is not taken yet."""

    size: int
    changed: int  # ns since the epoch
    noticed: float  # monotonic time of its last change, as far as it was seen


class Folder:
    """A folder in which pictures appear, its sub-folders included.

    Args:
        folder: may be gone for a while (a mount): that is said, and waited for.
        seen: whether a picture of this key was judged before.

    Raises PadError if it is not there at the beginning.
    """

    def __init__(self, folder: Path, seen: Callable[[bytes], bool]) -> None:
        if not folder.is_dir():
            raise PadError(f"{folder}: no such folder to watch")
        self.folder, self._seen = folder, seen
        self._done: dict[str, tuple[int, int]] = {}  # of files that lie there: judged with this size and time
        self._open: dict[str, _File] = {}
        self._gone = False
        self.ended = False

    @property
    def waiting(self) -> bool:
        return bool(self._open)

    def take(self, most: int, timeout: float) -> list[Arrival]:
        limit = time.monotonic() + timeout
        while True:
            begun = time.monotonic()
            self._look()
            arrivals = self._ready(most)
            if arrivals or time.monotonic() >= limit:
                return arrivals
            time.sleep(min(max(POLL, time.monotonic() - begun), max(0.0, limit - time.monotonic())))

    def _look(self) -> None:
        """Notices what is new or has changed, and forgets what is not there any more."""
        try:
            found = dict(_files(str(self.folder)))
        except OSError as error:
            if not self._gone:
                log.warning("%s: %s; waiting for it", self.folder, error.strerror or error)
            self._gone = True
            return
        if self._gone:
            log.warning("%s is back", self.folder)
            self._gone = False
        now = time.monotonic()
        for name, (size, changed) in found.items():
            if self._done.get(name) == (size, changed):
                continue
            known = self._open.get(name)
            if known is None or (known.size, known.changed) != (size, changed):
                if known is None and self._seen(_key(name, size, changed)):
                    self._done[name] = (size, changed)
                    continue
                age = max(0.0, time.time() - changed / 1e9) if known is None else 0.0
                self._open[name] = _File(size, changed, now - age)
        for gone in self._done.keys() - found.keys():
            del self._done[gone]
        for gone in self._open.keys() - found.keys():
            del self._open[gone]

    def _ready(self, most: int) -> list[Arrival]:
        """Files that are whole, the oldest first."""
        arrivals: list[Arrival] = []
        pixels = 0
        for name, file in sorted(self._open.items(), key=lambda item: (item[1].changed, item[0])):
            still = time.monotonic() - file.noticed
            if len(arrivals) == most or pixels > MOST_PIXELS:
                break
            if still < SETTLED:
                continue
            arrival = _opened(self.folder, name, file)
            if arrival is None or (arrival.error and still < PATIENCE):
                continue
            arrivals.append(arrival)
            pixels += arrival.image.width * arrival.image.height if arrival.image else 0
            self._done[name] = (file.size, file.changed)
            del self._open[name]
        return arrivals

    def present(self) -> set[bytes]:
        return {_key(name, *file) for name, file in self._done.items()}

    def close(self) -> None: ...


def _files(folder: str, inside: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """Name inside the folder, and size and time of its last change, of all that count as images."""
    with os.scandir(os.path.join(folder, inside)) as entries:  # noqa: PTH118 - of bytes that are no text, too
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{inside}{entry.name}"
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(folder, f"{name}/")
                elif counts_as_image(entry.name) and not entry.name.lower().endswith(_HALF_WRITTEN):
                    status = entry.stat()
                    yield name, (status.st_size, status.st_mtime_ns)
            except FileNotFoundError:  # removed or renamed meanwhile
                continue


def _key(name: str, size: int, changed: int) -> bytes:
    return f"{size} {changed} ".encode() + os.fsencode(name)


def _opened(folder: Path, name: str, file: _File) -> Arrival | None:
    """The picture, or why it is none; None if it is not what it was when it was looked at."""
    path = folder / name
    key, shown = _key(name, file.size, file.changed), printable(str(path))
    arrival = _read(path, shown, key)
    try:
        status = path.stat()
    except OSError:
        return None
    return arrival if (status.st_size, status.st_mtime_ns) == (file.size, file.changed) else None


def _read(source: Path | bytes, shown: str, key: bytes) -> Arrival:
    try:
        return Arrival(shown, key, read_image(source, shown))
    except ImageError as error:
        return Arrival(shown, key, None, error.reason)


class Lines:
    """Standard input: each line a path, or a JSON object: `{"path": ...}`, or `{"image": <base64>, "name":
    ...}`; with an `"id"`, a picture is judged once however often it is sent.

    A picture that was read from a pipe and not judged before a kill is lost, unless its sender, told by the
    lines that come out, sends it again with the same `id`: a pipe has no memory.
    """

    def __init__(self, stream: BinaryIO, seen: Callable[[bytes], bool]) -> None:
        self._seen = seen
        self._lines: queue.Queue[bytes | None] = queue.Queue(maxsize=16)
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read_on, args=(stream,), daemon=True, name="lines")
        self._reader.start()

    def _read_on(self, stream: BinaryIO) -> None:
        try:
            while line := stream.readline(MOST_LINE + 1):
                if len(line) > MOST_LINE:
                    while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                        pass
                if line.strip():
                    self._lines.put(line)
        except (OSError, ValueError) as error:
            log.warning("standard input: %s", error)
        self._lines.put(None)

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    @property
    def waiting(self) -> bool:
        return not self._ended.is_set()

    def take(self, most: int, timeout: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        limit = time.monotonic() + timeout
        while len(arrivals) < most and not self.ended:
            try:
                left = max(0.0, limit - time.monotonic()) if not arrivals else 0.0
                line = self._lines.get(timeout=left) if left else self._lines.get_nowait()
            except queue.Empty:
                break
            if line is None:
                self._ended.set()
            else:
                arrival = _of_line(line, self._seen)
                arrivals += [arrival] if arrival else []
        return arrivals

    def present(self) -> set[bytes]:
        return set()

    def close(self) -> None: ...


def _of_line(line: bytes, seen: Callable[[bytes], bool]) -> Arrival | None:
    """What a line says; None for a picture that was judged before."""
    if len(line) > MOST_LINE:
        return Arrival("line", b"", None, f"a line of more than {MOST_LINE >> 20} MB")
    if not line.lstrip().startswith(b"{"):
        path = Path(os.fsdecode(line.rstrip(b"\r\n")))
        return _read(path, printable(str(path)), b"")
    try:
        given: Any = json.loads(line)
    except (ValueError, RecursionError):
        return Arrival("line", b"", None, "not JSON")
    identity, name = given.get("id"), given.get("name", given.get("path", ""))
    key = b"" if identity is None else b"id " + str(identity).encode("utf-8", "surrogatepass")
    if key and seen(key):
        return None
    shown = printable(str(name if name else identity if identity is not None else "line"))[:1000]
    if isinstance(given.get("path"), str) and given["path"]:
        return _read(Path(given["path"]), shown, key)
    if not isinstance(given.get("image"), str):
        return Arrival(shown, key, None, 'JSON without "path" or "image" (base64)')
    try:
        return _read(base64.b64decode(given["image"], validate=True), shown, key)
    except (binascii.Error, ValueError):
        return Arrival(shown, key, None, '"image" is not base64')
