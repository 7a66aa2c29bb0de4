"""Videos and cameras as sources."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pad.errors import PadError
from pad.watching import frames
from pad.watching.arrivals import Folder, Lines
from pad.watching.frames import Camera, Video, is_live
from pad.watching.source import open_source


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Thirty frames, redder and redder."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(30):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[..., 2] = 8 * number
        writer.write(frame)
    writer.release()
    return path


def shade(arrival: frames.Arrival) -> float:
    assert arrival.image is not None
    red, green, blue = np.asarray(arrival.image).reshape(-1, 3).mean(0)
    assert max(green, blue) < 12
    return float(red)


def test_every_frame_of_a_file_once(video: Path) -> None:
    seen: set[bytes] = set()
    source = open_source(str(video), seen.__contains__)
    assert isinstance(source, Video)
    first = source.take(8, 0.0)
    assert [arrival.path for arrival in first] == [f"{video}#{number}" for number in range(8)]
    assert [shade(arrival) for arrival in first] == pytest.approx([8 * number for number in range(8)], abs=8)
    seen.update(arrival.key for arrival in first)
    source.close()
    again = open_source(str(video), seen.__contains__)
    rest = []
    while not again.ended:
        rest += again.take(8, 0.0)
    again.close()
    assert [arrival.path for arrival in rest] == [f"{video}#{number}" for number in range(8, 30)]
    assert shade(rest[-1]) == pytest.approx(8 * 29, abs=8)


def test_the_newest_frame_of_a_camera(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file stands for the camera: it gives its frames as fast as they are read, ends, and is opened
    again."""
    camera = Camera(str(video))
    camera._told -= frames.TELL_EVERY
    try:
        time.sleep(0.5)
        (arrival,) = camera.take(8, 5.0)
        assert shade(arrival) > 8 * 20
        assert camera.take(8, 0.05) == []
        assert camera._dropped == 0
        assert "29 frames were dropped" in caplog.text
        assert "is gone; trying again" in caplog.text
        (later,) = camera.take(8, 10.0)
        assert int(later.path.rpartition("#")[2]) >= 30
        assert "is back" in caplog.text
    finally:
        camera.close()


def test_which_source_is_meant(tmp_path: Path) -> None:
    assert is_live("0")
    assert is_live("rtsp://host/stream")
    assert not is_live("film.mp4")
    assert isinstance(open_source(str(tmp_path), bool), Folder)
    assert isinstance(open_source("-", bool), Lines)
    for name in ("nowhere", "nowhere.mp4", "77"):
        with pytest.raises(PadError, match=name):
            open_source(name, bool)
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(PadError, match="cannot be read as a video"):
        open_source(str(tmp_path / "no.mp4"), bool)


def test_a_password_is_not_told() -> None:
    assert frames._without_password("rtsp://me:word@host:554/live?key=1") == "rtsp://host:554/live"
