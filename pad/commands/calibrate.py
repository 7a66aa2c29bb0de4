"""`pad calibrate`: model, normal images -> the same model, calibrated on them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pad.detector import Detector
from pad.errors import PadError, printable
from pad.images.resolve import resolve
from pad.learning.run import readable

if TYPE_CHECKING:
    pass

SHOWN = 10  # unreadable images named on the terminal


def calibrate(arguments: argparse.Namespace) -> int:
    """`pad calibrate`: model, normal images -> the same model, calibrated on them."""
    images = resolve(arguments.data, "evaluate", arguments.data_root).normal_only()
    detector = Detector.load(
        arguments.model, arguments.device, arguments.backbone_weights, arguments.allow_downloads
    )
    images, errors = readable(images, detector.config)
    for line in errors[:SHOWN]:
        print(printable(f"skipped {line}"), file=sys.stderr)
    if not len(images):
        raise PadError(f"none of the images in {images.source} can be read")
    calibration = detector.calibrate(images)
    folder = _calibrated_folder(arguments)
    detector.card["calibration"] = images.fingerprint()
    detector.save(folder)
    print(f"calibrated on {images.describe()}; thresholds:")
    for fpr in (0.01, 0.05, 0.1, 0.2):
        note = calibration.note(fpr)
        print(f"  false-alarm rate {fpr:.0%}: " + (note or f"{calibration.threshold(fpr):.6g}"))
    print(f"model: {folder}")
    return 0


def _calibrated_folder(arguments: argparse.Namespace) -> Path:
    from pad.store.hub import resolve_model

    if arguments.out:
        return Path(arguments.out)
    if arguments.model.startswith(("zoo:", "hf-hub:")):
        raise PadError(f"{arguments.model} is shared: name a folder for the recalibrated model with --out")
    return resolve_model(arguments.model)
