"""Any picture as one that can be shown: 8-bit RGB of a bounded size, in little memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from pad.images.read import DEEP_MODES, opaque

_TILE = 1024  # pixels: a large picture is converted and reduced in squares of about this side


def displayable(image: Image.Image, side: int | None = None) -> Image.Image:
    """Any picture as 8-bit RGB: transparent parts over white, deep ones (16-bit, float) scaled as the model
    scales them.

    side: a picture with a longer side than this is reduced by `reduction(image.size, side)`, tile by tile, so
    that no second picture of its size is made.
    """
    white = _white(image)
    factor = 1 if side is None else reduction(image.size, side)
    if factor == 1:
        return _rgb(image, white)
    reduced = Image.new("RGB", reduced_size(image.size, factor))
    step = factor * max(1, _TILE // factor)  # a multiple of the factor: blocks of pixels stay whole
    for top in range(0, image.height, step):
        for left in range(0, image.width, step):
            box = (left, top, min(left + step, image.width), min(top + step, image.height))
            tile = _rgb(image.crop(box), white).reduce(factor)
            reduced.paste(tile, (left // factor, top // factor))
    return reduced


def reduction(size: tuple[int, int], side: int) -> int:
    """The least whole number by which a picture of `size` is to be reduced for its longer side to be at most
    `side` pixels."""
    return math.ceil(max(size) / side)


def reduced_size(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """The size of a picture after `Image.reduce(factor)`."""
    return math.ceil(size[0] / factor), math.ceil(size[1] / factor)


def _white(image: Image.Image) -> float:
    """The value that means white in a picture of a deep mode, as in pad/images/decode.py."""
    if image.mode != "F":
        return 65535.0
    values = np.asarray(image)
    highest = float(values.max(initial=0, where=np.isfinite(values)))
    return next((scale for scale in (1.0, 255.0) if highest <= scale), 65535.0)


def _rgb(image: Image.Image, white: float) -> Image.Image:
    if image.mode in DEEP_MODES:
        values = np.nan_to_num(np.asarray(image).astype(np.float32))
        image = Image.fromarray(np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8))
    return opaque(image).convert("RGB")


def to_picture(values: ArrayLike) -> Image.Image:
    """(C, H, W) in [-1, 1], C 1 or 3, as 8-bit RGB."""
    pixels = np.clip(np.asarray(values, dtype=np.float32) * 127.5 + 128, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)).convert("RGB")
