"""`pad evaluate`: model, data -> scores, summary, report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pad.commands.evaluating import (
    exit_status,
    show,
    stoppable,
    summary_of,
    table_stream,
    tell_unreadable,
    write_rows,
)
from pad.commands.loading import load_detector
from pad.commands.requests import request_of
from pad.commands.streams import tell_first
from pad.config import to_mapping
from pad.detector import Detector
from pad.errors import PadError, printable
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.map_scale import scale_of
from pad.judging.request import EvaluateRequest
from pad.judging.rows import Row
from pad.scoring import score_batches
from pad.showing.report import ReportWriter
from pad.showing.visuals import Visuals


def evaluate(arguments: argparse.Namespace) -> int:
    """`pad evaluate`: model, data -> scores and summary."""
    request = request_of(EvaluateRequest, arguments)
    with stoppable() as check:
        images = resolve(request.data, "evaluate", request.data_root)
        detector = load_detector(request, request.precision)
        with _visuals(detector, images, request) as visuals:
            rows = write_rows(_batches(detector, images, request, visuals), request, check)
            notes = []
            if visuals and visuals.without_mask:
                notes = [
                    f"{visuals.without_mask} images count in no pixel metric: their masks cannot be used"
                ]
            pixels = visuals.pixels if visuals else None
            summary = summary_of(rows, images, detector.calibration, request, pixels, notes)
            written = visuals.finish(rows, summary, request.folder) if visuals and request.folder else []
        show(rows, summary, request)
        _tell(rows, visuals, written, request)
        if visuals and visuals.unwritten:
            raise PadError(f"{visuals.unwritten}; the scores are complete")
        return exit_status(summary, request)


def _batches(
    detector: Detector, images: ImageSet, request: EvaluateRequest, visuals: Visuals | None
) -> Iterator[list[Row]]:
    """The rows, batch by batch; each is drawn when the next is asked for, so that it is written by then."""
    for batch in score_batches(
        detector,
        images,
        request.fpr,
        request.batch_size,
        visuals is not None,
        request.confidence,
        not request.quiet,
    ):
        yield list(batch.rows.values())
        if visuals:
            visuals.add(*batch)


@contextmanager
def _visuals(detector: Detector, images: ImageSet, request: EvaluateRequest) -> Iterator[Visuals | None]:
    """What --report and --explain ask for, or None. Raises PadError if there is no folder for it."""
    if not request.folder or not (request.report or request.explain):
        yield None
        return
    if not request.report:
        yield Visuals(detector.config, detector.calibration, images, None, request.explain)
        return
    with ReportWriter(
        request.folder / "report.html",
        calibration=detector.calibration,
        fpr=request.fpr,
        confidence=request.confidence,
        fdr=request.fdr,
        config=detector.config,
        scale=scale_of(detector.calibration),
        model=request.model,
        card={**detector.card, "recipe": to_mapping(detector.config)},
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        projection=request.projection,
    ) as report:
        yield Visuals(detector.config, detector.calibration, images, report, request.explain)


def _tell(rows: list[Row], visuals: Visuals | None, written: list[Path], request: EvaluateRequest) -> None:
    """Where pictures lie, and which images or pictures are missing."""
    if report := next((path for path in written if path.suffix == ".html"), None):
        print(printable(f"report: {report}"), file=table_stream(request))
    if montages := [path for path in written if path.suffix == ".png"]:
        print(printable(f"explanations: {montages[0].parent}"), file=table_stream(request))
    tell_unreadable(rows)
    tell_first(visuals.failures if visuals else [])
