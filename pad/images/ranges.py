"""A second look at float tensors, which are to lie in [-1, 1] and often lie in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pad.errors import warn

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
            "[-1, 1], where 0 is mid-grey: give 2 * images - 1, or uint8 arrays"
        )
