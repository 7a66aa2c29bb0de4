"""What the views see of an image: features of a frozen backbone, computed once for all of them.

Feature vectors of the whole picture are divided by their length, so that contrast and strength of a picture
matter little. Those of a place are divided by the geometric mean of their own length and of the length that
is usual in the picture:

    f_p / (|f_p| · (mean_q |f_q|²)^(1/2))^(1/2)

By the first alone it would be lost that something stands out at a place, by the second alone one such place
would outdo all that is unusual in kind.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pad.backbones.timm_model import Seen

GRID = 14  # places a side, at most: of pictures of 224 pixels, those of a layer of stride 16


class Features(NamedTuple):
    """Of n images; vectors of `deep` and, in each of its layers, of `middle` have unit length."""

    deep: list[Tensor]  # (n, c) of each deep layer, float32
    middle: Tensor  # (n, c), the local layers averaged over places, side by side, float32
    local: Tensor  # (n, g, g, c), the local layers place by place, side by side, float16
    layers: int = 2  # side by side in `middle` and `local`

    def __len__(self) -> int:  # of images, not of fields
        return len(self.middle)

    def take(self, indices: Tensor) -> Features:
        """Of some of the images, by their indices or a mask."""
        return Features(
            [d[indices] for d in self.deep], self.middle[indices], self.local[indices], self.layers
        )


def features_of(seen: Seen) -> Features:
    """The features of what a backbone has seen."""
    deep = [F.normalize(layer.float()) for layer in seen.deep]
    middle = [F.normalize(layer.float().mean((2, 3))) for layer in seen.local]
    side = min(GRID, seen.local[-1].shape[-1])
    local = [_evened(F.adaptive_avg_pool2d(layer.float(), side)) for layer in seen.local]
    places = torch.cat(local, 1).permute(0, 2, 3, 1).half()
    return Features(deep, torch.cat(middle, 1), places.contiguous(), len(local))


def _evened(layer: Tensor) -> Tensor:
    """A feature map (n, c, h, w), divided by the geometric mean of each place's length and the picture's."""
    squared = layer.square().sum(1, keepdim=True)
    usual = squared.mean((2, 3), keepdim=True)
    return layer / (squared * usual).sqrt().sqrt().clamp_min(1e-12)


def joined_features(parts: list[Features]) -> Features:
    """The features of several batches as those of one."""
    deep = [torch.cat(layers) for layers in zip(*(p.deep for p in parts), strict=True)]
    return Features(
        deep, torch.cat([p.middle for p in parts]), torch.cat([p.local for p in parts]), parts[0].layers
    )
