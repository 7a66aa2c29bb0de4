"""Some normal images that a model keeps, small, to show the most similar one beside an anomaly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pad.views.features import Features

SIDE = 64  # pixels, at most


class KeptNormals(nn.Module):
    """At most `keep_normals` thumbnails, with the features by which the nearest is found."""

    pictures: Tensor  # (k, channels, side, side) uint8
    features: Tensor  # (k, c) half precision, of unit length

    def __init__(self, count: int = 0, channels: int = 1, side: int = SIDE, features: int = 1) -> None:
        super().__init__()
        self.register_buffer("pictures", torch.zeros(count, channels, side, side, dtype=torch.uint8))
        self.register_buffer("features", torch.zeros(count, features, dtype=torch.float16))

    def __len__(self) -> int:
        return len(self.pictures)

    @classmethod
    def of(cls, pictures: Tensor, features: Features) -> KeptNormals:
        """Of pictures (k, channels, side, side) uint8 and their features."""
        kept = cls()
        kept.pictures = pictures
        kept.features = features.deep[-1].half()
        return kept

    def nearest(self, features: Features) -> Tensor:
        """The kept image of the most similar deep features (cosine), (n, channels, side, side) in [-1, 1]."""
        index = (features.deep[-1] @ self.features.float().T).argmax(1)
        return self.pictures[index].float() / 127.5 - 1
