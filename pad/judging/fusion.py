"""One score from several views, without labels: a soft maximum over what is unusual in any of them.

    A(x) = log Σ_v w_v exp(u_v(x)),    u_v(x) = (log s_v(x) − m_v) / σ_v

m_v and σ_v are mean and deviation of the view's log-score over held-out normal images. What is unusual in one
view is unusual, however common it looks in the others; the weights say how often to expect that of each view
before anything is known, and are the same for every model (docs/fusion.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pad.errors import PadError

PRIOR = {"generator": 0.25, "whole": 0.56, "middle": 0.03, "parts": 0.16}
_LEAST_DEVIATION = 1e-3  # of a log-score


@dataclass(frozen=True, eq=False)
class Fusion:
    """`views`: their names. `mean`, `deviation`: of their log-scores over normal images, (v,) float64."""

    views: tuple[str, ...]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def fit(cls, views: Sequence[str], scores: ArrayLike) -> Fusion:
        """From the scores (n, v) of n >= 2 normal images by models that did not see them."""
        logs = _logs(scores)
        deviation = logs.std(0, ddof=1).clip(min=_LEAST_DEVIATION)
        return cls(tuple(views), logs.mean(0), deviation)

    def standardized(self, scores: ArrayLike) -> NDArray[np.float64]:
        """u, (n, v), of scores (n, v)."""
        return (_logs(scores) - self.mean) / self.deviation

    def fuse(self, scores: ArrayLike) -> NDArray[np.float32]:
        """A(x), (n,) float32, of scores (n, v); higher is more anomalous."""
        weights = np.array([PRIOR[view] for view in self.views])
        fused = np.logaddexp.reduce(self.standardized(scores) + np.log(weights / weights.sum()), axis=1)
        return fused.astype(np.float32)

    @classmethod
    def checked(cls, views: Sequence[str], mean: ArrayLike, deviation: ArrayLike, where: str) -> Fusion:
        """From numbers that a model holds. Raises PadError, beginning with `where`, if they do not fit."""
        numbers = [np.asarray(values, dtype=np.float64) for values in (mean, deviation)]
        if (
            any(n.shape != (len(views),) or not np.isfinite(n).all() for n in numbers)
            or (numbers[1] <= 0).any()
        ):
            raise PadError(f"{where}: 'fusion' must give the mean and the deviation of each view; refused")
        return cls(tuple(views), *numbers)


def _logs(scores: ArrayLike) -> NDArray[np.float64]:
    return np.log(np.asarray(scores, dtype=np.float64).clip(min=1e-12))
