"""Which part of a picture the model sees, and its tiles: one rule for reading images and for laying maps over
them."""

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


def tile_boxes(box: Box, tile: int) -> list[Box]:
    """Squares of `tile` pixels that cover `box`, row by row: as few as overlap by a quarter or more, at equal
    distances, the outermost flush with its edges. Where the box is shorter than a tile, so are they."""
    left, top, right, bottom = box
    return [
        (x, y, min(x + tile, right), min(y + tile, bottom))
        for y in _starts(top, bottom, tile)
        for x in _starts(left, right, tile)
    ]


def _starts(first: int, last: int, tile: int) -> list[int]:
    room = last - first - tile  # that the first tile leaves
    if room <= 0:
        return [first]
    steps = -(-room // (tile - tile // 4))
    return [first + round(i * room / steps) for i in range(steps + 1)]
