"""Scoring whole sets of images: a row for each, batch by batch, in flat memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pad.detector import Detector
from pad.images.imageset import ImageSet
from pad.images.stream import Batch, each_batch
from pad.judging.rows import Row, make_row
from pad.progress import progress_bar
from pad.views.examined import Examined


class Scored(NamedTuple):
    """A batch of an ImageSet, scored."""

    rows: dict[int, Row]  # by index, in order; also of those that could not be read
    indices: list[int]  # of the images that `examined` holds
    examined: Examined | None


def score_rows(detector: Detector, images: ImageSet, fpr: float, batch_size: int) -> Iterator[Row]:
    """A row for every image in order."""
    for batch in score_batches(detector, images, fpr, batch_size):
        yield from batch.rows.values()


def score_batches(
    detector: Detector,
    images: ImageSet,
    fpr: float,
    batch_size: int,
    examine: bool = False,
    confidence: float | None = None,
    progress: bool = False,
) -> Iterator[Scored]:
    """All images in order, read and scored batch by batch. examine: also what is drawn of them. progress:
    show a progress bar (on a terminal)."""

    def look(batch: Batch) -> Scored:
        return score_batch(detector, images, batch, fpr, examine, confidence)

    with progress_bar(len(images), "scoring", "image", progress) as bar:
        for scored in each_batch(look, images, detector.config, detector.device, batch_size):
            yield scored
            bar.update(len(scored.rows))


def score_batch(
    detector: Detector,
    images: ImageSet,
    batch: Batch,
    fpr: float,
    examine: bool = False,
    confidence: float | None = None,
) -> Scored:
    """One batch of an ImageSet; see `score_batches`."""
    examined: Examined | None = None
    results: dict[int, Any] = {i: (None, reason, None) for i, reason in batch.errors}
    if batch.indices:
        examined = detector.examine(batch.pictures) if examine else None
        views = examined.views if examined else detector.score_views(batch.pictures)
        judged = zip(
            batch.indices, detector.fused(views).tolist(), detector.each_view_p_values(views), strict=True
        )
        results.update({i: (score, "", p_values) for i, score, p_values in judged})
    rows = {}
    for index, (score, error, p_values) in sorted(results.items()):
        sample = images.samples[index]
        rows[index] = make_row(
            sample.name,
            score,
            detector.calibration,
            fpr,
            error,
            sample.anomalous,
            sample.kind,
            confidence,
            p_values,
        )
    return Scored(rows, batch.indices, examined)
