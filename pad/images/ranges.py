"""Floats: tensors are to lie in [-1, 1] and often lie in [0, 1]; a program can say that they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pad.errors import PadError, warn

_DARK = 0.1  # in [-1, 1] a shade above mid-grey; in [0, 1] nearly black, which most pictures hold somewhere


def warn_of_unit_range(images: Any) -> None:
    """Issues a PadWarning if `images` are float tensors that look as if scaled to [0, 1].

    images: a float tensor or array (n, C, H, W), or a list or tuple of images of which some are float tensors
    (C, H, W); anything else is not looked at. They are taken for [0, 1] if, all together, no value is
    negative, the darkest is below 0.1, and they are not all of one value: pictures in [-1, 1] of which
    nothing is darker than mid-grey, but something nearly so, are the rare ones that this misjudges.
    """
    tensors = images if isinstance(images, list | tuple) else [images]
    low, high = float("inf"), float("-inf")
    for tensor in tensors:
        if isinstance(tensor, np.ndarray) and tensor.dtype.kind == "f":
            tensor = torch.from_numpy(np.ascontiguousarray(tensor))
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
            least, most = torch.aminmax(tensor.detach())
            low, high = min(low, float(least)), max(high, float(most))
    if 0 <= low < _DARK and low < high <= 1:
        warn(
            f"the tensors lie between {low:.3g} and {high:.3g}, as if scaled to [0, 1]; they are taken as "
            "[-1, 1], where 0 is mid-grey: give pad.from_unit_range(images), or uint8 arrays"
        )


def from_unit_range(images: Any) -> Any:
    """Images whose floats lie in [0, 1] as uint8 arrays, which every function takes: `detector.score(
    pad.from_unit_range(images))`. What came from 8 bits becomes these 8 bits again.

    images: a float array (n, H, W[, C]), as scikit-image and matplotlib have them, or a float tensor (n, C,
    H, W), as torchvision's `ToTensor` makes it; or a list of single ones, of any sizes. Returns uint8 (n, H,
    W[, C]), or a list of uint8 arrays (H, W[, C]). Raises PadError, naming the index, for what is no float or
    lies outside of [0, 1].
    """
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim in (3, 4):
        return _at_8_bits(images, "images")
    return [_at_8_bits(image, f"images[{index}]") for index, image in enumerate(images)]


def _at_8_bits(given: Any, name: str) -> np.ndarray:
    tensor = isinstance(given, torch.Tensor)
    values = given.detach().cpu().float().numpy() if tensor else np.asarray(given)
    if values.dtype.kind != "f":
        raise PadError(f"{name}: takes floats in [0, 1], not {values.dtype}")
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # false of NaN, too
        raise PadError(f"{name}: values from {values.min():g} to {values.max():g} do not lie in [0, 1]")
    pixels = (values * 255).round().astype(np.uint8)
    return np.moveaxis(pixels, -3, -1) if tensor else pixels
