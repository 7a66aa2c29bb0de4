"""Fitting the quick views on tiles: some tiles of each picture teach; all of them judge it, by a fit that saw
none of them.

A picture is as unusual as its most unusual tile, so that it has to be judged by all of its tiles, as new ones
are; and all of them are in one fold, since tiles of one picture are alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pad.config import BATCH_SIZE
from pad.detector import Detector
from pad.images.imageset import ImageSet
from pad.images.stream import Batch, each_batch
from pad.judging.map_scale import MapScale
from pad.learning.cross_fit import fits_by_fold
from pad.learning.quick import Fitted, Looked, fit_on, quick_of
from pad.progress import progress_bar
from pad.views.examined import Examined


def fit_tiles(detector: Detector, looked: Looked, images: ImageSet, progress: bool = False) -> Fitted:
    """Fits the quick views on what was seen of the images, and calibrates the detector on all their tiles.
    Returns what it says of the pictures that were seen, in order; all of them belong."""
    quick, config = quick_of(detector), detector.config
    judges: dict[int, Detector] = {}  # by the index of a picture: of the views that did not see it
    for held_out, fitted in fits_by_fold(quick, looked.features, looked.hashes, config.seed, looked.varied):
        judge = Detector(config, None, fitted, detector.device)
        judges.update(
            dict.fromkeys((looked.indices[row] for row in held_out.nonzero()[:, 0].tolist()), judge)
        )
    fit_on(detector, looked, torch.ones(len(looked.features), dtype=torch.bool))
    indices = sorted(judges)
    scores: list[Tensor] = []

    def judged(batch: Batch) -> list[Examined]:
        return [
            judges[indices[place]].examine([picture.in_variation(config.tolerate, config.seed)])
            for place, picture in zip(batch.indices, batch.tiles, strict=True)
        ]

    def maps() -> Iterator[np.ndarray]:
        chosen = images.subset(indices)
        with progress_bar(len(chosen), "judging", "image", progress) as bar:
            for of_batch in each_batch(judged, chosen, config, detector.device, BATCH_SIZE):
                for examined in of_batch:
                    scores.append(examined.views)
                    yield from examined.maps.numpy()
                bar.update(len(of_batch))

    scale = MapScale.from_maps(maps())
    extra = {"cross_fitted": True, "map_scale": scale.to_dict()}
    of_views = torch.cat(scores).numpy()
    detector.calibrate_on(of_views, None, extra)
    everyone = np.ones(len(of_views), dtype=bool)
    return Fitted(of_views, everyone, everyone, scale)
