"""The similarity that a recipe names."""

from __future__ import annotations

import math

import torch

from pad.backbones.vgg import VGGBackbone
from pad.config import Config
from pad.similarity.base import Similarity
from pad.similarity.pixel import L1, L2, LPIPS, SSIM
from pad.similarity.relative import RelativePerceptualL1


def build_similarity(config: Config, download: bool = True, pretrained: bool = True) -> Similarity:
    """The similarity that a recipe names.

    Args:
        config: the recipe.
        download: whether weights of its backbone that are not on this machine are downloaded.
        pretrained: False for the shapes of its tensors alone, on the device `meta`.

    Raises PadError if its backbone cannot be had.
    """
    with torch.random.fork_rng(devices=[]):  # layers begin with random weights, which nobody sees
        return _build(config, download, pretrained)


def _build(config: Config, download: bool, pretrained: bool) -> Similarity:
    if config.similarity == "relative-perceptual-l1":
        # A side that two poolings halve without a rest: they would drop what is left over at the border.
        size = None if config.backbone_scale == 1 else 4 * math.ceil(config.backbone_scale * config.size / 4)
        backbone = VGGBackbone(
            config.backbone, config.layers, config.backbone_weights, size, download, pretrained
        )
        return RelativePerceptualL1(
            backbone,
            config.layers,
            config.standardize,
            config.sigma_floor,
            config.size,
            config.feature_weights,
            config.feature_channels,
            config.residual_components,
        )
    if config.similarity == "lpips":
        return LPIPS(config.backbone, config.backbone_weights, download)
    return {"l1": L1, "l2": L2, "ssim": SSIM}[config.similarity]()
