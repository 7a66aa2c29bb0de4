"""Recipes that look at the images: settings given as `auto` are chosen by what there is to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pad.config import Config, from_mapping, load_recipe
from pad.errors import PadError

if TYPE_CHECKING:
    from pad.data import ImageSet

DEFAULT_RECIPE = "folder"
PROBED = 32  # images looked at
WIDTH = 32  # of every feature map, as in the paper for images of 32x32
_AUTO_WIDTHS = ("generator_channels", "encoder_channels", "critic_channels")


def build_config(name: str | None, settings: Mapping[str, Any], images: ImageSet) -> Config:
    """The recipe `name` (or file; default: `folder`) with `settings` on top, its `auto` values chosen from
    the images. Raises PadError for an unknown recipe or setting, or if no image can be read."""
    values = {**load_recipe(name or DEFAULT_RECIPE), **settings}
    if any(value == "auto" for key, value in values.items() if key != "precision"):
        values = choose(values, images)
    where = f"recipe '{name}'" if name and not settings else "the recipe"
    return from_mapping(values, where)


def choose(values: Mapping[str, Any], images: ImageSet) -> dict[str, Any]:
    """`values` with its `auto` settings replaced.

    channels: 1 if every probed image is grey. size: 32 for images up to 48 pixels on the shorter side, else
    64; larger ones cost four times as much each and are asked for with `--set size=128`. Widths: 32 for
    every resolution.
    """
    values = dict(values)
    sides, colourful = _probe(images)
    if values.get("channels") == "auto":
        values["channels"] = 3 if colourful else 1
    if values.get("size") == "auto":
        values["size"] = 32 if np.median(sides) <= 48 else 64
    size, resolution = values.get("size", Config.size), values.get("latent_resolution", 1)
    if not isinstance(size, int) or not isinstance(resolution, int):
        return values  # from_mapping says what is wrong with them
    for key in _AUTO_WIDTHS:
        if values.get(key) == "auto":
            start = 4 if key == "critic_channels" else max(4, resolution)
            values[key] = [WIDTH] * max(1, (size // start).bit_length())
    return values


def _probe(images: ImageSet) -> tuple[list[int], bool]:
    """Shorter sides of some images spread over the set, and whether any of them has colours."""
    sides, colourful = [], False
    first_error: PadError | None = None
    for index in np.unique(np.linspace(0, len(images) - 1, PROBED).astype(int)):
        try:
            image = images.open(int(index))
        except PadError as error:
            first_error = first_error or error
            continue
        sides.append(min(image.size))
        if image.mode in ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX") and not colourful:
            pixels = np.asarray(image.convert("RGB").resize((32, 32))).astype(int)
            colourful = bool(np.abs(pixels - pixels.mean(2, keepdims=True)).max() > 8)
    if not sides:
        raise first_error or PadError(f"{images.describe()}: none to learn from")
    return sides, colourful
