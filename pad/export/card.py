"""What an exported file says of itself, as JSON under the key `pad` of its metadata (pad/exported.py)."""

from __future__ import annotations

from typing import Any

import torch

import pad
from pad.detector import Detector
from pad.exported import FORMAT

_KEPT_EXTRA = ("views", "trained_images", "old_normal", "cross_fitted")  # of the calibration


def card_of(detector: Detector, name: str, fingerprint: str) -> dict[str, Any]:
    """What the file says of itself. The latents of normal images that a model keeps stay at home."""
    calibration = detector.calibrated().to_dict()
    extra = {key: value for key, value in calibration["extra"].items() if key in _KEPT_EXTRA}
    return {
        "format": FORMAT,
        "model": name,
        "fingerprint": fingerprint,
        "versions": {"pad": pad.__version__, "torch": torch.__version__},
        "channels": detector.config.channels,
        "views": list(detector.views),
        "seen": {"crop": detector.config.crop, "fit": detector.config.fit},
        "data": detector.card.get("data", {}),
        "calibration": {"scores": calibration["scores"], "extra": extra},
    }
