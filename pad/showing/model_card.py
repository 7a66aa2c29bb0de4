"""The model card that a training run writes: what is known of the model, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pad.config import Config
from pad.judging.calibration import Calibration


def model_card(
    config: Config, card: Mapping[str, Any], calibration: Calibration | None, side: int | None = None
) -> str:
    """README.md of a model folder, in Markdown. side: of the pictures that the quick views see, in pixels;
    the other arguments are as the attributes of a `Detector`."""
    data, training = card.get("data", {}), card.get("training", {})
    read = config.input_side
    rows = {
        "normal images": f"{data.get('images', '?')} from `{data.get('source', '?')}`",
        "input": f"{read}x{read}, {'grey' if config.channels == 1 else 'colour'}",
        "views": ", ".join(config.model_views),
    }
    if config.quick_views:
        rows["views of features"] = f"{config.view_backbone} at {side}x{side}"
    if config.has_generator:
        similarity = config.similarity
        if similarity == "relative-perceptual-l1":
            similarity += f", {config.backbone} {', '.join(config.layers)}"
        rows["generator"] = f"{config.size}x{config.size}, {training.get('steps', '?')} steps"
        rows["similarity"] = similarity
    rows |= {
        "trained for": f"{training.get('seconds', 0) / 60:.1f} minutes on {training.get('hardware', '?')}",
        "seed": str(config.seed),
        "calibrated on": _calibrated_on(calibration)
        if calibration is not None
        else "nothing yet: `pad calibrate MODEL NORMAL_IMAGES`",
    }
    if tuning := card.get("fine_tuning"):
        rows["fine-tuned from"] = (
            f"a model of `{tuning['from'].get('source', '?')}`; replayed: {tuning['replay']}"
        )
    if calibration is not None and calibration.extra.get("old_normal") == "estimated":
        rows["calibrated on"] += (
            "; the old model's scores stand for its old normal: there the rate is an estimate"
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "# A perceptual anomaly detector\n\nTrained by `pad` on normal images alone; higher scores are more "
        f"anomalous.\n\n| | |\n|---|---|\n{table}\n\n"
        "```\npython evaluate.py MODEL IMAGES --out results\n```\n"
    )


def _calibrated_on(calibration: Calibration) -> str:
    trained = calibration.extra.get("trained_images")
    if calibration.extra.get("cross_fitted"):
        return f"{len(calibration)} normal images, each judged by views that were fitted without it"
    if not trained:
        return f"{len(calibration)} normal images never trained on"
    return (
        f"{len(calibration)} normal images, {trained} of which it was trained on: its thresholds are too low"
    )
