"""Which part of a picture the model sees: one rule for reading images and for laying maps over them."""

from __future__ import annotations

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom excluded


def seen_box(width: int, height: int, crop: int | None, fit: str) -> Box:
    """The part of a picture of `width` x `height` pixels that the model sees: its centre, at most `crop`
    pixels in each direction (None: no limit), and of that the largest square if `fit` is "crop"."""
    w, h = (width, height) if crop is None else (min(width, crop), min(height, crop))
    if fit == "crop":
        w = h = min(w, h)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
