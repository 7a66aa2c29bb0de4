"""What decides the numbers a run computes: versions, the commit, the machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import pad


def versions() -> dict[str, str]:
    """Of everything that decides what a run computes."""
    return {
        "pad": pad.__version__,
        **({"commit": commit} if (commit := _commit()) else {}),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
    }


def _commit() -> str | None:
    """The commit of the source tree that runs, with `+` if it has changes; None for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", "pad", "train.py"], capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return name.stdout.strip() + ("+" if changed.returncode else "") if name.returncode == 0 else None


def hardware(device: torch.device) -> str:
    """A few words on the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''} ({platform.machine()})"
