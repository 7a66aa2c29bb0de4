"""Fitting the quick views: a pass of a frozen backbone over the normal images, and seconds of arithmetic."""

from __future__ import annotations

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
from pad.judging.map_scale import MapScale
from pad.learning.cross_fit import out_of_fold_scores, taught
from pad.progress import progress_bar
from pad.views.features import Features, joined_features
from pad.views.kept import SIDE, KeptNormals

FIT_IMAGES = 4096  # at most so many are fitted on and judged by; more would only cost time and memory
LEAST_FITTED = 4  # below, a fold would have nothing to fit on


class Looked(NamedTuple):
    """What the quick views saw of an ImageSet."""

    features: Features  # of those that could be read
    varied: Features | None  # of the same in a variation each, where some are tolerated
    thumbnails: Tensor  # (n, channels, s, s) uint8
    indices: list[int]  # of those, in the ImageSet
    hashes: Hashes  # of those: which pictures they are
    errors: list[tuple[int, str]]  # index and reason


def look(detector: Detector, images: ImageSet, progress: bool = False) -> Looked:
    """The features of all images, in order. Raises PadError if none can be read."""
    parts: list[Features] = []
    varied_parts: list[Features] = []
    thumbnails: list[Tensor] = []
    indices: list[int] = []
    errors: list[tuple[int, str]] = []

    def see(batch: Batch) -> tuple[Batch, Features | None, Features | None, Tensor]:
        if not batch.indices:
            return batch, None, None, torch.empty(0)
        varied = detector.features(detector.varied(batch.tensor)) if detector.config.tolerate else None
        return batch, detector.features(batch.tensor), varied, _thumbnails(batch.tensor)

    with progress_bar(len(images), "looking", "image", progress) as bar:
        for batch, features, varied, small in each_batch(
            see, images, detector.config, detector.device, BATCH_SIZE
        ):
            if features is not None:
                parts.append(features)
                thumbnails.append(small)
            if varied is not None:
                varied_parts.append(varied)
            indices += batch.indices
            errors += batch.errors
            bar.update(len(batch.indices) + len(batch.errors))
    if not parts:
        raise PadError(f"none of {images.describe()} can be read")
    varied_features = joined_features(varied_parts) if varied_parts else None
    hashes = hashes_of(images)[indices]
    return Looked(joined_features(parts), varied_features, torch.cat(thumbnails), indices, hashes, errors)


def _thumbnails(x: Tensor) -> Tensor:
    return ((at_side(x, min(SIDE, x.shape[-1])) + 1) * 127.5).round().byte()


def fit_quick(detector: Detector, looked: Looked) -> np.ndarray:
    """Fits the quick views on all that was seen; returns the score of each image in each view, (n, v), by
    fits that did not see it. Raises PadError for too few images."""
    quick, config = detector.quick, detector.config
    assert quick is not None
    if len(looked.features) < LEAST_FITTED:
        raise PadError(
            f"the views take at least {LEAST_FITTED} normal images; only {len(looked.features)} can be read"
        )
    scores = out_of_fold_scores(quick, looked.features, looked.hashes, config.seed, looked.varied)
    quick.fit(taught(looked.features, looked.varied, torch.arange(len(looked.features))))
    kept = _spread(len(looked.features), config.keep_normals, config.seed)
    quick.kept = KeptNormals.of(looked.thumbnails[kept], looked.features.take(kept))
    return scores.numpy()


def calibrate_quick(detector: Detector, looked: Looked, scores: np.ndarray) -> None:
    """Calibrates a detector without a generator by the scores that `fit_quick` gave."""
    seen = looked.features if looked.varied is None else looked.varied
    maps = (m for part in torch.arange(len(seen)).split(BATCH_SIZE)
            for m in detector.quick_maps(seen.take(part)).numpy())  # fmt: skip
    extra = {"cross_fitted": True, "map_scale": MapScale.from_maps(maps).to_dict()}
    detector.calibrate_on(scores, None, extra)


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
