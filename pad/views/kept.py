"""Some normal images that a model keeps, small, to show the most similar one beside an anomaly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pad.config import MOST_KEPT
from pad.errors import PadError
from pad.views.features import Features

SIDE = 64  # pixels, at most


class KeptNormals(nn.Module):
    """At most `keep_normals` thumbnails, with the features by which the nearest is found."""

    pictures: Tensor  # (k, channels, side, side) uint8
    features: Tensor  # (k, c) half precision, of unit length

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("pictures", torch.zeros(0, 1, SIDE, SIDE, dtype=torch.uint8))
        self.register_buffer("features", torch.zeros(0, features, dtype=torch.float16))

    def __len__(self) -> int:
        return len(self.pictures)

    def make_room(self, shape: torch.Size) -> None:
        """For pictures of a shape, before a saved state is loaded. Raises PadError for what no model has."""
        count, channels, height, width = shape if len(shape) == 4 else (0, 0, 0, 0)
        if count > MOST_KEPT or channels not in (1, 3) or not 0 < height <= SIDE or height != width:
            raise PadError(f"the normal images that the model keeps cannot be {tuple(shape)}; refused")
        self.pictures = self.pictures.new_zeros(shape)
        self.features = self.features.new_zeros(shape[0], self.features.shape[1])

    @classmethod
    def of(cls, pictures: Tensor, features: Features) -> KeptNormals:
        """Of pictures (k, channels, side, side) uint8 and their features."""
        kept = cls(features.deep[-1].shape[1])
        kept.pictures = pictures
        kept.features = features.deep[-1].half()
        return kept

    def nearest(self, features: Features) -> Tensor:
        """The kept image of the most similar deep features (cosine), (n, channels, side, side) in [-1, 1]."""
        index = (features.deep[-1] @ self.features.float().T).argmax(1)
        return self.pictures[index].float() / 127.5 - 1
