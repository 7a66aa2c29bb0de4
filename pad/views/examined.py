"""What a detector says of a batch of images: what there is to judge, to draw and to explain."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Examined(NamedTuple):
    """All that the detector says of a batch of n images, float32 on the CPU."""

    scores: Tensor  # (n,), higher is more anomalous
    nearest: Tensor  # (n, channels, s, s) in [-1, 1]: the nearest image that is normal
    maps: Tensor  # (n, s, s) >= 0: where they differ from what is normal
    latents: Tensor  # (n, d * r * r): E(x); without a generator, where the image lies among deep features
    views: Tensor  # (n, v): the score in each view, in the order of `Detector.views`
