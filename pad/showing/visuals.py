"""What an evaluation draws while it scores: the report, explained images, and maps against masks."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pad.detector import Detector, Examined
from pad.images.decode import ImageError, read_image
from pad.images.geometry import seen_box
from pad.images.imageset import ImageSet
from pad.judging.metrics import PixelMetrics
from pad.judging.rows import Row
from pad.showing.explanation import align_map, make_explanation, scale_of, to_picture, write_explanation
from pad.showing.report import ReportWriter


class Visuals:
    """Collects, batch by batch and in flat memory, what is drawn at the end.

    report: where pictures for a page go, or None. explain: how many of the most anomalous images get
    pictures of their own. `pixels` holds maps against masks, or None where the images have no masks.
    Labels and masks are only compared with results, which do not depend on them.
    """

    def __init__(
        self,
        detector: Detector,
        images: ImageSet,
        report: ReportWriter | None = None,
        explain: int | None = None,
    ) -> None:
        self._detector, self._images = detector, images
        self._report, self._explain = report, explain or 0
        self._scale = scale_of(detector.calibration)
        self._kept: list[tuple[float, int, Image.Image, np.ndarray]] = []  # heap of the most anomalous
        masked = any(sample.mask is not None for sample in images.samples)
        self.pixels = PixelMetrics() if masked and (report or explain) else None

    def add(self, rows: Mapping[int, Row], indices: Sequence[int], examined: Examined | None) -> None:
        """Adds the rows of a batch, by index and in order; `examined` holds the images at `indices`, in that
        order (None where there are none)."""
        places = {index: place for place, index in enumerate(indices)}
        for index, row in rows.items():
            place = places.get(index)
            if place is None or examined is None or row.score is None:
                self._add_row(row)
            else:
                self._add_image(index, row, examined, place)

    def _add_row(self, row: Row) -> None:
        if self._report:
            self._report.add(row)

    def _add_image(self, index: int, row: Row, examined: Examined, place: int) -> None:
        anomaly_map, nearest = examined.maps[place].numpy(), examined.nearest[place].numpy()
        self._keep(index, row.score or 0.0, nearest, anomaly_map)
        if not self._report and not self.pixels:
            return
        try:
            image = self._images.open(index)
        except ImageError:  # gone since it was scored: the row stays, without a picture
            self._add_row(row)
            return
        if self._report:
            self._report.add(row, image, nearest, anomaly_map, examined.latents[place].numpy())
        if self.pixels:
            self._add_mask(index, image, anomaly_map)

    def _keep(self, index: int, score: float, nearest: np.ndarray, anomaly_map: np.ndarray) -> None:
        if len(self._kept) < self._explain:
            heapq.heappush(self._kept, (score, -index, to_picture(nearest), anomaly_map))
        elif self._kept and score > self._kept[0][0]:
            heapq.heapreplace(self._kept, (score, -index, to_picture(nearest), anomaly_map))

    def _add_mask(self, index: int, image: Image.Image, anomaly_map: np.ndarray) -> None:
        """A defect whose mask is missing is left out: it is not known where it is."""
        sample, config = self._images.samples[index], self._detector.config
        if self.pixels is None or sample.anomalous is None or (sample.anomalous and sample.mask is None):
            return
        box = seen_box(image.width, image.height, config.crop, config.fit)
        mask = None if sample.mask is None else np.asarray(read_image(sample.mask).convert("L"))
        self.pixels.add(align_map(anomaly_map, image.size, box), mask, str(sample.mask))

    def finish(self, rows: Sequence[Row], summary: dict[str, Any], folder: Path) -> list[Path]:
        """Writes the pictures of the most anomalous images to `folder`/explanations, with the verdicts of
        `rows`, and the report; returns what was written (of the pictures, the montages)."""
        written = []
        for _, negative, nearest, anomaly_map in sorted(self._kept, key=lambda kept: kept[:2], reverse=True):
            written.append(self._write_explanation(rows[-negative], -negative, nearest, anomaly_map, folder))
        if self._report:
            written.append(self._report.finish(summary))
        return [path for path in written if path is not None]

    def _write_explanation(
        self, row: Row, index: int, nearest: Image.Image, anomaly_map: np.ndarray, folder: Path
    ) -> Path | None:
        try:
            image = self._images.open(index)
        except ImageError:
            return None
        explanation = make_explanation(
            image,
            nearest,
            anomaly_map,
            self._detector.config,
            row.score or 0.0,
            row.p_value,
            row.verdict,
            self._scale,
        )
        label = "" if row.anomalous is None else row.kind or ("anomalous" if row.anomalous else "normal")
        return write_explanation(explanation, folder / "explanations", index + 1, row.path, label)
