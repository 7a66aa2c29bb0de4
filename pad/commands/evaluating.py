"""What all evaluations do, whatever scores: rows that are written as they come, a summary, an exit status.

It imports no torch: an exported graph is evaluated without.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from pad.commands.streams import SHOWN, tell_first
from pad.errors import PadError, printable
from pad.images.imageset import ImageSet
from pad.judging.calibration import Calibration
from pad.judging.metrics import PixelMetrics
from pad.judging.request import EvaluateRequest
from pad.judging.rows import ANOMALY, Row, ScoreWriter, judge_batch, speaking
from pad.judging.summary import format_table, summarize, write_summary


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


def write_rows(
    batches: Iterable[list[Row]], request: EvaluateRequest, check: Callable[[], None]
) -> list[Row]:
    """All rows, each batch written as it comes; `check` (of `stoppable`) is called after each."""
    rows: list[Row] = []
    writer = _writer(request)
    try:
        with writer or nullcontext():
            for batch in batches:
                rows += batch
                if writer:
                    writer.add(batch)
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


def summary_of(
    rows: list[Row],
    images: ImageSet,
    calibration: Calibration | None,
    request: EvaluateRequest,
    pixels: PixelMetrics | None = None,
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """The summary, which is written where there is a folder. Raises PadError if no image could be scored."""
    if all(row.score is None for row in rows):
        raise PadError(f"no usable image among {images.describe()}: {rows[0].path}: {rows[0].error}")
    summary = summarize(rows, calibration, request.fpr, request.fdr, pixels, confidence=request.confidence)
    summary["model"] = request.model
    summary["notes"] += notes
    if request.folder:
        write_summary(summary, request.folder / "summary.json")
    return summary


def show(rows: list[Row], summary: dict[str, Any], request: EvaluateRequest) -> None:
    """The most anomalous images and the summary as tables."""
    scored = [row for row in rows if row.score is not None]
    print(f"{_most_anomalous(scored)}\n\n{format_table(summary)}", file=table_stream(request))


def tell_unreadable(rows: list[Row]) -> None:
    """Which images are missing: the first few, and how many more."""
    tell_first([f"skipped {row.path}: {row.error}" for row in rows if row.error])


def _writer(request: EvaluateRequest) -> ScoreWriter | None:
    if not request.out:
        return None
    destination = request.folder / f"scores.{request.format}" if request.folder else "-"
    return ScoreWriter(destination, request.format, provisional=request.fdr is not None)


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
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


def exit_status(summary: dict[str, Any], request: EvaluateRequest) -> int:
    """The exit status that --fail-on-anomaly and --fail-on-error ask for: anomalies (3) come before what
    could not be judged (4)."""
    if request.fail_on_anomaly and summary["counts"]["flagged"]:
        return 3
    if (request.fail_on_anomaly or request.fail_on_error) and summary["unjudged"]:
        print(f"not all could be judged: {'; '.join(summary['unjudged'])} (exit status 4)", file=sys.stderr)
        return 4
    return 0


def table_stream(request: EvaluateRequest) -> Any:
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
