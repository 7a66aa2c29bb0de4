"""Fitting the quick views: a pass of a frozen backbone over the normal images, and seconds of arithmetic."""

from __future__ import annotations

import logging
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
from pad.learning.cross_fit import fits_by_fold, taught
from pad.learning.strangers import farthest, standing_apart
from pad.progress import progress_bar
from pad.views.features import Features, joined_features
from pad.views.kept import SIDE, KeptNormals
from pad.views.quick import QuickViews

log = logging.getLogger(__name__)

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


class Fitted(NamedTuple):
    """What the fit of the quick views on n images says of them."""

    scores: np.ndarray  # (n, v) float32: of each image in each view, by fits that did not see it
    belonging: np.ndarray  # (n,) bool: what was fitted on
    calibrating: np.ndarray  # (n,) bool: whose scores calibrate
    map_scale: MapScale  # of the maps of those, by fits that did not see them

    def take(self, rows: list[int]) -> Fitted:
        return self._replace(
            scores=self.scores[rows], belonging=self.belonging[rows], calibrating=self.calibrating[rows]
        )


def fit_quick(detector: Detector, looked: Looked, known: bool = False) -> Fitted:
    """Fits the quick views on what was seen and belongs there. known: a group that stands apart does, since
    it is a new normal that comes to an old one. Raises PadError for too few images.

    All images calibrate, those that stand apart as well, so that the rate is held whatever they are: they may
    be a rare kind of normal. Where the user says how many do not belong, these do not.
    """
    config = detector.config
    if len(looked.features) < LEAST_FITTED:
        raise PadError(
            f"the views take at least {LEAST_FITTED} normal images; only {len(looked.features)} can be read"
        )
    belonging = ~_strangers(looked, config, known)
    if config.contamination is None and not belonging.all():
        log.warning(
            "%d of %d images stand apart from the others, and are not learnt from: look at them with "
            "`pad clean`; if they are normal, say --set contamination=0",
            int((~belonging).sum()),
            len(belonging),
        )
    calibrating = belonging if config.contamination else torch.ones_like(belonging)
    scores, map_scale = _judged_out_of_fold(detector, looked, belonging, calibrating)
    fit_on(detector, looked, belonging)
    return Fitted(scores.numpy(), belonging.numpy(), calibrating.numpy(), map_scale)


def _judged_out_of_fold(
    detector: Detector, looked: Looked, belonging: Tensor, calibrating: Tensor
) -> tuple[Tensor, MapScale]:
    """The scores of all images, (n, v), and what the maps of those that calibrate are drawn on, both by fits
    that did not see them: to its own fit an image that was learnt is far too near at every place."""
    quick, config = quick_of(detector), detector.config
    seen = looked.features if looked.varied is None else looked.varied
    scores = torch.empty(len(seen), len(quick.names))

    def maps() -> Iterator[np.ndarray]:
        folds = fits_by_fold(quick, looked.features, looked.hashes, config.seed, looked.varied, belonging)
        for held_out, fitted in folds:
            scores[held_out] = fitted.scores(seen.take(held_out))
            judge = Detector(config, None, fitted, detector.device)
            for rows in (held_out & calibrating).nonzero().flatten().split(BATCH_SIZE):
                yield from judge.quick_maps(seen.take(rows)).numpy()

    scale = MapScale.from_maps(maps())  # and fills `scores`
    return scores, scale


def _strangers(looked: Looked, config: Config, known: bool) -> Tensor:
    """Which images are not to be learnt, (n,) bool, by the setting `contamination`."""
    if config.contamination == 0 or (config.contamination is None and known):
        return torch.zeros(len(looked.features), dtype=torch.bool)
    deep = looked.features.deep[-1]
    if config.contamination is None:
        return standing_apart(deep, looked.hashes, config.seed)
    return farthest(deep, looked.hashes, config.contamination, config.seed)


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


def calibrate_quick(detector: Detector, fitted: Fitted) -> None:
    """Calibrates a detector without a generator by what `fit_quick` says."""
    extra = {"cross_fitted": True, "map_scale": fitted.map_scale.to_dict()}
    rows = fitted.take(np.flatnonzero(fitted.calibrating).tolist())
    detector.calibrate_on(rows.scores, None, extra, belonging=rows.belonging)


def most_fitted(config: Config) -> int:
    """How many images at most are fitted on, so that they and their variations are FIT_IMAGES."""
    return FIT_IMAGES // 2 if config.tolerate else FIT_IMAGES


def fitted_on(images: ImageSet, first: int, config: Config) -> ImageSet:
    """At most `most_fitted` of the images: the `first` ones, up to half of that, and a random choice of the
    others."""
    chosen = fitted_indices(len(images), first, config)
    return images if len(chosen) == len(images) else images.subset(chosen)


def fitted_indices(count: int, first: int, config: Config) -> list[int]:
    """Which of so many images those of `fitted_on` are, in order."""
    most = most_fitted(config)
    if count <= most:
        return list(range(count))
    others = first + torch.randperm(count - first, generator=torch.Generator().manual_seed(config.seed))
    chosen = [*range(min(first, most // 2)), *others.tolist()]
    return sorted(chosen[:most])


def _spread(n: int, count: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].sort().values
