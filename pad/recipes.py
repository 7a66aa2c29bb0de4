"""Recipes that look at the images: settings given as `auto` are chosen by what there is to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pad.config import Config, feature_resolutions, from_mapping, load_recipe
from pad.errors import PadError

if TYPE_CHECKING:
    from pad.images.imageset import ImageSet

DEFAULT_RECIPE = "folder"
PROBED = 32  # images looked at
WIDTH = 32  # of feature maps, as in the paper for images of 32x32
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

    channels: 1 if every probed image is grey. size: 28 for images up to 28 pixels on the shorter side, 32 up
    to 48, else 64; larger ones cost four times as much each and are asked for with `--set size=128`. Widths:
    32 for every resolution, but for the generator's full one, where convolutions cost most: 16.
    """
    values = dict(values)
    sides, colourful = _probe(images)
    if values.get("channels") == "auto":
        values["channels"] = 3 if colourful else 1
    if values.get("size") == "auto":
        side = np.median(sides)
        values["size"] = 28 if side <= 28 else 32 if side <= 48 else 64
    size, resolution = values.get("size", Config.size), values.get("latent_resolution", 1)
    if not isinstance(size, int) or not isinstance(resolution, int):
        return values  # from_mapping says what is wrong with them
    for key in _AUTO_WIDTHS:
        if values.get(key) == "auto":
            latent = 1 if key == "critic_channels" else resolution
            values[key] = [WIDTH] * max(1, len(feature_resolutions(size, latent)))
            if key == "generator_channels":
                values[key][-1] = WIDTH // 2
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
