"""Frames of a video file, a camera or a stream, by OpenCV (the extra `pad-anomaly[watch]`).

Of a file every frame is judged, once: a watcher that was stopped goes on where it was. A camera does not
wait: while a frame is judged others come, the newest of which is next, and how many were dropped is said. A
camera that is gone is asked for again until it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from pad.errors import PadError, printable
from pad.watching.arrivals import Arrival

log = logging.getLogger(__name__)

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
LIVE = ("rtsp", "rtsps", "rtmp", "http", "https")
TELL_EVERY = 60.0  # seconds between two words on what was dropped
LONGEST_WAIT = 30.0  # seconds between two attempts to open a camera


def names_frames(source: str) -> bool:
    """Whether SOURCE is a video file, the index of a camera, or the address of a stream."""
    return is_live(source) or Path(source).suffix.lower() in VIDEOS


def is_live(source: str) -> bool:
    """Whether it is a camera or a stream."""
    return source.isdecimal() or ("://" in source and urlsplit(source).scheme.lower() in LIVE)


def _opened(source: str) -> Any:
    """An open capture, or None."""
    try:
        import cv2
    except ModuleNotFoundError:
        raise PadError("opencv is not installed: python -m pip install 'pad-anomaly[watch]'") from None
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    return capture if capture.isOpened() else None


def _picture(frame: np.ndarray) -> Image.Image:
    """A frame of OpenCV, (H, W, 3) uint8 in BGR, as a picture."""
    return Image.fromarray(np.ascontiguousarray(frame[..., ::-1]))


class Video:
    """All frames of a file. Raises PadError if it cannot be opened."""

    def __init__(self, path: Path, seen: Callable[[bytes], bool]) -> None:
        self._capture = _opened(str(path))
        if self._capture is None:
            raise PadError(f"{path}: cannot be read as a video")
        self._path, self._seen = path, seen
        self._size = path.stat().st_size
        self._frame = 0
        self.ended = False

    @property
    def waiting(self) -> bool:
        return not self.ended

    def take(self, most: int, timeout: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        while len(arrivals) < most and not self.ended:
            key = f"{self._size} {self._frame} ".encode() + str(self._path).encode("utf-8", "surrogateescape")
            known = self._seen(key)
            frame: Any
            done, frame = (self._capture.grab(), None) if known else self._capture.read()
            if not done:
                self.ended = True
            elif not known:
                name = f"{self._path}#{self._frame}"
                arrivals.append(Arrival(printable(name), key, _picture(frame)))
            self._frame += 1
        return arrivals

    def present(self) -> set[bytes]:
        return set()

    def close(self) -> None:
        self._capture.release()


class Camera:
    """The newest frame of a camera or a stream, whenever it is asked for.

    Raises PadError if it cannot be opened at the beginning.
    """

    def __init__(self, source: str) -> None:
        self.ended, self.waiting = False, True
        self._source = source
        self._name = f"camera {source}" if source.isdecimal() else _without_password(source)
        capture = _opened(source)
        if capture is None:
            raise PadError(f"{self._name}: cannot be opened")
        self._newest: tuple[int, np.ndarray] | None = None
        self._frames = self._dropped = 0
        self._changed, self._stopping = threading.Condition(), threading.Event()
        self._told = time.monotonic()
        self._reader = threading.Thread(target=self._read_on, args=(capture,), daemon=True, name="camera")
        self._reader.start()

    def _read_on(self, capture: Any) -> None:
        wait = 1.0
        frame: Any
        while not self._stopping.is_set():
            done, frame = capture.read() if capture is not None else (False, None)
            if done:
                if wait > 1:
                    log.warning("%s is back", self._name)
                wait = 1.0
                with self._changed:
                    self._dropped += self._newest is not None
                    self._newest = (self._frames, frame)
                    self._frames += 1
                    self._changed.notify()
                continue
            if wait == 1.0:
                log.warning("%s is gone; trying again", self._name)
            if capture is not None:
                capture.release()
            self._stopping.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)
            capture = _opened(self._source)
        if capture is not None:
            capture.release()

    def take(self, most: int, timeout: float) -> list[Arrival]:
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None, timeout)
            newest, self._newest = self._newest, None
            now = time.monotonic()
            if self._dropped and now - self._told >= TELL_EVERY:
                log.warning("%s: %d frames were dropped, to keep up", self._name, self._dropped)
                self._dropped, self._told = 0, now
        if newest is None:
            return []
        number, frame = newest
        return [Arrival(printable(f"{self._name}#{number}"), b"", _picture(frame))]

    def present(self) -> set[bytes]:
        return set()

    def close(self) -> None:
        self._stopping.set()
        self._reader.join(5)


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
