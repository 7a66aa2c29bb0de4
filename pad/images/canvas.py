"""What tiles say, laid side by side over a large picture, on a grid of bounded size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pad.images.geometry import Box

SIDE = 256  # cells, of a picture of any size


class Canvas:
    """`channels` values in each of SIDE x SIDE cells that cover `region`. Where tiles overlap they are
    averaged, each with the more weight the farther from its edge: so no seam is seen."""

    def __init__(self, channels: int, region: Box) -> None:
        self.region = region
        self.sums = torch.zeros(channels, SIDE, SIDE)
        self.weights = torch.zeros(SIDE, SIDE)

    def add(self, box: Box, values: Tensor) -> None:
        """The values (channels, h, w) of a tile that lies at `box`."""
        left, right = self._cells(box[0], box[2], 0)
        top, bottom = self._cells(box[1], box[3], 1)
        size = (bottom - top, right - left)
        fitted = F.interpolate(values[None], size=size, mode="bilinear", antialias=True)[0]
        weights = _hat(size[0])[:, None] * _hat(size[1])
        self.sums[:, top:bottom, left:right] += weights * fitted
        self.weights[top:bottom, left:right] += weights

    def mean(self) -> Tensor:
        """(channels, SIDE, SIDE). Every cell must be covered."""
        return self.sums / self.weights

    def _cells(self, first: int, last: int, axis: int) -> tuple[int, int]:
        """The cells that pixels `first` to `last` of the picture touch."""
        start, length = self.region[axis], self.region[axis + 2] - self.region[axis]
        return (first - start) * SIDE // length, -(-(last - start) * SIDE // length)


def _hat(n: int) -> Tensor:
    """Weights (n,): 1 in the middle, falling evenly to near 0 at both ends."""
    return 1 - (2 * (torch.arange(n) + 0.5) / n - 1).abs()
