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

from pad.config import to_mapping
from pad.detector import Detector
from pad.errors import PadError, printable
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.map_scale import scale_of
from pad.judging.rows import ANOMALY, Row, ScoreWriter, judge_batch, speaking
from pad.judging.summary import format_table, summarize, write_summary
from pad.scoring import score_batches
from pad.showing.report import ReportWriter
from pad.showing.visuals import Visuals

SHOWN = 10  # rows on the terminal


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
    if arguments.confidence is not None and arguments.fdr is not None:
        raise PadError("--confidence goes with --fpr, not with --fdr: leave one of them away")
    with _stoppable() as check:
        images = resolve(arguments.data, "evaluate", arguments.data_root)
        detector = Detector.load(
            arguments.model,
            arguments.device,
            arguments.backbone_weights,
            arguments.allow_downloads,
            arguments.view_backbone_weights,
        )
        with _visuals(detector, images, arguments) as visuals:
            rows = _score_and_write(detector, images, arguments, visuals, check)
            scored = [row for row in rows if row.score is not None]
            if not scored:
                raise PadError(f"no usable image among {images.describe()}: {rows[0].path}: {rows[0].error}")
            pixels = visuals.pixels if visuals else None
            summary = summarize(
                rows,
                detector.calibration,
                arguments.fpr,
                arguments.fdr,
                pixels,
                confidence=arguments.confidence,
            )
            summary["model"] = arguments.model
            if visuals and visuals.without_mask:
                summary["notes"].append(
                    f"{visuals.without_mask} images count in no pixel metric: their masks cannot be used"
                )
            if arguments.out and arguments.out != "-":
                write_summary(summary, Path(arguments.out) / "summary.json")
            written = visuals.finish(rows, summary, Path(arguments.out)) if visuals else []
        print(f"{_most_anomalous(scored)}\n\n{format_table(summary)}", file=_table_stream(arguments))
        _tell(rows, visuals, written, arguments)
        if visuals and visuals.unwritten:
            raise PadError(f"{visuals.unwritten}; the scores are complete")
        return _status(summary, arguments)


def _score_and_write(
    detector: Detector,
    images: ImageSet,
    arguments: argparse.Namespace,
    visuals: Visuals | None,
    check: Callable[[], None],
) -> list[Row]:
    """All rows, each batch written before anything is drawn of it; `check` is called after each."""
    rows: list[Row] = []
    writer = _writer(arguments)
    try:
        with writer or nullcontext():
            for batch in score_batches(
                detector,
                images,
                arguments.fpr,
                arguments.batch_size,
                visuals is not None,
                arguments.confidence,
            ):
                rows += batch.rows.values()
                if writer:
                    writer.add(list(batch.rows.values()))
                if visuals:
                    visuals.add(*batch)
                check()
            if arguments.fdr is not None:
                rows = judge_batch(rows, arguments.fdr)
            if writer:
                writer.finish(rows)
    except (PadError, _Signal) as error:
        if writer and writer.kept:
            error.args = (printable(f"{error}; {writer.kept}"),)
        raise
    return rows


def _writer(arguments: argparse.Namespace) -> ScoreWriter | None:
    if not arguments.out:
        return None
    to_file = arguments.out != "-"
    destination = Path(arguments.out) / f"scores.{arguments.format}" if to_file else "-"
    return ScoreWriter(destination, arguments.format, provisional=arguments.fdr is not None)


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
def _visuals(detector: Detector, images: ImageSet, arguments: argparse.Namespace) -> Iterator[Visuals | None]:
    """What --report and --explain ask for, or None. Raises PadError if there is no folder for it."""
    if not arguments.report and not arguments.explain:
        yield None
        return
    option = "--report" if arguments.report else "--explain"
    if not arguments.out or arguments.out == "-":
        raise PadError(f"{option} writes files: name a folder for them with --out")
    if not arguments.report:
        yield Visuals(detector.config, detector.calibration, images, None, arguments.explain)
        return
    with ReportWriter(
        Path(arguments.out) / "report.html",
        calibration=detector.calibration,
        fpr=arguments.fpr,
        confidence=arguments.confidence,
        fdr=arguments.fdr,
        config=detector.config,
        scale=scale_of(detector.calibration),
        model=arguments.model,
        card={**detector.card, "recipe": to_mapping(detector.config)},
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        projection=arguments.projection,
    ) as report:
        yield Visuals(detector.config, detector.calibration, images, report, arguments.explain)


def _tell(
    rows: list[Row], visuals: Visuals | None, written: list[Path], arguments: argparse.Namespace
) -> None:
    """Where pictures lie, and which images or pictures are missing: the first few, and how many more."""
    if report := next((path for path in written if path.suffix == ".html"), None):
        print(printable(f"report: {report}"), file=_table_stream(arguments))
    if montages := [path for path in written if path.suffix == ".png"]:
        print(printable(f"explanations: {montages[0].parent}"), file=_table_stream(arguments))
    _tell_first([f"skipped {row.path}: {row.error}" for row in rows if row.error])
    _tell_first(visuals.failures if visuals else [])


def _tell_first(lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        print(printable(line), file=sys.stderr)
    if len(lines) > SHOWN:
        print(f"... and {len(lines) - SHOWN} more like this", file=sys.stderr)


def _status(summary: dict[str, Any], arguments: argparse.Namespace) -> int:
    """The exit status that --fail-on-anomaly and --fail-on-error ask for: anomalies (3) come before what
    could not be judged (4)."""
    if arguments.fail_on_anomaly and summary["counts"]["flagged"]:
        return 3
    if (arguments.fail_on_anomaly or arguments.fail_on_error) and summary["unjudged"]:
        print(f"not all could be judged: {'; '.join(summary['unjudged'])} (exit status 4)", file=sys.stderr)
        return 4
    return 0


def _table_stream(arguments: argparse.Namespace) -> Any:
    return sys.stderr if arguments.out == "-" else sys.stdout


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
