"""Resizing with antialiasing: of tensors, by torch's own operator or, where a graph is exported, by matrix
products, which any runtime computes to the last few bits.

Runtimes have resizing operators, too, whose coordinates differ from torch's in the fifth digit. Pixels are
rounded to 8 bits after it, so that this shows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_PIECE = 128


def at_side(x: Tensor, side: int) -> Tensor:
    """Images (n, channels, s, s) in [-1, 1] at another side; as they are where it fits."""
    if x.shape[-1] == side:
        return x
    return antialiased(x, side).clamp(-1, 1)


def antialiased(x: Tensor, side: int) -> Tensor:
    """Floats (n, c, h, w) at (n, c, side, side): bilinear, with antialiasing."""
    if torch.compiler.is_compiling():
        return by_matrices(x, side)
    return F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)


def by_matrices(x: Tensor, side: int) -> Tensor:
    """The same by two matrix products, rows first as torch does it."""
    across, columns = weights(x.shape[-1], side)
    down, rows = weights(x.shape[-2], side)
    return down @ (x.index_select(-1, columns) @ across.T).index_select(-2, rows)


def weights(length: Any, side: int) -> tuple[Tensor, Tensor]:
    """What each of `length` pixels adds to each of `side`, with antialiasing: a triangle over the pixels that
    one of the new ones covers, in torch's own steps of single precision. (side, k), and which pixels these k
    are.

    Matrix products add up in pieces of 128 terms. So the pixels come in pieces of 128 that overlap,
    and those that make one new pixel are taken from one piece: then they are added one after the other, as
    torch does it.
    """
    covered = (2 * length + side - 1) // side + 2  # pixels by one of the new ones, at most
    size = torch.sym_max(_PIECE, 2 * covered)
    step = size - covered
    starts = torch.arange((length + step - 1) // step) * step
    pixels = (starts[:, None] + torch.arange(size)[None]).flatten()
    piece = starts[:, None].expand(-1, size).flatten()

    scale = torch.full((1,), length, dtype=torch.float32) / side
    support = scale.clamp_min(1.0)
    centre: Tensor = scale * (torch.arange(side) + 0.5)
    first = (centre - support + 0.5).clamp_min(0).floor()[:, None]
    last = (centre + support + 0.5).floor().clamp_max(length)[:, None]
    pixel = pixels.float()[None]
    distance = (pixel - centre[:, None] + 0.5) * (1 / support)
    own = (first / step).floor() * step == piece.float()[None]
    inside = (own & (pixel >= first) & (pixel < last)).float()
    triangle = (1 - distance.abs()).clamp_min(0) * inside
    return triangle / triangle.cumsum(1)[:, -1:], pixels.clamp_max(length - 1)
