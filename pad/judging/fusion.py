"""One score from several views, without labels: a soft maximum over what is unusual in any of them.

    A(x) = log Σ_v w_v exp(u_v(x)),    u_v(x) = (log s_v(x) − m_v) / σ_v

m_v and σ_v are mean and deviation of the view's log-score over held-out normal images. What is unusual in one
view is unusual, however common it looks in the others; the weights say how often to expect that of each view
before any anomaly is known. They come from the normal images alone:

- The generator's is what it is worth: the share of the differences between normal images that it explains
  (`GeneratorView.explained`), about a half where it draws what is normal, and next to nothing where it draws
  the same blur whatever it is shown.
- Of the rest, *parts* has as much as normal images are alike (`Likeness`), since what is wrong with one of
  many that are all alike is a part of it: w = max(p^2.5, 1 / (1 + exp((0.7 − q) / 0.04))), p the mean cosine
  of their features at the same place, q that of their deep features. Photographs of one kind of thing have
  q around 0.5 whatever their p, and pictures of one surface or from one belt q above 0.8, even where nothing
  lies at the same place twice.
- *whole* has what is left, but for a little of *middle*.

Power, threshold and steepness are chosen on training images of dogs, cats, three classes each of CIFAR-10 and
Fashion-MNIST against others of these, and on nine drawn belts and surfaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pad.errors import PadError
from pad.views.likeness import UNKNOWN, Likeness

_MIDDLE = 0.04  # of what *parts* leaves
_LEAST_WEIGHT = 0.01
_PLACES_POWER = 2.5
_ALL_ALIKE, _STEEPNESS = 0.7, 0.04  # of the mean cosine of deep features
_LEAST_DEVIATION = 1e-3  # of a log-score


@dataclass(frozen=True, eq=False)
class Fusion:
    """`views`: their names. `mean`, `deviation`: of their log-scores over normal images, (v,) float64.
    `weights`: w, (v,) float64, which sum to 1."""

    views: tuple[str, ...]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        views: Sequence[str],
        scores: ArrayLike,
        explained: float = 0.0,
        likeness: Likeness = UNKNOWN,
    ) -> Fusion:
        """From the scores (n, v) of normal images by models that did not see them; the share of their
        differences that the generator explains, in [0, 1]; and how alike they are.

        Raises PadError for fewer than two images.
        """
        logs = _logs(scores)
        if len(logs) < 2:
            raise PadError(f"views are fused by at least 2 normal images; there is {len(logs)}")
        deviation = logs.std(0, ddof=1).clip(min=_LEAST_DEVIATION)
        return cls(tuple(views), logs.mean(0), deviation, prior_weights(views, explained, likeness))

    def among(self, views: Sequence[str]) -> Fusion:
        """Of some of its views, as `fit` on these makes it by the same likeness: the generator has what it is
        worth, and the others divide the rest as before."""
        kept = [self.views.index(view) for view in views]
        weights = self.weights[kept]
        generator = np.array([view == "generator" for view in views])
        if not generator.all():
            weights[~generator] *= (1 - weights[generator].sum()) / weights[~generator].sum()
        return Fusion(tuple(views), self.mean[kept], self.deviation[kept], weights / weights.sum())

    def standardized(self, scores: ArrayLike) -> NDArray[np.float64]:
        """u, (n, v), of scores (n, v)."""
        return (_logs(scores) - self.mean) / self.deviation

    def fuse(self, scores: ArrayLike) -> NDArray[np.float32]:
        """A(x), (n,) float32, of scores (n, v); higher is more anomalous, and NaN where a view's is."""
        with np.errstate(invalid="ignore"):
            fused = np.logaddexp.reduce(self.standardized(scores) + np.log(self.weights), axis=1)
        return fused.astype(np.float32)

    @classmethod
    def checked(cls, views: Sequence[str], given: Sequence[ArrayLike], where: str) -> Fusion:
        """From numbers that a model holds: mean, deviation and weights. Raises PadError, beginning with
        `where`, if they do not fit."""
        numbers = [np.asarray(values, dtype=np.float64) for values in given]
        fits = all(n.shape == (len(views),) and np.isfinite(n).all() for n in numbers)
        if not fits or min(numbers[1].min(), numbers[2].min()) <= 0:
            raise PadError(f"{where}: 'fusion' must give mean, deviation and weight of each view; refused")
        return cls(tuple(views), *numbers)


def prior_weights(
    views: Sequence[str], explained: float = 0.0, likeness: Likeness = UNKNOWN
) -> NDArray[np.float64]:
    """w of the views, (v,) float64, which sum to 1."""
    alike = max(likeness.places**_PLACES_POWER, 1 / (1 + np.exp((_ALL_ALIKE - likeness.whole) / _STEEPNESS)))
    share, parts = (float(np.clip(s, _LEAST_WEIGHT, 1 - _LEAST_WEIGHT)) for s in (explained, alike))
    prior = {"whole": (1 - parts) * (1 - _MIDDLE), "middle": (1 - parts) * _MIDDLE, "parts": parts}
    quick = sum(prior[view] for view in views if view != "generator")
    weights = np.array([share if v == "generator" else (1 - share) * prior[v] / quick for v in views])
    return weights / weights.sum()


def _logs(scores: ArrayLike) -> NDArray[np.float64]:
    return np.log(np.asarray(scores, dtype=np.float64).clip(min=1e-12))
