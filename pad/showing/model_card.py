"""The model card that a training run writes: what is known of the model, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pad.config import Config
from pad.judging.calibration import Calibration


def model_card(config: Config, card: Mapping[str, Any], calibration: Calibration | None) -> str:
    """README.md of a model folder, in Markdown, from what `Detector` calls so."""
    data, training = card.get("data", {}), card.get("training", {})
    rows = {
        "normal images": f"{data.get('images', '?')} from `{data.get('source', '?')}`",
        "input": f"{config.size}x{config.size}, {'grey' if config.channels == 1 else 'colour'}",
        "similarity": f"{config.similarity}, {config.backbone} {', '.join(config.layers)}"
        if config.similarity == "relative-perceptual-l1"
        else config.similarity,
        "trained for": f"{training.get('steps', '?')} steps, {training.get('seconds', 0) / 60:.1f} minutes "
        f"on {training.get('hardware', '?')}",
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
    if not trained:
        return f"{len(calibration)} normal images never trained on"
    return (
        f"{len(calibration)} normal images, {trained} of which it was trained on: its thresholds are too low"
    )
