"""The promise on false alarms, on a trained model and real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pad
from pad.images.resolve import resolve
from pad.judging.calibration import Calibration
from pad.learning.images import split_images

SPLITS = 200


def false_alarms(scores: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """The share flagged among one half of normal scores when calibrated on the other, for each split."""
    shares = []
    for _ in range(SPLITS):
        order = rng.permutation(len(scores))
        half = len(scores) // 2
        calibration = Calibration(scores[order[:half]].astype(np.float64))
        shares.append(calibration.verdicts(scores[order[half:]], rate).mean())
    return np.array(shares)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_mean_false_alarm_rate_is_at_most_what_was_asked(fashion: Path, rate: float) -> None:
    model = pad.load("zoo:fashion-mnist/ankle-boot", device="cpu")
    scores = model.score(resolve([str(fashion / "test" / "normal")], "evaluate"))
    shares = false_alarms(scores, rate, np.random.default_rng(0))
    # All splits share 40 images, so their mean is known to about the spread of one split / sqrt(2).
    assert shares.mean() <= rate + 0.02
    assert shares.mean() >= rate / 4


def test_the_promise_breaks_when_calibrated_on_training_images(boots: Path) -> None:
    """The same check with a calibration on images that were trained on must fail, or it would catch nothing:
    a detector that has learned twenty images by heart finds new ones too anomalous."""
    files = sorted(boots.glob("*.png"))
    seen, fresh = files[:40], files[40:]
    detector = pad.fit(
        seen, device="cpu", similarity="l1", steps=500, batch_size=12, latent_dim=24, ema=0.95,
        generator_channels=[32] * 3, encoder_channels=[16] * 3, critic_channels=[8] * 3,
        image_critic=False, latent_critic=False, learning_rate=4e-3,
    )  # fmt: skip
    learned, _ = split_images(resolve(seen, "train"), detector.config)
    scores = detector.score(fresh)
    wrong = Calibration(detector.score(learned).astype(np.float64)).verdicts(scores, 0.1).mean()
    assert wrong > 0.2
    assert false_alarms(scores, 0.1, np.random.default_rng(0)).mean() <= 0.12
