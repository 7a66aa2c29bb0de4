"""Recipes that look at the images: settings given as `auto` are chosen by what there is to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pad.config import VIEWS, Config, feature_resolutions, from_mapping, load_recipe
from pad.errors import PadError
from pad.images.imageset import ImageSet

DEFAULT_RECIPE = "folder"
GENERATOR_IMAGES = 100  # from which on the default recipe trains one
PHOTOGRAPH_STEPS = 300  # of a generator at 64x64 pixels, where a step takes four times as long
PROBED = 32  # images looked at
WIDTH = 32  # of feature maps, as in the paper for images of 32x32
_AUTO_WIDTHS = ("generator_channels", "encoder_channels", "critic_channels")


def build_config(
    name: str | None, settings: Mapping[str, Any], images: ImageSet, timed: bool = False
) -> Config:
    """The recipe `name` (or file; default: `folder`) with `settings` on top, its `auto` values chosen from
    the images. timed: a time to train for was asked for. Raises PadError for an unknown recipe or setting,
    or if no image can be read."""
    values = {**load_recipe(name or DEFAULT_RECIPE), **settings}
    if any(value == "auto" for key, value in values.items() if key != "precision"):
        values = choose(values, images, timed)
    where = f"recipe '{name}'" if name and not settings else "the recipe"
    return from_mapping(values, where)


def choose(values: Mapping[str, Any], images: ImageSet, timed: bool = False) -> dict[str, Any]:
    """`values` with its `auto` settings replaced. timed: a time to train for was asked for.

    views: all of them. steps: 0, so that there is no generator, where there are fewer images than
    GENERATOR_IMAGES, unless steps or a time were asked for: a part of the images would have to be kept from
    the training to calibrate by; PHOTOGRAPH_STEPS at a size of 64.
    With a tile, all of them are chosen for pictures of its size.
    view_size: a side at which a backbone that knows photographs still recognizes what it sees. input_size:
    that side for pictures that are larger than the networks' `size`.
    channels: 1 if every probed image is grey. size: 28 for images up to 28 pixels on the shorter side, 32 up
    to 48, else 64; larger ones cost four times as much each and are asked for with `--set size=128`. Widths:
    32 for every resolution, but for the generator's full one, where convolutions cost most: 16.
    """
    values = dict(values)
    sides, colourful = _probe(images)
    if isinstance(tile := values.get("tile"), int):
        sides = [min(side, tile) for side in sides]
    if values.get("channels") == "auto":
        values["channels"] = 3 if colourful else 1
    if values.get("size") == "auto":
        side = np.median(sides)
        values["size"] = 28 if side <= 28 else 32 if side <= 48 else 64
    if values.get("views") == "auto":
        values["views"] = list(VIEWS)
        if not timed and "steps" not in values and len(images) < GENERATOR_IMAGES:
            values["steps"] = 0
        elif not timed and "steps" not in values and values.get("size") == 64:
            values["steps"] = PHOTOGRAPH_STEPS
    if values.get("view_size") == "auto":
        side = np.median(sides)
        values["view_size"] = 96 if side <= 28 else 192 if side <= 160 else 224
    if values.get("input_size") == "auto":
        large = isinstance(values.get("size"), int) and np.median(sides) > 1.25 * values["size"]
        quick = set(values["views"]) != {"generator"} if isinstance(values["views"], list) else False
        values["input_size"] = values["view_size"] if large and quick else None
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
