"""The view *whole*: how far the picture's deep features lie from those of normal pictures.

    s(x) = (Π_l d_l(x))^(1/L)

d_l is the Mahalanobis distance under a Gaussian of one deep layer's features, pooled over places and divided
by their length (Rippel et al., arXiv:2005.14140, without the division); by default of the last layer alone.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pad.views.features import Features
from pad.views.gaussian import Gaussian


class Whole(nn.Module):
    """`layers`: the number of features of each deep layer."""

    def __init__(self, layers: list[int]) -> None:
        super().__init__()
        self.gaussians = nn.ModuleList(Gaussian(c) for c in layers)

    @property
    def likeness(self) -> float:
        """The mean cosine of the last layer's features of two normal images, in [0, 1]."""
        return float(cast(Gaussian, self.gaussians[-1]).mean.square().sum())

    def fit(self, normal: Features, like: Whole | None = None) -> None:
        for i, (gaussian, layer) in enumerate(zip(self.gaussians, normal.deep, strict=True)):
            shrinkage = cast(Gaussian, like.gaussians[i]).shrinkage if like else None
            cast(Gaussian, gaussian).fit(layer, shrinkage)

    def score(self, features: Features) -> Tensor:
        squared = [cast(Gaussian, g)(layer) for g, layer in zip(self.gaussians, features.deep, strict=True)]
        return torch.stack(squared).clamp_min(1e-12).log().mean(0).mul(0.5).exp()
