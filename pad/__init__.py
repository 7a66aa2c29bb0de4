"""pad: perceptual image anomaly detection, from normal images alone."""

from __future__ import annotations

import logging
from typing import Any

__version__ = "0.2.0"
__all__ = [
    "Config",
    "Detector",
    "PadError",
    "PadWarning",
    "fit",
    "from_unit_range",
    "list_models",
    "load",
    "table",
]

_HOME = {
    "Config": "pad.config",
    "Detector": "pad.detector",
    "PadError": "pad.errors",
    "PadWarning": "pad.errors",
    "fit": "pad.api",
    "from_unit_range": "pad.images.ranges",
    "list_models": "pad.store.hub",
    "load": "pad.api",
    "table": "pad.api",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library says nothing unless it is asked to


def __getattr__(name: str) -> Any:
    # Lazy, so that `pad --help` and `import pad` do not pay for importing torch.
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pad' has no attribute '{name}'")
