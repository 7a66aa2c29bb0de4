"""One result row an image, and the files of rows: CSV, JSON Lines and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pad.errors import PadError
from pad.judging.calibration import Calibration, false_discovery
from pad.store.files import atomic

NORMAL, ANOMALY = "normal", "anomaly"
FORMATS = ("csv", "jsonl", "json")
COLUMNS = ("path", "score", "p_value", "verdict", "error")


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one image. Labels (`anomalous`, `kind`) only ever travel beside it: they are None
    where unknown, and no score, p-value or verdict depends on them."""

    path: str
    score: float | None = None  # higher is more anomalous; None where the image could not be scored
    p_value: float | None = None  # in (0, 1]; None without a score or without a calibration
    verdict: str = ""  # "normal" or "anomaly"; empty without a p-value
    error: str = ""  # why there is no score
    anomalous: bool | None = None
    kind: str | None = None


def make_row(
    path: str,
    score: float | None,
    calibration: Calibration | None,
    fpr: float,
    error: str = "",
    anomalous: bool | None = None,
    kind: str | None = None,
    confidence: float | None = None,
) -> Row:
    """The row of one image, with its p-value and its verdict at the false-alarm rate `fpr`, which holds on
    average or with a `confidence` (pad/judging/calibration.py).

    A score of None, or one that is not a finite number, makes a row with an error and no verdict.
    """
    if score is None or not math.isfinite(score):
        reason = error or "the model gave no finite score for it"
        return Row(path, error=reason, anomalous=anomalous, kind=kind)
    if calibration is None:
        return Row(path, float(score), anomalous=anomalous, kind=kind)
    p_value = float(calibration.p_values(score))
    verdict = ANOMALY if p_value <= calibration.p_limit(fpr, confidence) else NORMAL
    return Row(path, float(score), p_value, verdict, "", anomalous, kind)


def judge_batch(rows: Sequence[Row], fdr: float) -> list[Row]:
    """The same rows, with verdicts that bound the expected share of false ones among the flagged by
    `fdr` (Benjamini-Hochberg over all rows that have a p-value). Raises PadError unless 0 < fdr < 1."""
    flagged = false_discovery([math.nan if row.p_value is None else row.p_value for row in rows], fdr)
    return [
        row if row.p_value is None else dataclasses.replace(row, verdict=ANOMALY if flag else NORMAL)
        for row, flag in zip(rows, flagged, strict=True)
    ]


def write_scores(rows: Iterable[Row], destination: str | Path, form: str = "csv") -> None:
    """Writes a row for every input, in the given order, to a file (whole or not at all) or, for `-`, to
    standard output.

    csv: the columns path, score, p_value, verdict, error; empty where there is no value; lines end in
    a line feed; names that are not valid UTF-8 keep their own bytes. jsonl, json: objects with the same
    five keys, null or "" where there is no value, pure ASCII. Scores have nine significant digits, which
    give back the float32 exactly. `rows` may be a generator: it is read once, row by row.

    Raises PadError for an unknown format or where the file cannot be written.
    """
    writers = {"csv": _csv_lines, "jsonl": _jsonl_lines, "json": _json_lines}
    if form not in writers:
        raise PadError(f"--format takes {', '.join(FORMATS)}, not '{form}'")
    with _opened(destination) as file:
        for line in writers[form](rows):
            file.write(line)


@contextmanager
def _opened(destination: str | Path) -> Iterator[BinaryIO]:
    if str(destination) == "-":
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with atomic(destination) as file:
            yield file


def _csv_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    buffer = io.StringIO()
    plain = csv.writer(buffer, lineterminator="\n")
    quoted = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(COLUMNS)
    yield _as_bytes(buffer.getvalue())
    for row in rows:
        buffer.seek(0)
        buffer.truncate()
        # Before Python 3.13 the csv module leaves a lone carriage return unquoted, and readers break there.
        writer = quoted if "\r" in row.path + row.error else plain
        score = "" if row.score is None else f"{row.score:.9g}"
        p_value = "" if row.p_value is None else f"{row.p_value:.9g}"
        writer.writerow([row.path, score, p_value, row.verdict, row.error])
        yield _as_bytes(buffer.getvalue())


def _jsonl_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    for row in rows:
        yield _json_object(row) + b"\n"


def _json_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    separator = b"[\n"
    for row in rows:
        yield separator + _json_object(row)
        separator = b",\n"
    yield b"[]\n" if separator == b"[\n" else b"\n]\n"


def _json_object(row: Row) -> bytes:
    score = None if row.score is None else float(f"{row.score:.9g}")
    values = (row.path, score, row.p_value, row.verdict, row.error)
    return json.dumps(dict(zip(COLUMNS, values, strict=True)), allow_nan=False).encode("ascii")


def _as_bytes(text: str) -> bytes:
    """UTF-8; bytes of a file name that Python could not decode come out as they were."""
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as Windows allows in names
        return text.encode("utf-8", errors="backslashreplace")
