"""Images that are tensors already, at another size."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def at_side(x: Tensor, side: int) -> Tensor:
    """Images (n, channels, s, s) in [-1, 1] at another side; as they are where it fits."""
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", antialias=True).clamp(-1, 1)
