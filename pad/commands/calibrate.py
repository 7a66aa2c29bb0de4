"""`pad calibrate`: model, normal images -> the same model, calibrated on them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pad.commands.loading import load_detector
from pad.commands.streams import tell_first
from pad.detector import Detector, trained_message
from pad.errors import PadError
from pad.images.identity import with_hashes
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.calibration import Calibration
from pad.judging.summary import SURE
from pad.learning.images import readable
from pad.store.hub import resolve_model


def calibrate(arguments: argparse.Namespace) -> int:
    """`pad calibrate`: model, normal images -> the same model, calibrated on them."""
    images = resolve(arguments.data, "evaluate", arguments.data_root).normal_only()
    detector = load_detector(arguments)
    images, errors = readable(images, detector.config)
    tell_first([f"skipped {line}" for line in errors])
    if not len(images):
        raise PadError(f"none of the images in {images.source} can be read")
    images = _allowed(detector, images, arguments)
    calibration = detector.calibrate(images, allow_trained=arguments.allow_trained)
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


def _allowed(detector: Detector, images: ImageSet, arguments: argparse.Namespace) -> ImageSet:
    """The images to calibrate on. Raises PadError if the model was trained on some of them and nothing was
    said about these, or on all of them."""
    if detector.trained_on is None:
        print("note: the model does not say which images it was trained on; give others", file=sys.stderr)
        return images
    images = with_hashes(images)
    trained = detector.trained_among(images)
    seen = int(trained.sum())
    if not seen:
        return images
    said = trained_message(seen, len(images))
    if arguments.allow_trained:
        print(f"warning: {said}", file=sys.stderr)
        return images
    if not arguments.skip_trained:
        raise PadError(f"{said}; leave them out with --skip-trained, or take them with --allow-trained")
    if seen == len(images):
        raise PadError(f"{images.source}: {said}; give others")
    print(f"left out {seen} of {len(images)} images that the model was trained on", file=sys.stderr)
    return images.subset((~trained).nonzero()[0].tolist())


def _threshold(calibration: Calibration, fpr: float, confidence: float | None) -> str:
    """A threshold, and what is held by it where that is said on average; or why there is none."""
    if note := calibration.note(fpr, confidence):
        return note
    threshold = f"{calibration.threshold(fpr, confidence):.6g}"
    if confidence is not None or calibration.caveat:
        return threshold
    return f"{threshold} (this model: at most {calibration.worst_rate(fpr, SURE):.1%}, {SURE:.0%} sure)"


def _calibrated_folder(arguments: argparse.Namespace) -> Path:
    if arguments.out:
        return Path(arguments.out)
    if arguments.model.startswith(("zoo:", "hf-hub:")):
        raise PadError(f"{arguments.model} is shared: name a folder for the recalibrated model with --out")
    return resolve_model(arguments.model)
