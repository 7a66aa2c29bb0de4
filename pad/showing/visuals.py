"""What an evaluation draws while it scores: the report, explained images, and maps against masks."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pad.config import Config
from pad.errors import PadError
from pad.images.geometry import seen_box
from pad.images.imageset import ImageSet
from pad.images.read import ImageError, read_image
from pad.judging.calibration import Calibration
from pad.judging.map_scale import scale_of
from pad.judging.metrics import PixelMetrics
from pad.judging.rows import Row
from pad.showing.explanation import align_map, box_on, make_explanation, write_pictures
from pad.showing.pictures import reduced_size, reduction, to_picture
from pad.showing.report import ReportWriter
from pad.views.examined import Examined

MASK_SIDE = 4096  # pixels: larger masks are compared at a reduced size


class Visuals:
    """Collects, batch by batch and in flat memory, what is drawn at the end.

    config, calibration: of the model. report: where pictures for a page go, or None. explain: how many of the
    most anomalous images get pictures of their own. `pixels` holds maps against masks, or None where the
    images have no masks. Labels and masks are only compared with results, which do not depend on
    them.

    Nothing that fails in drawing touches a score: an image that cannot be drawn, a mask that cannot be used
    and a file that cannot be written are named in `failures`, and the rest goes on.
    """

    def __init__(
        self,
        config: Config,
        calibration: Calibration | None,
        images: ImageSet,
        report: ReportWriter | None = None,
        explain: int | None = None,
    ) -> None:
        self._config, self._images = config, images
        self._report, self._explain = report, explain or 0
        self._scale = scale_of(calibration)
        self._kept: list[tuple[float, int, Image.Image, np.ndarray]] = []  # heap of the most anomalous
        masked = any(sample.mask is not None for sample in images.samples)
        self.pixels = PixelMetrics() if masked and (report or explain) else None
        self.failures: list[str] = []  # a line each
        self.without_mask = 0  # images that count in no pixel metric, since their mask cannot be used
        self.unwritten: PadError | None = None  # why a whole file is missing

    def add(self, rows: Mapping[int, Row], indices: Sequence[int], examined: Examined | None) -> None:
        """Adds the rows of a batch, by index and in order; `examined` holds the images at `indices`, in that
        order (None where there are none)."""
        places = {index: place for place, index in enumerate(indices)}
        for index, row in rows.items():
            place = places.get(index)
            if place is None or examined is None or row.score is None:
                self._add_to_report(row)
            else:
                self._add_image(index, row, examined, place)

    def _add_image(self, index: int, row: Row, examined: Examined, place: int) -> None:
        anomaly_map, nearest = examined.maps[place].numpy(), examined.nearest[place].numpy()
        self._keep(index, row.score or 0.0, nearest, anomaly_map)
        if not self._report and not self.pixels:
            return
        image: Image.Image | None = None
        with self._told(f"no picture of {row.path}"):
            image = self._images.open(index)
        self._add_to_report(row, image, nearest, anomaly_map, examined.latents[place].numpy())
        if image is not None:
            self._add_mask(index, row, image, anomaly_map)

    def _add_to_report(self, row: Row, image: Image.Image | None = None, *examined: np.ndarray) -> None:
        if not self._report:
            return
        with self._told(f"no picture of {row.path}"):
            try:
                self._report.add(row, image, *examined)
            except PadError as error:  # not of this image: the disk is full, say
                self.unwritten, self._report = error, None

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Makes a line of `failures` of whatever fails on one image: decoders and drawing fail in as many
        ways as files are broken."""
        try:
            yield
        except Exception as error:
            reason = error.reason if isinstance(error, ImageError) else str(error) or type(error).__name__
            line = f"{what}: {' '.join(reason.split())}"
            if line not in self.failures:
                self.failures.append(line)

    def _keep(self, index: int, score: float, nearest: np.ndarray, anomaly_map: np.ndarray) -> None:
        if len(self._kept) < self._explain:
            heapq.heappush(self._kept, (score, -index, to_picture(nearest), anomaly_map))
        elif self._kept and score > self._kept[0][0]:
            heapq.heapreplace(self._kept, (score, -index, to_picture(nearest), anomaly_map))

    def _add_mask(self, index: int, row: Row, image: Image.Image, anomaly_map: np.ndarray) -> None:
        """A defect whose mask is missing is left out: it is not known where it is."""
        sample, config = self._images.samples[index], self._config
        if self.pixels is None or sample.anomalous is None or (sample.anomalous and sample.mask is None):
            return
        with self._told(f"no mask for {row.path}"):
            try:
                mask = None if sample.mask is None else _mask(sample.mask, image.size)
                factor = reduction(image.size, MASK_SIDE)
                size = reduced_size(image.size, factor)
                box = box_on(seen_box(image.width, image.height, config.crop, config.fit), image.size, size)
                reduced = None if mask is None else mask[::factor, ::factor]
                self.pixels.add(align_map(anomaly_map, size, box), reduced, str(sample.mask))
            except Exception:
                self.without_mask += 1
                raise

    def finish(self, rows: Sequence[Row], summary: dict[str, Any], folder: Path) -> list[Path]:
        """Writes the pictures of the most anomalous images to `folder`/explanations, with the verdicts of
        `rows`, and the report; returns what was written (of the pictures, the montages)."""
        written = []
        try:
            for _, negative, nearest, anomaly_map in sorted(self._kept, key=lambda k: k[:2], reverse=True):
                row = rows[-negative]
                pictures = self._explanation(row, -negative, nearest, anomaly_map)
                if pictures:
                    written.append(write_pictures(pictures, folder / "explanations", -negative + 1, row.path))
            if self._report:
                written.append(self._report.finish(summary))
        except PadError as error:
            self.unwritten = self.unwritten or error
        return written

    def _explanation(
        self, row: Row, index: int, nearest: Image.Image, anomaly_map: np.ndarray
    ) -> dict[str, Image.Image]:
        """The pictures of one image; none if it cannot be drawn."""
        with self._told(f"no picture of {row.path}"):
            explanation = make_explanation(
                self._images.open(index),
                nearest,
                anomaly_map,
                self._config,
                row.score or 0.0,
                row.p_value,
                row.verdict,
                self._scale,
                row.views,
            )
            label = "" if row.anomalous is None else row.kind or ("anomalous" if row.anomalous else "normal")
            return explanation.pictures(label)
        return {}


def _mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of an image of `size`. Raises PadError, naming it, if it cannot be used."""
    try:
        image = read_image(path)
    except ImageError as error:
        raise PadError(str(error)) from None  # of the mask, not of the image
    if image.size != size:
        raise PadError(
            f"{path} is {image.width}x{image.height} pixels, but its image has {size[0]}x{size[1]}"
        )
    return np.asarray(image.convert("L"))
