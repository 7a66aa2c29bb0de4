"""The view *middle*: colour, light and texture of the picture as a whole.

    s(x) = d(x)

d is the Mahalanobis distance under a Gaussian of the local layers' features, averaged over places and divided
by their length.
"""

from __future__ import annotations

from torch import Tensor, nn

from pad.views.features import Features
from pad.views.gaussian import Gaussian


class Middle(nn.Module):
    """`features`: their number."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gaussian = Gaussian(features)

    def fit(self, normal: Features, like: Middle | None = None) -> None:
        self.gaussian.fit(normal.middle, like.gaussian.shrinkage if like else None)

    def score(self, features: Features) -> Tensor:
        return self.gaussian(features.middle).clamp_min(1e-12).sqrt()
