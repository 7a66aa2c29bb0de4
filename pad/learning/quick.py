"""Fitting the quick views: a pass of a frozen backbone over the normal images, and seconds of arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pad.config import BATCH_SIZE, Config
from pad.detector import Detector
from pad.errors import PadError
from pad.images.hashes import Hashes
from pad.images.identity import hashes_of
from pad.images.imageset import ImageSet
from pad.images.resize import at_side
from pad.images.stream import Batch, each_batch
from pad.images.variation import draw, in_variation, varied
from pad.judging.map_scale import MapScale
from pad.learning.cross_fit import out_of_fold_scores, taught
from pad.learning.strangers import farthest, find_strangers
from pad.progress import progress_bar
from pad.views.features import Features, joined_features
from pad.views.kept import SIDE, KeptNormals
from pad.views.quick import QuickViews

FIT_IMAGES = 4096  # at most so many are fitted on and judged by; more would only cost time and memory
TILES_A_PICTURE = 64  # at most so many teach
LEAST_FITTED = 4  # below, a fold would have nothing to fit on


class Looked(NamedTuple):
    """What the quick views saw of an ImageSet: of every image that could be read, or of some of its tiles."""

    features: Features
    varied: Features | None  # of the same in a variation each, where some are tolerated
    thumbnails: Tensor  # (n, channels, s, s) uint8
    indices: list[int]  # of the images, in the ImageSet
    hashes: Hashes  # which pictures they are
    errors: list[tuple[int, str]]  # index and reason


class _Part(NamedTuple):
    """A part of it."""

    features: Features
    varied: Features | None
    thumbnails: Tensor
    indices: list[int]


def look(detector: Detector, images: ImageSet, progress: bool = False) -> Looked:
    """The features of all images, in order; where they are cut into tiles, of some tiles of each. Raises
    PadError if none can be read."""
    parts: list[_Part] = []
    errors: list[tuple[int, str]] = []
    tiles = tiles_taught(detector.config, len(images))

    def see(batch: Batch) -> tuple[int, list[tuple[int, str]], list[_Part]]:
        seen = [_seen(detector, *portion) for portion in _portions(detector, batch, tiles)]
        return len(batch.indices) + len(batch.errors), batch.errors, seen

    with progress_bar(len(images), "looking", "image", progress) as bar:
        for count, of_batch, seen in each_batch(see, images, detector.config, detector.device, BATCH_SIZE):
            parts += seen
            errors += of_batch
            bar.update(count)
    if not parts:
        raise PadError(f"none of {images.describe()} can be read")
    variations = [part.varied for part in parts if part.varied is not None]
    indices = [index for part in parts for index in part.indices]
    return Looked(
        joined_features([part.features for part in parts]),
        joined_features(variations) if variations else None,
        torch.cat([part.thumbnails for part in parts]),
        indices,
        hashes_of(images)[indices],
        errors,
    )


def tiles_taught(config: Config, pictures: int) -> int:
    """How many tiles of each of so many pictures teach: all together at most `most_fitted`."""
    return max(1, min(TILES_A_PICTURE, most_fitted(config) // max(1, pictures)))


def _portions(
    detector: Detector, batch: Batch, tiles: int
) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
    """What is looked at in one go: indices, images and their variations. Of a picture in tiles it is a random
    choice of them."""
    config = detector.config
    if config.tile is None and batch.indices:
        x = batch.tensor
        yield batch.indices, x, in_variation(x, config.tolerate, config.seed) if config.tolerate else None
    for index, picture in zip(batch.indices, batch.tiles, strict=False):
        order = torch.randperm(len(picture.boxes), generator=picture.random(config.seed))
        chosen = order[:tiles].sort().values.tolist()
        variation = draw(config.tolerate, picture.random(config.seed))
        for _, x in picture.batches(detector.tiles_at_once, chosen):
            y = torch.stack([varied(tile, variation) for tile in x]) if config.tolerate else None
            yield [index] * len(x), x, y


def _seen(detector: Detector, indices: list[int], x: Tensor, variations: Tensor | None) -> _Part:
    seen = None if variations is None else detector.features(variations)
    return _Part(detector.features(x), seen, _thumbnails(x), indices)


def _thumbnails(x: Tensor) -> Tensor:
    return ((at_side(x, min(SIDE, x.shape[-1])) + 1) * 127.5).round().byte()


def strangers_among(looked: Looked, config: Config) -> Tensor:
    """Which images the views are not to learn, (n,) bool, by the setting `contamination`: a group that stands
    apart from the others, if there is one (None); none (0); or the share that belongs least."""
    if config.contamination == 0:
        return torch.zeros(len(looked.features), dtype=torch.bool)
    if config.contamination is None:
        return find_strangers(looked.features, looked.hashes, config.seed).apart
    return farthest(looked.features, looked.hashes, config.contamination, config.seed)


def fit_quick(detector: Detector, looked: Looked, strangers: Tensor) -> np.ndarray:
    """Fits the quick views on all that was seen, but for `strangers` (n,) bool; returns the score of each
    image in each view, (n, v), by fits that did not see it. Raises PadError for too few images."""
    quick, config = quick_of(detector), detector.config
    if len(looked.features) < LEAST_FITTED:
        raise PadError(
            f"the views take at least {LEAST_FITTED} normal images; only {len(looked.features)} can be read"
        )
    scores = out_of_fold_scores(
        quick, looked.features, looked.hashes, config.seed, looked.varied, ~strangers
    )
    fit_on(detector, looked, ~strangers)
    return scores.numpy()


def fit_on(detector: Detector, looked: Looked, chosen: Tensor) -> None:
    """Fits the quick views on those that are chosen, (n,) bool, and keeps some of them to be shown."""
    quick, config = quick_of(detector), detector.config
    belonging = chosen.nonzero().flatten()
    quick.fit(taught(looked.features, looked.varied, belonging))
    kept = belonging[_spread(len(belonging), config.keep_normals, config.seed)]
    quick.kept = KeptNormals.of(looked.thumbnails[kept], looked.features.take(kept))


def quick_of(detector: Detector) -> QuickViews:
    """The quick views, where it is known that there are some."""
    assert detector.quick is not None
    return detector.quick


def calibrating(strangers: Tensor, config: Config) -> Tensor:
    """Which images calibrate, (n,) bool: all of them, strangers to the fit as well, so that the rate is held
    whatever they are, if they are normal above all; but where the user says how dirty the folder is, all but
    that share."""
    return ~strangers if config.contamination else torch.ones_like(strangers)


def calibrate_quick(detector: Detector, looked: Looked, scores: np.ndarray, chosen: Tensor) -> None:
    """Calibrates a detector without a generator by the scores that `fit_quick` gave, of the images that are
    `chosen`, (n,) bool."""
    seen = (looked.features if looked.varied is None else looked.varied).take(chosen)
    maps = (m for part in torch.arange(len(seen)).split(BATCH_SIZE)
            for m in detector.quick_maps(seen.take(part)).numpy())  # fmt: skip
    extra = {"cross_fitted": True, "map_scale": MapScale.from_maps(maps).to_dict()}
    detector.calibrate_on(scores[chosen.numpy()], None, extra)


def most_fitted(config: Config) -> int:
    """How many images at most are fitted on, so that they and their variations are FIT_IMAGES."""
    return FIT_IMAGES // 2 if config.tolerate else FIT_IMAGES


def fitted_on(images: ImageSet, first: int, config: Config) -> ImageSet:
    """At most `most_fitted` of the images: the `first` ones, up to half of that, and a random choice of the
    others."""
    most = most_fitted(config)
    if len(images) <= most:
        return images
    others = first + torch.randperm(len(images) - first, generator=torch.Generator().manual_seed(config.seed))
    chosen = [*range(min(first, most // 2)), *others.tolist()]
    return images.subset(sorted(chosen[:most]))


def _spread(n: int, count: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].sort().values
