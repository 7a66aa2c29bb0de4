"""The pooling of a shift-tolerant VGG, and a ReLU to go with it, made quick on a CPU.

Between the blocks stands MaxBlurPool (Zhang, "Making Convolutional Networks Shift-Invariant Again",
arXiv:1904.11486): the maximum of every 2x2 window, then a blur by [1, 2, 1] / 4 each way at stride 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def relu(x: Tensor) -> Tensor:
    """max(x, 0), which may take the place of x."""
    return F.relu(x) if x.requires_grad else _floats(_bits(x).clamp_(min=0), x.dtype)


def blurred_max_pool(x: Tensor) -> Tensor:
    """x >= 0 (n, c, h, w) -> (n, c, h // 2, w // 2)."""
    return _Blur.apply(_dense_maximum(x))


def _dense_maximum(x: Tensor) -> Tensor:
    """The maximum of every 2x2 window of x >= 0, (n, c, h - 1, w - 1)."""
    if x.requires_grad:
        return F.max_pool2d(x, 2, stride=1)
    # The same several times quicker, as nobody asks where it was; its backward would be slow.
    bits = _bits(x)
    bits = torch.maximum(bits[:, :, 1:], bits[:, :, :-1])
    return _floats(torch.maximum(bits[..., 1:], bits[..., :-1]), x.dtype)


def _bits(x: Tensor) -> Tensor:
    """bfloat16 as int16: what is positive keeps its order and what is negative stays negative, and a CPU need
    not turn it into float32 and back to take a maximum."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def _floats(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `_bits`."""
    return bits.view(dtype) if dtype == torch.bfloat16 else bits


class _Blur(torch.autograd.Function):
    """(n, c, h, w) -> (n, c, (h + 1) // 2, (w + 1) // 2), reflected at the border.

    torch's own backward of a depthwise convolution in bfloat16 takes ten times as long on a CPU, and its
    autocast would have the border padded in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = F.pad(x, (1, 1, 1, 1), mode="reflect" if x.shape[-1] > 1 else "replicate")
            ctx.shape = x.shape
            return F.conv2d(x, _binomial(x), stride=2, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The adjoint: the gradient spread out with zeros between, the same (symmetric) blur, and what came to
        # lie beyond the border added to where it was reflected from.
        n, c, h, w = ctx.shape
        height, width = gradient.shape[2:]
        spread = gradient.new_zeros(n, h + 2, w + 2, c).permute(0, 3, 1, 2)
        spread[:, :, 2 : 2 + 2 * height : 2, 2 : 2 + 2 * width : 2] = gradient
        blurred = F.conv2d(spread, _binomial(spread), groups=c)
        for dim, side in ((2, h), (3, w)):
            within = min(2, side - 2)
            blurred.select(dim, within).add_(blurred.select(dim, 0))
            blurred.select(dim, side - 1 - within).add_(blurred.select(dim, side - 1))
            blurred = blurred.narrow(dim, 1, side - 2)
        return blurred


def _binomial(x: Tensor) -> Tensor:
    """[1, 2, 1] / 4 each way as a kernel for every channel of x, (c, 1, 3, 3)."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    return (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
