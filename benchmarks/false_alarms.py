"""Whether verdicts keep their promise: the false-alarm rate over random splits of held-out normal images.

    python benchmarks/false_alarms.py MODEL fashion-mnist:9 [--data-root DIR] [--splits 200]

The normal images of the evaluation data, which the model never saw, are split at random into a half that
calibrates and a half that is judged, again and again. The same is done with a calibration on training
images, as a check of the check: it flags too many.
"""

from __future__ import annotations

import argparse

import numpy as np

import pad
from pad.images.resolve import resolve
from pad.judging.calibration import Calibration
from pad.learning.images import split_images

RATES = (0.01, 0.05, 0.1, 0.2)


def false_alarms(
    scores: np.ndarray, fpr: float, splits: int, trained: np.ndarray | None = None
) -> tuple[float, float]:
    """Mean false-alarm rate over splits, and its standard error. `trained`: scores to calibrate on instead.

    The standard error is that of the splits, which share their images.
    """
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(splits):
        order = rng.permutation(len(scores))
        half = len(scores) // 2
        pool = scores[order[:half]] if trained is None else rng.choice(trained, half, replace=False)
        rates.append(Calibration(pool).verdicts(scores[order[half:]], fpr).mean())
    return float(np.mean(rates)), float(np.std(rates, ddof=1) / splits**0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data", nargs="+", help="a named dataset, or a folder with train and test images")
    parser.add_argument("--data-root")
    parser.add_argument("--splits", type=int, default=200)
    args = parser.parse_args()

    detector = pad.load(args.model)
    held_out = detector.score(resolve(args.data, "evaluate", args.data_root).normal_only())
    training, _ = split_images(resolve(args.data, "train", args.data_root), detector.config)
    trained = detector.score(training)
    print(f"{len(held_out)} held-out normal images, {args.splits} splits; mean +- standard error over splits")
    print("asked    calibrated on held-out images    calibrated on training images")
    for fpr in RATES:
        (right, error), (wrong, wrong_error) = (
            false_alarms(held_out, fpr, args.splits, pool) for pool in (None, trained)
        )
        print(f"{fpr:5.0%}    {right:7.2%} +- {error:.2%}                {wrong:7.2%} +- {wrong_error:.2%}")


if __name__ == "__main__":
    main()
