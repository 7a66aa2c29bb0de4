"""The one place that knows of devices and number formats."""

from __future__ import annotations

import torch

from pad.errors import PadError


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name: auto (CUDA, then MPS, then CPU), cpu, cuda[:i] or mps. Raises PadError if it is
    not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.split(":")[0]
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in present:
        raise PadError(f"--device takes auto, cpu, cuda or mps, not '{name}'")
    if not present[kind]:
        raise PadError(f"--device {name}: this machine has none that torch can use; try --device auto")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 or float32; "auto" is bfloat16 where the hardware multiplies in it."""
    if name == "bfloat16":
        return torch.bfloat16
    if name == "float32":
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
        return torch.bfloat16 if native else torch.float32
    return torch.float32


def to_device(networks: torch.nn.ModuleDict, device: torch.device) -> torch.nn.ModuleDict:
    """The networks there, in the memory layout in which convolutions are quickest."""
    return networks.to(device).to(memory_format=torch.channels_last)


def cast_backbone(similarity: torch.nn.Module, dtype: torch.dtype) -> None:
    """Sets the number format of a similarity's frozen convolutions; its statistics stay float32."""
    backbone = getattr(similarity, "backbone", None)
    if backbone is not None:
        backbone.convolutions.to(dtype=dtype, memory_format=torch.channels_last)
