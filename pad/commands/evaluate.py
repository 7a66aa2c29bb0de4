"""`pad evaluate`: model, data -> scores, summary, report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pad.config import to_mapping
from pad.detector import Detector, Examined
from pad.errors import PadError, printable
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.images.stream import Batch, each_batch
from pad.judging.rows import ANOMALY, Row, judge_batch, make_row, write_scores
from pad.judging.summary import format_table, summarize, write_summary

if TYPE_CHECKING:
    from pad.showing.visuals import Visuals

SHOWN = 10  # rows on the terminal


def evaluate(arguments: argparse.Namespace) -> int:
    """`pad evaluate`: model, data -> scores and summary."""
    images = resolve(arguments.data, "evaluate", arguments.data_root)
    detector = Detector.load(
        arguments.model, arguments.device, arguments.backbone_weights, arguments.allow_downloads
    )
    with _visuals(detector, images, arguments) as visuals:
        rows = list(score_rows(detector, images, arguments.fpr, arguments.batch_size, visuals))
        if arguments.fdr is not None:
            rows = judge_batch(rows, arguments.fdr)
        _write_rows(rows, arguments)
        scored = [row for row in rows if row.score is not None]
        if not scored:
            raise PadError(f"no usable image among {images.describe()}: {rows[0].path}: {rows[0].error}")
        pixels = visuals.pixels if visuals else None
        summary = summarize(rows, detector.calibration, arguments.fpr, arguments.fdr, pixels)
        summary["model"] = arguments.model
        if arguments.out and arguments.out != "-":
            write_summary(summary, Path(arguments.out) / "summary.json")
        if visuals:
            visuals.finish(rows, summary, Path(arguments.out))
    print(f"{_most_anomalous(scored)}\n\n{format_table(summary)}", file=_table_stream(arguments))
    for row in [row for row in rows if row.error][:SHOWN]:
        print(printable(f"skipped {row.path}: {row.error}"), file=sys.stderr)
    return 3 if arguments.fail_on_anomaly and summary["counts"]["flagged"] else 0


@contextmanager
def _visuals(detector: Detector, images: ImageSet, arguments: argparse.Namespace) -> Iterator[Visuals | None]:
    """What --report and --explain ask for, or None. Raises PadError if there is no folder for it."""
    if not arguments.report and not arguments.explain:
        yield None
        return
    from pad.showing.explanation import scale_of
    from pad.showing.report import ReportWriter
    from pad.showing.visuals import Visuals

    option = "--report" if arguments.report else "--explain"
    if not arguments.out or arguments.out == "-":
        raise PadError(f"{option} writes files: name a folder for them with --out")
    if not arguments.report:
        yield Visuals(detector, images, None, arguments.explain)
        return
    with ReportWriter(
        Path(arguments.out) / "report.html",
        calibration=detector.calibration,
        fpr=arguments.fpr,
        fdr=arguments.fdr,
        config=detector.config,
        scale=scale_of(detector.calibration),
        model=arguments.model,
        card={**detector.card, "recipe": to_mapping(detector.config)},
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        projection=arguments.projection,
    ) as report:
        yield Visuals(detector, images, report, arguments.explain)


def score_rows(
    detector: Detector, images: ImageSet, fpr: float, batch_size: int, visuals: Visuals | None = None
) -> Iterator[Row]:
    """A row for every image in order, read and scored batch by batch, with a progress bar on a terminal."""

    def look(batch: Batch) -> tuple[Batch, list[float], Examined | None]:
        if not batch.indices:
            return batch, [], None
        if visuals is None:
            return batch, detector.score_batch(batch.tensor).tolist(), None
        examined = detector.examine(batch.tensor)
        return batch, examined.scores.tolist(), examined

    bar = tqdm(total=len(images), desc="scoring", unit="image", disable=None, leave=False)
    looked = each_batch(look, images, detector.config, detector.device, batch_size)
    for batch, scores, examined in looked:
        results: dict[int, tuple[float | None, str]] = {i: (None, reason) for i, reason in batch.errors}
        results.update({i: (score, "") for i, score in zip(batch.indices, scores, strict=True)})
        rows = {}
        for index, (score, error) in sorted(results.items()):
            sample = images.samples[index]
            rows[index] = make_row(
                sample.name, score, detector.calibration, fpr, error, sample.anomalous, sample.kind
            )
        if visuals:
            visuals.add(rows, batch.indices, examined)
        yield from rows.values()
        bar.update(len(results))
    bar.close()


def _write_rows(rows: list[Row], arguments: argparse.Namespace) -> None:
    if arguments.out == "-":
        write_scores(rows, "-", arguments.format)
    elif arguments.out:
        write_scores(rows, Path(arguments.out) / f"scores.{arguments.format}", arguments.format)


def _table_stream(arguments: argparse.Namespace) -> Any:
    return sys.stderr if arguments.out == "-" else sys.stdout


def _most_anomalous(rows: list[Row]) -> str:
    """The most anomalous images as a table, one line each."""
    shown = sorted(rows, key=lambda row: -(row.score or 0))[:SHOWN]
    lines = ["   score  p-value  verdict  image"]
    for row in shown:
        p_value = "       " if row.p_value is None else f"{row.p_value:7.4f}"
        mark = "ANOMALY" if row.verdict == ANOMALY else f"{row.verdict:7}"
        lines.append(f"{row.score:8.4f}  {p_value}  {mark}  {printable(row.path)}")
    if len(rows) > SHOWN:
        lines.append(f"... and {len(rows) - SHOWN} more, less anomalous")
    return "\n".join(lines)
