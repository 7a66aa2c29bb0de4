"""Which latents of normal images a model keeps, from which fine-tuning can replay what is normal."""

from __future__ import annotations

import torch
from torch import Tensor

from pad.config import MOST_LATENT

KEPT_NUMBERS = 1 << 14  # of latents that a model keeps, all images together
KEPT_IMAGES = 256


def kept_latents(latents: Tensor, scores: Tensor) -> list[list[float]]:
    """What a calibrated model keeps for its own replay: latents (n, d) of normal images whose scores are
    spread evenly over those of the calibration set, at most 256 and 16,384 numbers in all. Those that no
    model may hold are left out: an encoder whose weights are senseless makes them."""
    usable = (latents.abs() <= MOST_LATENT).all(1)
    latents, scores = latents[usable], scores[usable]
    if not len(latents):
        return []
    n = max(1, min(len(latents), KEPT_IMAGES, KEPT_NUMBERS // latents.shape[1]))
    chosen = scores.argsort()[torch.linspace(0, len(scores) - 1, n).round().long()]
    return [[float(f"{value:.4g}") for value in row] for row in latents[chosen].tolist()]
