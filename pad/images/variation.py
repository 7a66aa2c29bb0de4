"""Random variations of an image that are as normal as itself, drawn from what a recipe tolerates.

Models are fitted on them, and calibrated on them: then a new image that varies in the same way is one of the
same kind as the calibration images, which is all that the promise on false alarms asks for. Three of four
draws lie at an end of what is tolerated: the rate that is held is a mean over draws, so that at the ends,
where it is highest, it is at most 4/3 of what was asked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

AT_THE_ENDS = 0.75


class Variation(NamedTuple):
    """What is done to an image, in this order; the defaults leave it as it is."""

    brightness: float = 1.0  # all intensities times this
    contrast: float = 1.0  # all distances to the mean grey times this
    flip: bool = False  # left to right
    rotation: float = 0.0  # degrees, clockwise
    shift: tuple[float, float] = (0.0, 0.0)  # to the right and down, in shares of the side


def draw(tolerate: Mapping[str, float], random: torch.Generator) -> Variation:
    """A variation: of all that is tolerated (pad/tolerance.py) an end with probability AT_THE_ENDS, else
    uniform; a flip in one of two cases."""
    # Always as many numbers: that flips are tolerated too leaves the light as it was.
    within = 2 * torch.rand(6, generator=random) - 1
    at_the_end = torch.rand(6, generator=random) < AT_THE_ENDS
    brightness, contrast, rotation, right, down, mirror = torch.where(
        at_the_end, within.sign(), within
    ).tolist()
    shift = tolerate.get("shift", 0.0)
    return Variation(
        1 + tolerate.get("brightness", 0.0) * brightness,
        1 + tolerate.get("contrast", 0.0) * contrast,
        mirror > 0 and "flip" in tolerate,
        tolerate.get("rotation", 0.0) * rotation,
        (shift * right, shift * down),
    )


def varied(image: Tensor, variation: Variation) -> Tensor:
    """An image (channels, s, s) in [-1, 1], varied. What comes into sight at the edges mirrors the image."""
    # Imported here: it takes longer than to score an image, and scoring needs none of it.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    x = (image + 1) / 2
    if variation.brightness != 1:
        x = F.adjust_brightness(x, variation.brightness)
    if variation.contrast != 1:
        x = F.adjust_contrast(x, variation.contrast)
    if variation.flip:
        x = F.horizontal_flip(x)
    if variation.rotation or any(variation.shift):
        side = x.shape[-1]
        margin = min(
            side - 1, math.ceil((0.21 * bool(variation.rotation) + max(map(abs, variation.shift))) * side) + 1
        )
        x = F.affine(
            F.pad(x, [margin], padding_mode="reflect"), variation.rotation,
            [share * side for share in variation.shift], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR,
        )  # fmt: skip
        x = F.center_crop(x, [side, side])
    return x * 2 - 1


def in_variation(x: Tensor, tolerate: Mapping[str, float], seed: int) -> Tensor:
    """Images (n, channels, s, s) in [-1, 1], each in a variation that its pixels and the seed decide: the
    same in every run, whatever the other images are. As they are where nothing is tolerated."""
    if not tolerate:
        return x
    return torch.stack([varied(image, draw(tolerate, random_of(image, seed))) for image in x])


def vary(x: Tensor, tolerate: Mapping[str, float], random: torch.Generator) -> Tensor:
    """Images (n, channels, s, s) in [-1, 1], each in a new variation. As they are where nothing is
    tolerated."""
    if not tolerate:
        return x
    return torch.stack([varied(image, draw(tolerate, random)) for image in x])


def random_of(image: Tensor, seed: int) -> torch.Generator:
    """Random numbers that the seed and the pixels of an image (channels, h, w) in [-1, 1], at 8 bits,
    decide."""
    pixels = ((image + 1) * 127.5).round().byte().contiguous().cpu().numpy()
    digest = hashlib.blake2b(pixels.data, digest_size=8, key=seed.to_bytes(8, "little"))
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
