"""From rows to the summary of an evaluation, and its table for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pad.judging.calibration import Calibration
from pad.judging.metrics import METRICS, PixelMetrics, detection_metrics, rate
from pad.judging.rows import ANOMALY, Row, judge_batch, make_row, write_scores
from pad.store.files import atomic

SURE = 0.95  # the probability at which a rate that holds on average is bounded for one model

__all__ = [
    "PixelMetrics",
    "Row",
    "format_table",
    "judge_batch",
    "make_row",
    "summarize",
    "write_scores",
    "write_summary",
]


def summarize(
    rows: Sequence[Row],
    calibration: Calibration | None,
    fpr: float,
    fdr: float | None = None,
    pixels: PixelMetrics | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float | None = None,
) -> dict[str, Any]:
    """What `summary.json` holds, of plain JSON types:

    - `counts`: `images`, `scored`, `unreadable`, `flagged`; where labels exist, `normal` and `anomalous`
      among the scored.
    - `fpr`, `confidence`, `fdr`, and `threshold`: an image is flagged if its score is at least this. None
      without a calibration or if nothing can be flagged. With `fdr`, the lowest score that was flagged.
    - `worst_fpr`: where `fpr` holds on average, what this one model's rate is at most with a probability of
      95 %; None where it does not.
    - `calibration`: `images` and `lowest_fpr`, or None; `notes`: sentences for the user.
    - `unjudged`: why there are images of which nobody can say whether they are anomalous, a phrase a reason:
      no calibration, too few calibration images, unreadable files. Empty where all were judged.
    - where normal images are labelled `false_alarm_rate`, where anomalies are `detection_rate`, where
      both are the three of `metrics.METRICS`: each `{"value", "low", "high"}` with a 95 % interval.
    - `kinds`: for each kind of anomaly `images`, `flagged`, `detection_rate` and, against all normal
      images, the three metrics; `pixels`: `pixel_roc_auc` and `aupro` where masks exist.
    """
    scored = [row for row in rows if row.score is not None]
    normal = [row for row in scored if row.anomalous is False]
    anomalous = [row for row in scored if row.anomalous]
    summary: dict[str, Any] = {
        "counts": {
            "images": len(rows),
            "scored": len(scored),
            "unreadable": len(rows) - len(scored),
            "flagged": _flagged(scored),
        },
        "fpr": fpr,
        "confidence": confidence,
        "fdr": fdr,
        "threshold": _threshold(scored, calibration, fpr, fdr, confidence),
        "worst_fpr": None if fdr or confidence else _worst_rate(calibration, fpr),
        "calibration": calibration and {"images": len(calibration), "lowest_fpr": calibration.smallest_rate},
        "notes": _notes(scored, calibration, fpr, fdr, confidence),
        "unjudged": _unjudged(rows, scored, calibration, fpr, fdr, confidence),
    }
    if normal or anomalous:
        summary["counts"] |= {"normal": len(normal), "anomalous": len(anomalous)}
    if normal and calibration:
        summary["false_alarm_rate"] = rate(_flagged(normal), len(normal))
    if anomalous:
        summary |= _of_anomalies(normal, anomalous, calibration, resamples, seed)
        kinds = sorted({row.kind or "anomaly" for row in anomalous})
        summary["kinds"] = {}
        for kind in kinds:
            members = [row for row in anomalous if (row.kind or "anomaly") == kind]
            summary["kinds"][kind] = {
                "images": len(members),
                "flagged": _flagged(members),
                **_of_anomalies(normal, members, calibration, resamples, seed),
            }
    if pixels and (results := pixels.results()):
        summary["pixels"] = results
    return summary


def _of_anomalies(
    normal: Sequence[Row],
    anomalous: Sequence[Row],
    calibration: Calibration | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    if calibration:
        results["detection_rate"] = rate(_flagged(anomalous), len(anomalous))
    if normal:
        results |= detection_metrics(_scores(normal), _scores(anomalous), resamples, seed)
    return results


def _scores(rows: Sequence[Row]) -> list[float]:
    return [row.score for row in rows if row.score is not None]


def _flagged(rows: Sequence[Row]) -> int:
    return sum(row.verdict == ANOMALY for row in rows)


def _threshold(
    scored: Sequence[Row],
    calibration: Calibration | None,
    fpr: float,
    fdr: float | None,
    confidence: float | None,
) -> float | None:
    if calibration is None:
        return None
    if fdr is None:
        threshold = calibration.threshold(fpr, confidence)
    else:
        flagged = (row.score for row in scored if row.verdict == ANOMALY and row.score is not None)
        threshold = min(flagged, default=math.inf)
    return threshold if math.isfinite(threshold) else None


def _worst_rate(calibration: Calibration | None, fpr: float) -> float | None:
    return None if calibration is None or calibration.caveat else calibration.worst_rate(fpr, SURE)


def _notes(
    scored: Sequence[Row],
    calibration: Calibration | None,
    fpr: float,
    fdr: float | None,
    confidence: float | None,
) -> list[str]:
    if calibration is None:
        return ["the model has no calibration, so there are no p-values and no verdicts: see pad calibrate"]
    note = calibration.note(fpr, confidence) if fdr is None else None
    if fdr is not None and scored and not _flagged(scored):
        # Benjamini-Hochberg flags k of m images at the earliest when their p-values reach fdr * k / m.
        needed = math.ceil(len(scored) * calibration.smallest_rate / fdr - 1e-9)
        if needed > 1:
            note = (
                f"at --fdr {fdr:g}, {_plural(len(calibration), 'calibration image')} can flag something "
                f"among {_plural(len(scored), 'image')} only if at least {needed} of them score above every "
                "calibration image; more calibration images lower that number"
            )
    return [text for text in (calibration.caveat, note) if text]


def _unjudged(
    rows: Sequence[Row],
    scored: Sequence[Row],
    calibration: Calibration | None,
    fpr: float,
    fdr: float | None,
    confidence: float | None,
) -> list[str]:
    reasons = []
    if calibration is None:
        reasons.append("the model has no calibration")
    elif fdr is None and calibration.note(fpr, confidence):
        reasons.append(f"{_plural(len(calibration), 'calibration image')} cannot hold a rate of {fpr:g}")
    elif fdr is not None and calibration.smallest_rate > fdr:
        reasons.append(f"{_plural(len(calibration), 'calibration image')} cannot hold a rate of {fdr:g}")
    elif fdr is not None and not _flagged(scored):
        # The smallest p-value there is, and yet not flagged: more calibration images would tell.
        highest = sum((row.p_value or 1) <= calibration.smallest_rate for row in scored)
        if highest:
            reasons.append(
                f"{_plural(highest, 'image')} above all {len(calibration)} calibration images, which are too "
                f"few for a rate of {fdr:g} over {_plural(len(scored), 'image')}"
            )
    if len(scored) < len(rows):
        reasons.append(f"{len(rows) - len(scored)} of {_plural(len(rows), 'image')} could not be scored")
    return reasons


def write_summary(summary: dict[str, Any], path: str | Path) -> None:
    """Writes the summary as JSON, whole or not at all. Raises PadError where it cannot be written."""
    with atomic(path) as file:
        file.write((json.dumps(summary, indent=2, allow_nan=False) + "\n").encode("ascii"))


def format_table(summary: dict[str, Any]) -> str:
    """The summary as plain text for a terminal: the counts, the threshold, and one line for the normal
    images, for all anomalies, and for each kind of anomaly. Intervals are 95 % bootstrap intervals."""
    counts, calibration = summary["counts"], summary["calibration"]
    lines = [_plural(counts["scored"], "image") + " scored"]
    if counts["unreadable"]:
        lines[0] += f", {counts['unreadable']} unreadable"
    if calibration:
        share = f" ({counts['flagged'] / counts['scored']:.1%})" if counts["scored"] else ""
        lines[0] += f"; {counts['flagged']} flagged as anomalous{share}"
        threshold = "none" if summary["threshold"] is None else f"{summary['threshold']:.6g}"
        lines.append(
            f"threshold {threshold}, for a {_rule(summary)} "
            f"({_plural(calibration['images'], 'calibration image')})"
        )
        if summary["threshold"] is not None and summary["worst_fpr"]:
            lines.append(
                f"this model's own rate is at most {summary['worst_fpr']:.3g} with a probability of "
                f"{SURE:.0%} (--confidence {SURE} holds {summary['fpr']:.3g} so)"
            )
    lines += [f"note: {note}" for note in summary["notes"]]
    if "normal" in counts:
        lines += ["", *_label_table(summary)]
    if "pixels" in summary:
        pixels = summary["pixels"]
        lines.append(f"pixels: ROC AUC {pixels['pixel_roc_auc']:.3f}, AUPRO {pixels['aupro']:.3f}")
    return "\n".join(lines)


def _rule(summary: dict[str, Any]) -> str:
    """What the threshold holds, in words."""
    if summary["fdr"] is not None:
        return f"share of false ones among the flagged of at most {summary['fdr']:.3g}"
    rate = f"false-alarm rate of at most {summary['fpr']:.3g}"
    if summary["confidence"] is None:
        return f"{rate} on average"
    return f"{rate} with a probability of {100 * summary['confidence']:.3g}%"


def _label_table(summary: dict[str, Any]) -> list[str]:
    counts, kinds = summary["counts"], summary.get("kinds", {})
    table = [["", "images", "flagged", "ROC AUC", "average precision", "FPR at 95 % TPR"]]
    table.append(["normal", str(counts["normal"]), _rate(summary.get("false_alarm_rate")), "", "", ""])
    if counts["anomalous"]:
        table.append(_line("anomalous", counts["anomalous"], summary))
    if list(kinds) != ["anomaly"]:
        table += [_line("  " + _printable(kind), of["images"], of) for kind, of in kinds.items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2])]
                  + [cell.ljust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]).rstrip()
        for row in table
    ]  # fmt: skip


def _line(name: str, images: int, results: dict[str, Any]) -> list[str]:
    cells = []
    for metric in METRICS:
        of = results.get(metric)
        cells.append(f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}]" if of else "")
    return [name, str(images), _rate(results.get("detection_rate")), *cells]


def _rate(of: dict[str, float] | None) -> str:
    return f"{of['value']:.1%}" if of else ""


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _printable(text: str, limit: int = 32) -> str:
    """Safe on any terminal: what is not printable, or not ASCII there, is shown escaped."""
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."
