"""Files of backbone weights, read as plain tensors: nothing in them is executed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pad.errors import PadError, one_line


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch state dict. Raises PadError if it is neither."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise PadError(f"backbone weights: no such file {path}") from None
    except Exception as error:
        reason = one_line(str(error)) or type(error).__name__
        raise PadError(f"backbone weights: cannot read {path} as plain weights: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise PadError(f"backbone weights: {path} is not a state dict of tensors")
    return state
