"""Similarities that learn nothing, which the relative perceptual L1 is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pad.backbones.vgg import load_backbone_weights
from pad.similarity.base import Similarity


class PixelSimilarity(Similarity):
    """A similarity that is a map over the pixels and its mean."""

    def pixels(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, h, w)"""
        raise NotImplementedError

    def compare(self, reference: Sequence[Tensor], y: Tensor) -> Tensor:
        return self.pixels(reference[0], y).mean((1, 2))

    def map(self, x: Tensor, y: Tensor) -> Tensor:
        return self.pixels(x, y)


class L1(PixelSimilarity):
    """Mean absolute difference, in [0, 2]."""

    def pixels(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean(1)


class L2(PixelSimilarity):
    """Mean squared difference, in [0, 4]."""

    def pixels(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().mean(1)


class SSIM(PixelSimilarity):
    """1 - structural similarity (Wang et al., 2004): Gaussian window of 11 pixels and deviation 1.5,
    K = (0.01, 0.03), dynamic range 2; in [0, 2]. The window is cut off at the
    border, where it is normalized anew."""

    def pixels(self, x: Tensor, y: Tensor) -> Tensor:
        position = torch.arange(11, device=x.device, dtype=x.dtype) - 5
        line = torch.exp(-(position**2) / (2 * 1.5**2))
        kernel = (line[:, None] * line / line.sum() ** 2).expand(x.shape[1], 1, 11, 11)
        inside = F.conv2d(torch.ones_like(x), kernel, padding=5, groups=x.shape[1])

        def blur(image: Tensor) -> Tensor:
            return F.conv2d(image, kernel, padding=5, groups=image.shape[1]) / inside

        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        covariance = blur(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        ssim = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
            (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
        )
        return 1 - ssim.mean(1)


class LPIPS(PixelSimilarity):
    """LPIPS (Zhang et al., arXiv:1801.03924) by the `lpips` package, VGG-16, version 0.1.

    Its linear heads come with that package; its trunk takes the weights of `backbone` instead of a download.
    With those of vgg16-st, values differ from the published ones, which were fitted to torchvision's.
    """

    def __init__(self, backbone: str = "vgg16-st", weights: str | None = None, download: bool = True) -> None:
        super().__init__()
        name = "vgg16-st" if backbone == "vgg19" else backbone
        source = load_backbone_weights(name, weights if name == backbone else None, download)
        import lpips

        with warnings.catch_warnings():  # torchvision's, of arguments that lpips gives it in an old way
            warnings.simplefilter("ignore")
            self.model = lpips.LPIPS(net="vgg", pnet_rand=True, spatial=True, verbose=False)
        trunk = [m for m in self.model.net.modules() if isinstance(m, nn.Conv2d)]
        for convolution, (weight, bias) in zip(trunk, source, strict=True):
            convolution.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Frozen: always in evaluation mode."""
        return super().train(False)

    def pixels(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape[1] == 1:
            x, y = x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)
        return self.model(x, y)[:, 0]
