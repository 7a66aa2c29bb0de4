"""Gradient-normalizing weights: how strongly E and G follow the reconstruction loss beside the adversarial
one, with no validation set (arXiv:1909.05904, section 3.3).

Every so many steps, for each weight tensor l of a network, the standard deviation of dL_adv/dtheta_l and of
dL_rec/dtheta_l is measured. Each series is smoothed by an exponential average; the weight is the median over
the layers and over the latest history of adversarial / reconstruction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMOOTHING = 0.05  # alpha of the exponential average
HISTORY = 200  # measurements that the median runs over


class GradientNormalizer:
    """The reconstruction weight of one network.

    Args:
        target: wanted ratio of reconstruction to adversarial gradient; 1 in the paper.
        smoothing, history: alpha of the exponential average, and the length of the median's window.
    """

    def __init__(self, target: float = 1.0, smoothing: float = SMOOTHING, history: int = HISTORY) -> None:
        self.target = target
        self.smoothing = smoothing
        self._average: np.ndarray | None = None  # (2, layers): adversarial, reconstruction
        self._ratios: deque[np.ndarray] = deque(maxlen=history)

    def update(self, adversarial: Sequence[Tensor | None], reconstruction: Sequence[Tensor | None]) -> float:
        """Takes one measurement in: the gradients of the two losses, one tensor a layer. Returns the weight.

        Layers that either loss does not reach (None), and single numbers, which have no deviation, are
        left out.
        """
        pairs = [(_deviation(a), _deviation(r)) for a, r in zip(adversarial, reconstruction, strict=True)]
        measured = np.array(pairs, dtype=np.float64).T
        if self._average is None:
            self._average = measured
        else:
            self._average = self.smoothing * measured + (1 - self.smoothing) * self._average
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self._average[0] / self._average[1]
        self._ratios.append(ratios)
        return self.weight

    @property
    def weight(self) -> float:
        """w = target * median over layers and history of adversarial / reconstruction; `target` before
        the first measurement."""
        if not self._ratios:
            return self.target
        ratios = np.concatenate(list(self._ratios))
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        return self.target * float(np.median(ratios)) if len(ratios) else self.target

    def state_dict(self) -> dict[str, Any]:
        return {
            "average": None if self._average is None else torch.from_numpy(self._average.copy()),
            "ratios": [torch.from_numpy(r.copy()) for r in self._ratios],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average = None if state["average"] is None else state["average"].numpy()
        self._ratios.clear()
        self._ratios.extend(r.numpy() for r in state["ratios"])


def _deviation(gradient: Tensor | None) -> float:
    if gradient is None or gradient.numel() < 2:
        return float("nan")
    return float(gradient.detach().float().std())
