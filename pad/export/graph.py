"""A detector as one function of tensors, which torch can export: 8-bit pixels in, verdicts and maps out.

Everything is inside: the part of a picture that is seen, grey of colours and colours of grey, resizing, the
views, their fusion, and the calibration. It computes in single precision.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pad.config import Config
from pad.detector import Detector
from pad.errors import PadError
from pad.images.resize import by_matrices
from pad.judging.fusion import Fusion

# Of red, green and blue in grey, of 65536 (ITU-R 601, as Pillow has them); single precision holds the sums.
_LUMA = (19595.0, 38470.0, 7471.0)


class Judged(NamedTuple):
    """What the graph says of n pictures."""

    score: Tensor  # (n,) float32, higher is more anomalous
    p_value: Tensor  # (n,) float64 in (0, 1]
    anomalous: Tensor  # (n,) bool: the p-value is at most the false-alarm rate that was asked for
    anomaly_map: Tensor  # (n, s, s) float32 >= 0, of the part of the picture that is seen
    nearest_normal: Tensor  # (n, s, s, channels) uint8
    view_scores: Tensor  # (n, v) float32, in the order of `Detector.views`


OUTPUTS = Judged._fields
NETWORKS = "networks"  # the part of the graph that encoder and generator are


class Graph(nn.Module):
    """Pictures (n, H, W, 1 or 3) uint8 and a false-alarm rate (float64) -> what `Judged` holds, by name.

    Raises PadError for a detector that has no calibration, or that cannot be one graph: it looks at tiles, or
    refines latents by gradient steps.
    """

    calibration: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        config = detector.config
        if config.tile is not None:
            raise PadError("a model that looks at tiles (--tile) cannot be exported: it is not one graph")
        if config.refine_steps and detector.generator is not None:
            raise PadError("a model with refine_steps cannot be exported: it follows gradients to score")
        self.detector, self.config = detector, config
        self.fusion = detector.fusion
        # As modules, so that their weights are those of the graph.
        parts: dict[str, nn.Module] = {}
        if detector.generator is not None:
            detector.generator.similarity.freeze()
            parts |= {NETWORKS: detector.generator.networks, "similarity": detector.generator.similarity}
        if detector.quick is not None:
            parts |= {"quick": detector.quick, "backbone": detector.quick.backbone}
        self.parts = nn.ModuleDict(parts)
        self.register_buffer("calibration", torch.from_numpy(detector.calibrated().scores).float())

    def forward(self, images: Tensor, fpr: Tensor) -> dict[str, Tensor]:
        return self.judged(images, fpr)._asdict()

    def judged(self, images: Tensor, fpr: Tensor) -> Judged:
        examined = self.detector.examine_views(self.seen(images))
        score = examined.scores if self.fusion is None else _fused(self.fusion, examined.views)
        at_least = (self.calibration[None] >= score[:, None]).sum(1)
        p_value = (1 + at_least).double() / (self.calibration.shape[0] + 1)
        nearest = ((examined.nearest + 1) * 127.5).round().to(torch.uint8)
        return Judged(
            score,
            p_value,
            p_value <= fpr,
            examined.maps,
            nearest.permute(0, 2, 3, 1),
            examined.views,
        )

    def seen(self, images: Tensor) -> Tensor:
        """What the detector looks at, (n, channels, s, s) in [-1, 1]; the same as pad/images/decode.py."""
        pixels = _cropped(images, self.config)
        pixels = _in_colour(pixels.permute(0, 3, 1, 2).float())
        if self.config.channels == 1:
            red, green, blue = (pixels[:, i : i + 1] * _LUMA[i] for i in range(3))
            pixels = ((red + green + blue + 32768) / 65536).floor()
        resized = by_matrices(pixels, self.config.input_side)
        return (resized.round().clamp(0, 255) * (2 / 255) - 1).clamp(-1, 1)


def _cropped(images: Tensor, config: Config) -> Tensor:
    """The part that is seen (pad/images/geometry.py), of any height and width."""
    height: Any
    width: Any
    height, width = images.shape[1], images.shape[2]
    if config.crop is not None:
        height, width = torch.sym_min(height, config.crop), torch.sym_min(width, config.crop)
    if config.fit == "crop":
        height = width = torch.sym_min(height, width)
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]


def _in_colour(pixels: Tensor) -> Tensor:
    """(n, 3, H, W) of (n, 1 or 3, H, W); another number of channels makes an index that is out of range."""
    channels = pixels.shape[1]
    wrong = (channels - 1) * (channels - 3)
    index = torch.arange(3) * ((channels - 1) // 2) + wrong * wrong * 1000
    return pixels.index_select(1, index)


def _fused(fusion: Fusion, views: Tensor) -> Tensor:
    """`Fusion.fuse` of tensors."""
    numbers = (fusion.mean, fusion.deviation, np.log(fusion.weights))
    mean, deviation, log_weights = (torch.from_numpy(values) for values in numbers)
    standardized = (views.double().clamp_min(1e-12).log() - mean) / deviation
    return (standardized + log_weights).logsumexp(1).float()
