"""Whether verdicts keep their promise, from scores alone: false alarms over many random splits.

    python evaluate.py MODEL NEW_NORMAL_IMAGES --out results
    python benchmarks/promise.py results/scores.csv [--calibration 60] [--splits 2000] [--only /good/]

The scores are of normal images that the model never saw. Of each split some calibrate and the others are
judged, once at a rate that is held on average and once with a confidence. Printed beside the mean rate, which
must not exceed what was asked, are its expectation (k / (n + 1) for scores without ties) and the share of
splits in which more was flagged than asked, the chance of the judged images included, with its expectation
(beta-binomial). That share is large on average and small with a confidence.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import betabinom

from pad.judging.calibration import Calibration

RATES = (0.05, 0.1, 0.2)
CONFIDENCE = 0.95


class Found(NamedTuple):
    """What splits gave at one rate."""

    mean: float
    error: float  # standard error over splits, which share their images
    above: float  # share of splits with more false alarms than asked
    expected_mean: float
    expected_above: float


def false_alarms(
    scores: np.ndarray, n: int, fpr: float, confidence: float | None, splits: int, seed: int = 0
) -> Found:
    """Splits of scores (m,) into n that calibrate and m - n that are judged."""
    random = np.random.default_rng(seed)
    judged = len(scores) - n
    counts = np.empty(splits)
    for split in range(splits):
        order = random.permutation(scores)
        counts[split] = Calibration(order[:n]).verdicts(order[n:], fpr, confidence).sum()
    limit = np.floor(fpr * judged + 1e-9)
    k = round(Calibration(np.arange(float(n))).p_limit(fpr, confidence) * (n + 1))
    expected = float(betabinom.sf(limit, judged, k, n + 1 - k)) if k else 0.0
    rates = counts / judged
    error = float(rates.std(ddof=1) / splits**0.5)
    return Found(float(rates.mean()), error, float((counts > limit).mean()), k / (n + 1), expected)


def read_scores(paths: list[Path], only: str) -> np.ndarray:
    """The scores of files that evaluate.py wrote, of images whose path holds `only`."""
    scores = []
    for path in paths:
        with path.open(encoding="utf-8", newline="", errors="replace") as file:
            scores += [
                float(row["score"]) for row in csv.DictReader(file) if row["score"] and only in row["path"]
            ]
    return np.array(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scores", nargs="+", type=Path, help="scores.csv of normal images")
    parser.add_argument("--only", default="", help="only images whose path holds this")
    parser.add_argument("--calibration", type=int, help="images that calibrate (default: half)")
    parser.add_argument("--splits", type=int, default=2000)
    args = parser.parse_args()

    scores = read_scores(args.scores, args.only)
    n = args.calibration or len(scores) // 2
    if not 1 <= n < len(scores) or args.splits < 2:
        parser.error(
            f"{len(scores)} scores cannot be split into {n} that calibrate and others, twice or more"
        )
    print(f"{n} scores calibrate, {len(scores) - n} are judged; {args.splits} splits")
    print("asked            mean found       expected   splits above   expected")
    for confidence in (None, CONFIDENCE):
        for fpr in RATES:
            found = false_alarms(scores, n, fpr, confidence, args.splits)
            held = "on average" if confidence is None else f"{confidence:.0%} sure"
            print(
                f"{fpr:4.0%} {held:10}  {found.mean:6.2%} +- {found.error:.2%}  {found.expected_mean:8.2%}"
                f"  {found.above:12.1%}  {found.expected_above:9.1%}"
            )


if __name__ == "__main__":
    main()
