"""A large picture as overlapping tiles: decoded once and cut one by one, in memory that does not grow with
the number of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pad.config import Config
from pad.images.decode import Given, batch_tensor, each_of, planes, scaled, to_tensor
from pad.images.geometry import Box, seen_box, tile_boxes
from pad.images.read import DEEP_MODES, from_array
from pad.images.variation import draw, random_of, varied


@dataclass(frozen=True, eq=False)
class Tiled:
    """A decoded picture.

    region: the part that the model looks at. boxes: of the tiles, which cover it; both in pixels of the
    picture. cut: a tile as the model sees it, float32 (channels, s, s) in [-1, 1], s being `input_side`.
    """

    region: Box
    boxes: list[Box]
    cut: Callable[[Box], Tensor]

    def batches(self, size: int, chosen: Sequence[int] | None = None) -> Iterator[tuple[list[Box], Tensor]]:
        """The tiles (or those that are chosen, by their indices), at most `size` at a time: their boxes, and
        (n, channels, s, s)."""
        boxes = self.boxes if chosen is None else [self.boxes[i] for i in chosen]
        for start in range(0, len(boxes), size):
            part = boxes[start : start + size]
            yield part, torch.stack([self.cut(box) for box in part])

    def random(self, seed: int) -> torch.Generator:
        """Random numbers that the pixels of the picture, in its middle, and the seed decide."""
        return random_of(self.cut(self.boxes[len(self.boxes) // 2]), seed)

    def in_variation(self, tolerate: Mapping[str, float], seed: int) -> Tiled:
        """Every tile in one variation, that of the picture (pad/images/variation.py); `random(seed)` decides
        which. Turns and shifts are those of each tile."""
        if not tolerate:
            return self
        variation = draw(tolerate, self.random(seed))
        return replace(self, cut=lambda box: varied(self.cut(box), variation))


Pictures = Tensor | list[Tiled]  # what a detector looks at: (n, channels, s, s), or n pictures in tiles


def tiled(image: Given, config: Config) -> Tiled:
    """A PIL image of any mode, a uint8 array (H, W[, C]) or a float tensor (C, H, W) in [-1, 1], which is
    taken as prepared: `config.crop` does not apply. Raises ImageError or PadError for pixels that cannot be
    used."""
    assert config.tile is not None
    whole = replace(config, crop=None, fit="stretch")  # of a tile
    if isinstance(image, Tensor):
        region = seen_box(image.shape[-1], image.shape[-2], None, config.fit)
        cut = _from_tensor(image, whole)
    else:
        picture = from_array(image) if isinstance(image, np.ndarray) else image
        region = seen_box(*picture.size, config.crop, config.fit)
        cut = _from_deep(picture, whole) if picture.mode in DEEP_MODES else _from_picture(picture, whole)
    boxes = tile_boxes(region, config.tile)
    cut(boxes[0])  # what cannot be decoded is said here
    return Tiled(region, boxes, cut)


def _from_tensor(pixels: Tensor, config: Config) -> Callable[[Box], Tensor]:
    def cut(box: Box) -> Tensor:
        left, top, right, bottom = box
        return batch_tensor(pixels[None, :, top:bottom, left:right], config)[0]

    return cut


def _from_picture(picture: Image.Image, config: Config) -> Callable[[Box], Tensor]:
    return lambda box: to_tensor(picture.crop(box), config)


def _from_deep(picture: Image.Image, config: Config) -> Callable[[Box], Tensor]:
    """What is white is a matter of the whole picture."""
    pixels, white = planes(picture, config)

    def cut(box: Box) -> Tensor:
        left, top, right, bottom = box
        return scaled(pixels[:, top:bottom, left:right], white, config)

    return cut


def as_seen(images: Any, config: Config, first: int = 0) -> Pictures:
    """Images of any kind (pad/images/decode.py, `batch_tensor`) as the detector of a recipe looks at them.
    Raises PadError, naming the index, for those that cannot be read."""
    if config.tile is None:
        return batch_tensor(images, config, first)
    return each_of(images, lambda image, index: tiled(image, config), first)
