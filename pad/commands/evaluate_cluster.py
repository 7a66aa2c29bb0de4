"""`pad evaluate MODEL DATA --ray [ADDRESS]`: the same rows, scored by many processes and machines."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pad.cluster.journal import Journal
from pad.commands.evaluating import exit_status, show, stoppable, summary_of, tell_unreadable, write_rows
from pad.commands.extras import from_extra
from pad.commands.loading import load_detector
from pad.commands.requests import request_of
from pad.detector import Detector
from pad.errors import PadError, printable
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.images.stream import pieces
from pad.judging.request import EvaluateRequest
from pad.judging.rows import Row
from pad.progress import progress_bar
from pad.provenance import versions
from pad.store.hub import resolve_model
from pad.store.model_folder import fingerprint

JOURNAL = "scores.journal"


def evaluate(arguments: argparse.Namespace) -> int:
    """Raises PadError for what only a single process can do."""
    request = request_of(EvaluateRequest, arguments)
    if request.report or request.explain:
        option = "--report" if request.report else "--explain"
        raise PadError(f"{option} does not go with --ray: the workers keep no pictures")
    cluster = from_extra("pad.cluster.run", "ray")
    start = from_extra("pad.cluster.start", "ray")
    with stoppable() as check:
        images = resolve(request.data, "evaluate", request.data_root)
        folder = resolve_model(request.model)
        detector = load_detector(request, request.precision)
        size = cluster.size_of_pieces(detector, request.batch_size)
        with _journal(detector, folder, images, request, size) as journal, start.cluster(arguments.ray):
            parts = cluster.scored(detector, folder, images, request, set(journal.done) if journal else set())
            with progress_bar(len(images), "scoring", "image", not request.quiet) as bar:
                rows = write_rows(_in_order(parts, journal, len(images), size, bar), request, check)
        summary = summary_of(rows, images, detector.calibration, request)
        if journal:
            journal.remove()
        show(rows, summary, request)
        tell_unreadable(rows)
        return exit_status(summary, request)


def _journal(detector: Detector, folder: Path, images: ImageSet, request: EvaluateRequest, size: int) -> Any:
    """Of what is done, where there is a folder for it; else None."""
    if request.folder is None:
        return nullcontext()
    job = {
        "model": fingerprint(folder),
        "images": _digest(images),
        "piece": size,
        "fpr": request.fpr,
        "confidence": request.confidence,
        "precision": [request.precision, str(detector.dtype), detector.device.type],
        "versions": versions(),
    }
    journal = Journal(request.folder / JOURNAL, job)
    if journal.done:
        count = sum(map(len, journal.done.values()))
        print(printable(f"{journal.path}: {count} images are scored already"), file=sys.stderr)
    return journal


def _digest(images: ImageSet) -> str:
    """Which images they are, and of files when they were changed."""
    digest = hashlib.sha256(str(images.fingerprint()["sha256"]).encode())
    for sample, content in zip(images.samples, images.contents, strict=True):
        changed = 0
        if isinstance(content, Path):
            try:
                changed = content.stat().st_mtime_ns
            except OSError:
                changed = -1
        size = getattr(content, "size", "")
        digest.update(f"{sample.name}\0{sample.kind}\0{changed}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _in_order(parts: Any, journal: Journal | None, count: int, size: int, bar: Any) -> Iterator[list[Row]]:
    """The rows of all pieces in order, each kept in the journal as soon as it is there."""
    waiting = dict(journal.done) if journal else {}
    for number in range(len(list(pieces(count, size)))):
        while number not in waiting:
            found, rows = next(parts)
            if journal:
                journal.add(found, rows)
            waiting[found] = rows
        rows = waiting.pop(number)
        bar.update(len(rows))
        yield rows
