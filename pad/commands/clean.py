"""`pad clean`: an unlabelled folder -> what does not belong there, ranked, shown, and moved aside."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pad.commands.requests import request_of
from pad.commands.streams import SHOWN, tell_first
from pad.config import BATCH_SIZE, FPR, to_mapping
from pad.devices import pick_device
from pad.errors import PadError, printable
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.rows import ANOMALY, Row, write_scores
from pad.judging.summary import write_summary
from pad.learning.cleaning import CleanRequest, Ranking, rank
from pad.scoring import score_batches
from pad.showing.report import ReportWriter
from pad.showing.visuals import Visuals
from pad.store.moves import move_aside


def clean(arguments: argparse.Namespace) -> int:
    """`pad clean`: a folder -> a ranking of its images, those that belong least first."""
    request = request_of(CleanRequest, arguments)
    images = resolve(request.data, "evaluate", request.data_root)
    if request.move_to is not None and not all(isinstance(content, Path) for content in images.contents):
        raise PadError(f"--move-to moves files, and {images.source} is none")
    config = request.recipe(images)
    ranking = rank(images, config, pick_device(request.device), request.first, not request.quiet)
    ranked = [ranking.rows[index] for index in ranking.order]
    print(_first(ranked))
    print(f"\n{_found(ranking, request)}")
    if request.folder:
        _write(ranking, ranked, images, request, request.folder)
    if request.move_to is not None and ranking.marked:
        moved = ranking.order[: ranking.marked]
        log = move_aside(_files(images, moved), Path(request.move_to))
        print(printable(f"moved {len(moved)} files to {request.move_to}; where they were: {log}"))
    tell_first([f"skipped {row.path}: {row.error}" for row in ranking.rows if row.error])
    return 0


def _first(ranked: Sequence[Row]) -> str:
    lines = ["   score  image"]
    for row in ranked[:SHOWN]:
        lines.append(f"{row.score:8.4f}  {printable(row.path)}{' *' if row.verdict == ANOMALY else ''}")
    if len(ranked) > SHOWN:
        lines.append(f"... and {len(ranked) - SHOWN} more, which belong better")
    return "\n".join(lines)


def _found(ranking: Ranking, request: CleanRequest) -> str:
    """How many are marked, and why."""
    ranked, marked = f"{len(ranking.order)} images ranked", ranking.marked
    if request.first is not None or ranking.detector.config.contamination:
        return f"{ranked}; the first {marked} are marked (*)"
    if marked:
        return f"{ranked}; {marked} stand apart from the others: the first {marked} are marked (*)"
    return f"{ranked}; no group stands apart: look at the first ones, and mark so many by --first N"


def _write(
    ranking: Ranking, ranked: Sequence[Row], images: ImageSet, request: CleanRequest, folder: Path
) -> None:
    """ranking.csv, summary.json and, if asked for, report.html."""
    unreadable = [row for row in ranking.rows if row.error]
    write_scores([*ranked, *unreadable], folder / "ranking.csv")
    counts = {
        "images": len(images),
        "scored": len(ranked),
        "unreadable": len(unreadable),
        "flagged": ranking.marked,
    }
    note = f"the first {ranking.marked} images of ranking.csv are marked; scores alone order this page"
    summary: dict[str, Any] = {
        "counts": counts,
        "threshold": None,
        "notes": [note] if ranking.marked else [],
    }
    write_summary(summary, folder / "summary.json")
    print(printable(f"ranking: {folder / 'ranking.csv'}"))
    if request.report:
        _write_report(ranking, images, request, folder / "report.html", summary)


def _write_report(
    ranking: Ranking, images: ImageSet, request: CleanRequest, path: Path, summary: dict[str, Any]
) -> None:
    """Pictures by views that were fitted on what belongs; scores by those that did not see the image."""
    detector = ranking.detector
    with ReportWriter(
        path,
        calibration=None,
        fpr=FPR,
        config=detector.config,
        card={"recipe": to_mapping(detector.config)},
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        title=f"What does not belong in {images.source}",
    ) as report:
        visuals = Visuals(detector.config, None, images, report)
        for batch in score_batches(
            detector, images, FPR, BATCH_SIZE, examine=True, progress=not request.quiet
        ):
            visuals.add({i: ranking.rows[i] for i in batch.rows}, batch.indices, batch.examined)
        visuals.finish(ranking.rows, summary, path.parent)
    tell_first(visuals.failures)
    if visuals.unwritten:
        raise PadError(f"{visuals.unwritten}; the ranking is complete")
    print(printable(f"report: {path}"))


def _files(images: ImageSet, chosen: Sequence[int]) -> Iterator[tuple[Path, Path]]:
    """Files, and their places in another folder: as in the one they come from."""
    for index in chosen:
        content = images.contents[index]
        assert isinstance(content, Path)
        yield content, Path(images.keys[index])
