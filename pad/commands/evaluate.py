"""`pad evaluate`: model, data -> scores, summary, report."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pad.commands.requests import request_of
from pad.commands.streams import SHOWN, tell_first
from pad.config import to_mapping
from pad.detector import Detector
from pad.errors import PadError, printable
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.map_scale import scale_of
from pad.judging.request import EvaluateRequest
from pad.judging.rows import ANOMALY, Row, ScoreWriter, judge_batch, speaking
from pad.judging.summary import format_table, summarize, write_summary
from pad.scoring import score_batches
from pad.showing.report import ReportWriter
from pad.showing.visuals import Visuals


class Stopped(PadError):
    """Stopped by a signal; what was scored is kept."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class _Signal(KeyboardInterrupt):
    """What a signal raises on its way to become Stopped: no exception that a picture may cause."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def evaluate(arguments: argparse.Namespace) -> int:
    """`pad evaluate`: model, data -> scores and summary."""
    request = request_of(EvaluateRequest, arguments)
    with _stoppable() as check:
        images = resolve(request.data, "evaluate", request.data_root)
        detector = Detector.load(
            request.model,
            request.device,
            request.backbone_weights,
            request.allow_downloads,
            request.view_backbone_weights,
        )
        with _visuals(detector, images, request) as visuals:
            rows = _score_and_write(detector, images, request, visuals, check)
            scored = [row for row in rows if row.score is not None]
            if not scored:
                raise PadError(f"no usable image among {images.describe()}: {rows[0].path}: {rows[0].error}")
            pixels = visuals.pixels if visuals else None
            summary = summarize(
                rows,
                detector.calibration,
                request.fpr,
                request.fdr,
                pixels,
                confidence=request.confidence,
            )
            summary["model"] = request.model
            if visuals and visuals.without_mask:
                summary["notes"].append(
                    f"{visuals.without_mask} images count in no pixel metric: their masks cannot be used"
                )
            if request.folder:
                write_summary(summary, request.folder / "summary.json")
            written = visuals.finish(rows, summary, request.folder) if visuals and request.folder else []
        print(f"{_most_anomalous(scored)}\n\n{format_table(summary)}", file=_table_stream(request))
        _tell(rows, visuals, written, request)
        if visuals and visuals.unwritten:
            raise PadError(f"{visuals.unwritten}; the scores are complete")
        return _status(summary, request)


def _score_and_write(
    detector: Detector,
    images: ImageSet,
    request: EvaluateRequest,
    visuals: Visuals | None,
    check: Callable[[], None],
) -> list[Row]:
    """All rows, each batch written before anything is drawn of it; `check` is called after each."""
    rows: list[Row] = []
    writer = _writer(request)
    try:
        with writer or nullcontext():
            for batch in score_batches(
                detector,
                images,
                request.fpr,
                request.batch_size,
                visuals is not None,
                request.confidence,
                not request.quiet,
            ):
                rows += batch.rows.values()
                if writer:
                    writer.add(list(batch.rows.values()))
                if visuals:
                    visuals.add(*batch)
                check()
            if request.fdr is not None:
                rows = judge_batch(rows, request.fdr)
            if writer:
                writer.finish(rows)
    except (PadError, _Signal) as error:
        if writer and writer.kept:
            error.args = (printable(f"{error}; {writer.kept}"),)
        raise
    return rows


def _writer(request: EvaluateRequest) -> ScoreWriter | None:
    if not request.out:
        return None
    destination = request.folder / f"scores.{request.format}" if request.folder else "-"
    return ScoreWriter(destination, request.format, provisional=request.fdr is not None)


@contextmanager
def _stoppable() -> Iterator[Callable[[], None]]:
    """Within, Ctrl-C and SIGTERM stop what is going on, and leave as Stopped.

    What a signal raises is lost where it hits a finalizer: the function that is given here raises it again,
    and is to be called now and then.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        check()

    def check() -> None:
        if received:
            raise _Signal(received[0])

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: leave signals to the program that called us
        before = {}
    try:
        yield check
    except _Signal as interrupt:
        raise Stopped(str(interrupt), interrupt.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    """Where pictures lie, and which images or pictures are missing: the first few, and how many more."""
    if report := next((path for path in written if path.suffix == ".html"), None):
        print(printable(f"report: {report}"), file=_table_stream(request))
    if montages := [path for path in written if path.suffix == ".png"]:
        print(printable(f"explanations: {montages[0].parent}"), file=_table_stream(request))
    tell_first([f"skipped {row.path}: {row.error}" for row in rows if row.error])
    tell_first(visuals.failures if visuals else [])


def _status(summary: dict[str, Any], request: EvaluateRequest) -> int:
    """The exit status that --fail-on-anomaly and --fail-on-error ask for: anomalies (3) come before what
    could not be judged (4)."""
    if request.fail_on_anomaly and summary["counts"]["flagged"]:
        return 3
    if (request.fail_on_anomaly or request.fail_on_error) and summary["unjudged"]:
        print(f"not all could be judged: {'; '.join(summary['unjudged'])} (exit status 4)", file=sys.stderr)
        return 4
    return 0


def _table_stream(request: EvaluateRequest) -> Any:
    return sys.stderr if request.to_stdout else sys.stdout


def _most_anomalous(rows: list[Row]) -> str:
    """The most anomalous images as a table, one line each; of anomalies, the views that they are most unusual
    in."""
    shown = sorted(rows, key=lambda row: -(row.score or 0))[:SHOWN]
    seen_by = [", ".join(speaking(row.views)) if row.verdict == ANOMALY else "" for row in shown]
    column = ["seen by", *seen_by] if any(seen_by) else [""] * (1 + len(shown))
    width = max(map(len, column))
    column = [f"{text:{width}}  " if width else "" for text in column]
    lines = [f"   score  p-value  verdict  {column[0]}image"]
    for row, views in zip(shown, column[1:], strict=True):
        p_value = "       " if row.p_value is None else f"{row.p_value:7.4f}"
        mark = "ANOMALY" if row.verdict == ANOMALY else f"{row.verdict:7}"
        lines.append(f"{row.score:8.4f}  {p_value}  {mark}  {views}{printable(row.path)}")
    if len(rows) > SHOWN:
        lines.append(f"... and {len(rows) - SHOWN} more, less anomalous")
    return "\n".join(lines)
