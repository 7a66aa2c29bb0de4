"""A report to look at: one self-contained HTML file, which opens from disk and asks no network for anything.

Images are added one by one; their thumbnails wait on disk, so that memory stays flat. The page makes nodes
only for the thumbnails in view.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pad.config import Config
from pad.errors import PadError
from pad.images.geometry import Box, seen_box
from pad.judging.calibration import Calibration
from pad.judging.map_scale import MapScale
from pad.judging.rows import Row
from pad.showing.explanation import box_on, colour_bar, panels
from pad.showing.pictures import displayable, to_picture
from pad.store.files import atomic

# Side in pixels and WebP quality of a thumbnail (three pictures in one strip), until one fits the budget:
# 3.6 kB is 4.8 kB of text in the file, so that 10,000 images stay below 60 MB.
_THUMBNAILS = ((96, 75), (96, 50), (80, 40), (64, 35), (48, 25))
_BUDGET = 3600  # bytes an image, on average
_LARGE, _LARGE_SIDE = 48, 256  # so many of the most anomalous images are also kept larger
_PER_BLOCK = 200  # thumbnails in one block of the file
PROJECTIONS = ("pca", "umap")
_Parts = tuple[Image.Image, Image.Image, NDArray[np.float32], Box, MapScale]  # what panels() takes


class ReportWriter:
    """Writes a report; use it as a context manager, which removes what was spooled if anything fails.

        with ReportWriter(path, calibration=calibration, fpr=0.05, config=config) as report:
            for ...:
                report.add(row, image, nearest, anomaly_map, latent)
            report.finish(summary)

    calibration: of the model, or None. fpr, confidence, fdr: what the verdicts were asked to hold. config: of
    the model, for its crop and fit. scale: what anomaly maps are drawn on; None draws each on its own range.
    model: its name. card: about the model, text or a mapping shown as YAML. command: the command line.
    projection: of the latents, "pca", or "umap" with the extra `pad-anomaly[umap]`. limit: thumbnails are
    kept of so many images, the most anomalous ones; scores, counts and curves are of all.
    Raises PadError for an unknown projection, or where UMAP is asked for and not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        calibration: Calibration | None,
        fpr: float,
        config: Config,
        fdr: float | None = None,
        confidence: float | None = None,
        scale: MapScale | None = None,
        model: str = "",
        card: str | Mapping[str, Any] = "",
        command: str = "",
        projection: str = "pca",
        title: str = "Anomaly report",
        limit: int = 10_000,
    ) -> None:
        check_projection(projection)
        self.path = Path(path)
        self._calibration, self._fpr, self._fdr, self._config = calibration, fpr, fdr, config
        self._confidence = confidence
        self._scale, self._projection, self._limit = scale, projection, limit
        self._text = {"model": model, "card": card, "command": command, "title": title}
        self._rows: list[Row] = []
        self._latents: list[NDArray[np.float16] | None] = []
        self._places: list[tuple[int, int]] = []  # offset and length in the spool; length 0: no thumbnail
        self._sizes: list[tuple[int, int]] = []  # (W, H) of the picture as stored; 0, 0: unknown
        self._largest: list[tuple[float, int, Image.Image]] = []  # heap: score, index, larger strip
        self._spooled = 0  # bytes
        self._level = 0  # of _THUMBNAILS, where the next image begins
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._spool = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115 closed in __exit__
        except OSError as error:
            raise PadError(f"cannot write {self.path}: {error.strerror or error}") from None

    def __enter__(self) -> ReportWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # what a full disk did not take is of no use any more
            self._spool.close()

    def add(
        self,
        row: Row,
        image: Image.Image | None = None,
        nearest: ArrayLike | None = None,
        anomaly_map: ArrayLike | None = None,
        latent: ArrayLike | None = None,
    ) -> None:
        """Adds one image; an unreadable one is a row alone.

        image: as read from its file. nearest: the reconstruction (C, S, S) in [-1, 1]. anomaly_map: (S, S),
        at the model's own size. latent: E(x), any shape, the same for all images. Raises PadError where the
        disk does not take it; whatever else is raised is about this image, which then has no picture.
        """
        index = len(self._rows)
        self._rows.append(row)
        self._latents.append(None if latent is None else np.asarray(latent).ravel().astype(np.float16))
        self._places.append((0, 0))  # a row without a picture, should drawing fail
        self._sizes.append((0, 0) if image is None else image.size)
        if row.score is not None and image is not None and nearest is not None and anomaly_map is not None:
            self._places[index] = self._add_pictures(index, row.score, image, nearest, anomaly_map)

    def _add_pictures(
        self, index: int, score: float, image: Image.Image, nearest: ArrayLike, anomaly_map: ArrayLike
    ) -> tuple[int, int]:
        # Pixels beyond the largest strip are of no use here.
        reduced = displayable(image, 2 * _LARGE_SIDE)
        box = seen_box(image.width, image.height, self._config.crop, self._config.fit)
        small = np.asarray(anomaly_map, dtype=np.float32)
        scale = self._scale or MapScale(0.0, max(float(small.max()), 1e-6))
        parts: _Parts = reduced, to_picture(nearest), small, box_on(box, image.size, reduced.size), scale
        natural = max(*reduced.size, *small.shape)
        if natural < _THUMBNAILS[0][0]:  # WebP halves the resolution of colour, which shows in tiny pictures
            natural *= _THUMBNAILS[0][0] // natural

        data = self._encode_within_budget(index, parts, natural)
        if natural > _THUMBNAILS[0][0]:
            self._keep_larger(index, score, parts, min(natural, _LARGE_SIDE))
        place = (self._spooled, len(data))
        try:
            self._spool.write(data)
        except OSError as error:
            raise PadError(f"cannot write {self.path}: {error.strerror or error}") from None
        self._spooled += len(data)
        return place

    def _encode_within_budget(self, index: int, parts: _Parts, natural: int) -> bytes:
        """The thumbnail, at the setting that fitted the image before, or a smaller one if it must be."""
        allowed = min(3 * _BUDGET, _BUDGET * (index + 1) - self._spooled)  # earlier images may leave some
        for level in range(self._level, len(_THUMBNAILS)):
            side, quality = _THUMBNAILS[level]
            data = _encode(_strip(parts, min(side, natural)), quality)
            if len(data) <= allowed:
                break
        self._level = max(0, level - 1) if 2 * len(data) < allowed else level
        return data

    def _keep_larger(self, index: int, score: float, parts: _Parts, side: int) -> None:
        if len(self._largest) < _LARGE:
            heapq.heappush(self._largest, (score, -index, _strip(parts, side)))
        elif score > self._largest[0][0]:
            heapq.heapreplace(self._largest, (score, -index, _strip(parts, side)))

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """Writes the file, whole or not at all, with the `summary` that goes into `summary.json`; returns
        its path. Raises PadError where it cannot be written."""
        from jinja2 import Environment, PackageLoader
        from markupsafe import Markup

        scored = [i for i, row in enumerate(self._rows) if row.score is not None]
        order = sorted(scored, key=lambda i: (-(self._rows[i].score or 0.0), i))
        environment = Environment(loader=PackageLoader("pad.showing"), autoescape=True, trim_blocks=True)
        style, script = (
            (files("pad.showing") / "templates" / name).read_text("utf-8")
            for name in ("report.css", "report.js")
        )
        notes = list(summary.get("notes", []))
        if missing := sum(self._places[i][1] == 0 for i in scored):
            notes.append(f"{missing} of {len(scored)} images are without a picture: it could not be drawn")
        if len(order) > self._limit:
            notes.append(f"pictures are shown of the {self._limit} most anomalous images")
        page = environment.get_template("report.html.j2").generate(
            **self._text | {"card": _as_text(self._text["card"])},
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            counts=summary["counts"],
            notes=notes,
            calibration_images=len(self._calibration) if self._calibration else 0,
            fpr=self._fpr,
            confidence=self._confidence,
            scale=self._scale,
            views=self._config.model_views if self._config.quick_views else (),
            unreadable=[(row.path, row.error) for row in self._rows if row.score is None],
            data=self._data(order, summary),
            large=Markup("\n".join(self._large_lines(order))),
            thumbnails=map(Markup, self._blocks(order[: self._limit])),
        )
        with atomic(self.path) as file:
            for piece in page:
                file.write(piece.encode("utf-8", errors="replace"))  # names may hold lone surrogates
        return self.path

    def _data(self, order: Sequence[int], summary: Mapping[str, Any]) -> dict[str, Any]:
        """What the page's script works on; lists are in the order of `order`."""
        rows = [self._rows[i] for i in order]
        labelled = any(row.anomalous is not None for row in rows)
        kinds = sorted({_label(row) for row in rows if row.anomalous is not None})
        position = {kind: i for i, kind in enumerate(kinds)}
        coordinates, axes = self._project(order)
        return {
            "paths": [row.path for row in rows],
            "scores": [float(f"{row.score:.9g}") for row in rows],
            "row": list(order),
            "labels": [-1 if r.anomalous is None else int(r.anomalous) for r in rows] if labelled else None,
            "kinds": kinds,
            "kind": [position.get(_label(row), -1) for row in rows] if labelled else None,
            "views": self._views(rows),
            "calibration": self._calibration.to_dict()["scores"] if self._calibration else [],
            "threshold": summary["threshold"],
            "fpr": self._fpr,
            "confidence": self._confidence,
            "fdr": self._fdr,
            "metrics": summary if "roc_auc" in summary else None,
            "kind_metrics": summary.get("kinds"),
            "unreadable": len(self._rows) - len(rows),
            "sizes": [self._sizes[i] for i in order],
            "seen": {key: getattr(self._config, key) for key in ("size", "channels", "crop", "fit")},
            "scale": self._scale and self._scale.to_dict(),
            "bar": colour_bar(),
            "note": self._note(),
            "xy": coordinates,
            "axes": axes,
            "per_block": _PER_BLOCK,
            "mime": "data:image/webp;base64,",
        }

    @staticmethod
    def _views(rows: Sequence[Row]) -> dict[str, list[float | None]] | None:
        """The p-values in each view, by its name; None of a single view, or without a calibration."""
        names = list(dict.fromkeys(name for row in rows for name in row.views))
        if len(names) < 2:
            return None
        return {
            name: [float(f"{row.views[name]:.4g}") if name in row.views else None for row in rows]
            for name in names
        }

    def _note(self) -> str | None:
        """Why nothing can be flagged at the rate that was asked for; None if something can."""
        if self._calibration is None or self._fdr is not None:
            return None
        return self._calibration.note(self._fpr, self._confidence)

    def _project(self, order: Sequence[int]) -> tuple[list[list[float]] | None, str]:
        """Coordinates of the latents in 0..1, as two lists, and a caption; None if there are too few."""
        latents = [self._latents[i] for i in order]
        known = [latent for latent in latents if latent is not None]
        if len(known) < 3 or len(known) < len(latents) or len({len(latent) for latent in known}) != 1:
            return None, ""
        # What half precision could not hold goes to its edge: beyond, principal components overflow.
        stacked = np.nan_to_num(np.stack(known).astype(np.float32), posinf=6e4, neginf=-6e4)
        points, caption = project(stacked, self._projection)
        low, high = points.min(axis=0), points.max(axis=0)
        places = (points - low) / np.maximum(high - low, 1e-12)
        return [[round(float(v), 4) for v in axis] for axis in places.T], caption

    def _large_lines(self, order: Sequence[int]) -> Iterator[str]:
        """For each of the first images, its larger strip in base64, or an empty line."""
        strips = {-index: strip for _, index, strip in self._largest}
        for index in order[:_LARGE]:
            strip = strips.get(index)
            yield "" if strip is None else base64.b64encode(_encode(strip, 80)).decode("ascii")

    def _blocks(self, order: Sequence[int]) -> Iterator[str]:
        for start in range(0, len(order), _PER_BLOCK):
            yield "\n".join(map(self._thumbnail, order[start : start + _PER_BLOCK]))

    def _thumbnail(self, index: int) -> str:
        offset, length = self._places[index]
        self._spool.seek(offset)
        return base64.b64encode(self._spool.read(length)).decode("ascii")


def check_projection(name: str) -> None:
    """Raises PadError for an unknown projection, or if UMAP is asked for and not installed."""
    if name not in PROJECTIONS:
        raise PadError(f"the map of latents is made by {' or '.join(PROJECTIONS)}, not '{name}'")
    if name == "umap" and find_spec("umap") is None:
        raise PadError("a map by UMAP needs the extra: pip install 'pad-anomaly[umap]'")


def project(latents: NDArray[np.float32], projection: str) -> tuple[NDArray[np.float32], str]:
    """Latents (n, d), n >= 3, in two dimensions, (n, 2), and a caption for the map."""
    if projection == "umap":
        from umap import UMAP

        neighbours = min(15, len(latents) - 1)
        reduced = UMAP(n_neighbors=neighbours, random_state=0).fit_transform(latents)
        return np.asarray(reduced, np.float32), "UMAP"
    from sklearn.decomposition import PCA

    pca = PCA(min(2, latents.shape[1]), random_state=0)
    with np.errstate(invalid="ignore"):  # all latents the same
        points = pca.fit_transform(latents)
    if points.shape[1] == 1:
        points = np.column_stack([points, np.zeros(len(points))])
    share = np.nan_to_num(pca.explained_variance_ratio_).sum()
    return points.astype(np.float32), f"two principal components, {share:.0%} of the variance"


def _strip(parts: _Parts, side: int) -> Image.Image:
    """Input, nearest normal image and map in a row, each with its longer side `side`."""
    pictures = panels(*parts, side)
    width, height = pictures[0].size
    strip = Image.new("RGB", (3 * width, height))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * width, 0))
    return strip


def _encode(strip: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def _label(row: Row) -> str:
    return row.kind or ("anomaly" if row.anomalous else "normal")


def _as_text(card: str | Mapping[str, Any]) -> str:
    if isinstance(card, str):
        return card
    return yaml.safe_dump(dict(card), sort_keys=False, allow_unicode=True, width=100)


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy that lets in this page's own style, script and pictures, and nothing else."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )
