"""One result row an image, and the files of rows: CSV, JSON Lines, JSON and Parquet."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pad.errors import PadError
from pad.judging.calibration import Calibration, false_discovery
from pad.store.files import atomic

NORMAL, ANOMALY = "normal", "anomaly"
FORMATS = ("csv", "jsonl", "json", "parquet")
COLUMNS = ("path", "score", "p_value", "verdict", "error")
_ROW_GROUP = 1 << 16  # rows of a Parquet file that are read together
_HEADS = {"csv": (",".join(COLUMNS) + "\n").encode(), "jsonl": b"", "json": b"["}


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
    views: Mapping[str, float] = field(default_factory=dict)  # the p-value in each view; empty where unknown


def speaking(views: Mapping[str, float]) -> tuple[str, ...]:
    """In which views an image is most unusual: those of the smallest p-value, of which there may be several.
    None of a single view, nor where nothing is known."""
    least = min(views.values(), default=1.0)
    return tuple(name for name, p in views.items() if p == least) if len(views) > 1 else ()


def make_row(
    path: str,
    score: float | None,
    calibration: Calibration | None,
    fpr: float,
    error: str = "",
    anomalous: bool | None = None,
    kind: str | None = None,
    confidence: float | None = None,
    views: Mapping[str, float] | None = None,
) -> Row:
    """The row of one image, with its p-value and its verdict at the false-alarm rate `fpr`, which holds on
    average or with a `confidence` (pad/judging/calibration.py). views: the p-value in each view.

    A score of None, or one that is not a finite number, makes a row with an error and no verdict.
    """
    if score is None or not math.isfinite(score):
        reason = error or "the model gave no finite score for it"
        return Row(path, error=reason, anomalous=anomalous, kind=kind)
    if calibration is None:
        return Row(path, float(score), anomalous=anomalous, kind=kind)
    p_value = float(calibration.p_values(score))
    verdict = ANOMALY if p_value <= calibration.p_limit(fpr, confidence) else NORMAL
    return Row(path, float(score), p_value, verdict, "", anomalous, kind, views or {})


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
    five keys, null or "" where there is no value, and `views`, the p-value in each view by its name; pure
    ASCII. parquet: columns of the same six names, `views` a map; to files only, by pyarrow. Scores have nine
    significant digits, which give back the float32 exactly. `rows` may be a generator: it is read once, row
    by row.

    Raises PadError for an unknown format or where the file cannot be written.
    """
    check_format(form)
    if form == "parquet":
        _write_parquet(rows, destination)
        return
    with _standard_output() if str(destination) == "-" else atomic(destination) as file:
        file.write(_HEADS[form])
        count = 0
        for count, row in enumerate(rows, 1):
            file.write(_line(row, form, first=count == 1))
        file.write(_tail(form, count))


class ScoreWriter:
    """`write_scores` for rows that come over time: whatever was added is on disk, whatever happens next.

        with ScoreWriter(folder / "scores.csv", "csv") as writer:
            for ...:
                writer.add(some_rows)
            writer.finish()

    destination, form: as for `write_scores`. While the file grows it is called `scores.partial-PID.csv`;
    `finish` gives it its name. A writer that ends without `finish` (an error, a signal) leaves the rows
    that it has as `scores.partial.csv`, and an older `scores.csv` as it was; `kept` says so. To standard
    output, rows go as they are added.
    provisional: the rows are not final, since their verdicts depend on all of them; those that are final
    are given to `finish`, and standard output gets no others. So it is of parquet, which cannot grow: until
    then, and where it ends without `finish`, the rows are a file of JSON Lines.
    Raises PadError for an unknown format or where the file cannot be written.
    """

    def __init__(self, destination: str | Path, form: str = "csv", provisional: bool = False) -> None:
        check_format(form)
        self.kept = ""
        self._destination, self._final_form, self._provisional = destination, form, provisional
        self._at_end = provisional or form == "parquet"  # is all written
        self._form = "jsonl" if form == "parquet" else form
        self._to_stdout = str(destination) == "-"
        self._waits = self._to_stdout and provisional  # until all is final
        self._count = 0
        self._file: BinaryIO | None = None
        path = Path(destination)
        if form == "parquet":
            _check_parquet(destination)
            path = path.with_suffix(".jsonl")
        self._partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._growing = path.with_name(f"{path.stem}.partial-{os.getpid()}{path.suffix}")

    def __enter__(self) -> ScoreWriter:
        if not self._to_stdout:
            with _told(self._destination):
                self._growing.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._growing.open("wb")
        self._write([_HEADS[self._form]])
        return self

    def add(self, rows: Sequence[Row]) -> None:
        """Writes the rows and hands them to the operating system. Raises PadError where it cannot."""
        first = self._count == 0
        self._count += len(rows)
        if self._provisional:
            rows = [dataclasses.replace(row, verdict="") for row in rows]
        self._write([_line(row, self._form, first and i == 0) for i, row in enumerate(rows)])

    def finish(self, rows: Iterable[Row] | None = None) -> None:
        """All rows are there: the file takes its name. rows: the final ones of a provisional writer, and all
        for parquet."""
        if self._at_end:
            write_scores(rows or [], self._destination, self._final_form)
        else:
            self._write([_tail(self._form, self._count)])
        if self._to_stdout:
            return
        with _told(self._destination):
            self._close()
            if self._at_end:
                self._growing.unlink()
            else:
                self._growing.replace(self._destination)
            self._partial.unlink(missing_ok=True)  # of an evaluation that was stopped before

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        with suppress(OSError, PadError):  # whatever ended the evaluation is told already
            self._write([_tail(self._form, self._count)])
            self._close()
        self._file = None
        with suppress(OSError):
            if self._count:
                self._growing.replace(self._partial)
                self.kept = f"the {self._count} rows so far are kept in {self._partial}"
            else:
                self._growing.unlink()

    def _write(self, pieces: list[bytes]) -> None:
        if self._to_stdout and not self._waits:
            with _standard_output() as file:
                file.write(b"".join(pieces))
        elif self._file:
            with _told(self._destination):
                self._file.write(b"".join(pieces))
                self._file.flush()

    def _close(self) -> None:
        if self._file:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def check_format(form: str) -> None:
    """Raises PadError unless `form` is one of FORMATS."""
    if form not in FORMATS:
        raise PadError(f"--format takes {', '.join(FORMATS)}, not '{form}'")


def _check_parquet(destination: str | Path) -> None:
    """Raises PadError where Parquet cannot be written."""
    if str(destination) == "-":
        raise PadError("--format parquet writes a file: name a folder with --out")
    if importlib.util.find_spec("pyarrow") is None:
        raise PadError("--format parquet needs pyarrow: python -m pip install 'pad-anomaly[parquet]'")


def _write_parquet(rows: Iterable[Row], destination: str | Path) -> None:
    _check_parquet(destination)
    import pyarrow as pa
    from pyarrow import parquet

    views = pa.map_(pa.string(), pa.float64())
    kinds = (pa.string(), pa.float64(), pa.float64(), pa.string(), pa.string(), views)
    schema = pa.schema(list(zip((*COLUMNS, "views"), kinds, strict=True)))
    with atomic(destination) as file, parquet.ParquetWriter(file, schema) as writer:
        rest = iter(rows)
        while some := list(itertools.islice(rest, _ROW_GROUP)):
            columns = zip(*map(_parquet_values, some), strict=True)
            arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _parquet_values(row: Row) -> tuple[Any, ...]:
    score = None if row.score is None else float(f"{row.score:.9g}")
    return _utf8(row.path), score, row.p_value, row.verdict, _utf8(row.error), list(row.views.items())


def _utf8(text: str) -> str:
    """Parquet holds no other bytes: what a file name has of them becomes \\xNN."""
    return _as_bytes(text).decode("utf-8", "backslashreplace")


@contextmanager
def _told(destination: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PadError(f"cannot write {destination}: {error.strerror or error}") from None


@contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    with _told("to standard output"):
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


def _line(row: Row, form: str, first: bool) -> bytes:
    if form == "csv":
        return _csv_line(row)
    if form == "jsonl":
        return _json_object(row) + b"\n"
    return (b"\n" if first else b",\n") + _json_object(row)


def _tail(form: str, rows: int) -> bytes:
    return b"" if form != "json" else b"\n]\n" if rows else b"]\n"


def _csv_line(row: Row) -> bytes:
    score = "" if row.score is None else f"{row.score:.9g}"
    p_value = "" if row.p_value is None else f"{row.p_value:.9g}"
    buffer = io.StringIO()
    plain = csv.writer(buffer, lineterminator="\n")
    # Before Python 3.13 the csv module leaves a lone carriage return unquoted, and readers break there.
    quoted = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer = quoted if "\r" in row.path + row.error else plain
    writer.writerow([row.path, score, p_value, row.verdict, row.error])
    return _as_bytes(buffer.getvalue())


def _json_object(row: Row) -> bytes:
    score = None if row.score is None else float(f"{row.score:.9g}")
    values = (row.path, score, row.p_value, row.verdict, row.error)
    content = {**dict(zip(COLUMNS, values, strict=True)), "views": dict(row.views)}
    return json.dumps(content, allow_nan=False).encode("ascii")


def _as_bytes(text: str) -> bytes:
    """UTF-8; bytes of a file name that Python could not decode come out as they were."""
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as Windows allows in names
        return text.encode("utf-8", errors="backslashreplace")
