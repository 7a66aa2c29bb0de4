"""`pad calibrate`: model, normal images -> the same model, calibrated on them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pad.detector import Detector
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.judging.calibration import Calibration
from pad.judging.summary import SURE
from pad.learning.run import readable

SHOWN = 10  # unreadable images named on the terminal


def calibrate(arguments: argparse.Namespace) -> int:
    """`pad calibrate`: model, normal images -> the same model, calibrated on them."""
    images = resolve(arguments.data, "evaluate", arguments.data_root).normal_only()
    detector = Detector.load(arguments.model, arguments.device, arguments.backbone_weights)
    images, errors = readable(images, detector.config)
    for line in errors[:SHOWN]:
        print(f"skipped {line}", file=sys.stderr)
    if not len(images):
        raise PadError(f"none of the images in {images.source} can be read")
    calibration = detector.calibrate(images)
    folder = _calibrated_folder(arguments)
    detector.card["calibration"] = images.fingerprint()
    detector.save(folder)
    sure = arguments.confidence
    held = "on average" if sure is None else f"with a probability of {100 * sure:.3g}%"
    print(f"calibrated on {images.describe()}; thresholds, for rates that are held {held}:")
    for fpr in (0.01, 0.05, 0.1, 0.2):
        print(f"  false-alarm rate {fpr:.0%}: {_threshold(calibration, fpr, arguments.confidence)}")
    print(f"model: {folder}")
    return 0


def _threshold(calibration: Calibration, fpr: float, confidence: float | None) -> str:
    """A threshold, and what is held by it where that is said on average; or why there is none."""
    if note := calibration.note(fpr, confidence):
        return note
    threshold = f"{calibration.threshold(fpr, confidence):.6g}"
    if confidence is not None:
        return threshold
    return f"{threshold} (this model: at most {calibration.worst_rate(fpr, SURE):.1%}, {SURE:.0%} sure)"


def _calibrated_folder(arguments: argparse.Namespace) -> Path:
    from pad.store.hub import resolve_model

    if arguments.out:
        return Path(arguments.out)
    if arguments.model.startswith(("zoo:", "hf-hub:")):
        raise PadError(f"{arguments.model} is shared: name a folder for the recalibrated model with --out")
    return resolve_model(arguments.model)
