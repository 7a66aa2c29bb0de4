"""The detector that a command was given by name, with the options that all of these commands take."""

from __future__ import annotations

from typing import Any

from pad.detector import Detector


def load_detector(given: Any, precision: str | None = None) -> Detector:
    """By the attributes model, device, backbone_weights, allow_downloads and view_backbone_weights of a
    request or of a command line's arguments; see `Detector.load`, also for what is raised."""
    return Detector.load(
        given.model,
        given.device,
        given.backbone_weights,
        given.allow_downloads,
        given.view_backbone_weights,
        precision,
    )
