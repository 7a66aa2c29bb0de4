"""The source that SOURCE names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pad.errors import PadError
from pad.watching.arrivals import Folder, Lines, Source
from pad.watching.frames import Camera, Video, is_live, names_frames


def open_source(name: str, seen: Callable[[bytes], bool]) -> Source:
    """A folder, a video file, a camera (its index, or the address of a stream), or `-`: standard input.
    `seen` says of a key whether its picture was judged before. Raises PadError for what is none, or is not
    there."""
    if name == "-":
        return Lines(sys.stdin.buffer, seen)
    path = Path(name)
    if path.is_dir():
        return Folder(path, seen)
    if is_live(name):
        return Camera(name)
    if names_frames(name) and path.is_file():
        return Video(path, seen)
    raise PadError(
        f"{name}: no such folder or video to watch; SOURCE may be a camera, or - for standard input, too"
    )
