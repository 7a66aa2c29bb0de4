"""Modules that need more packages than `pad` itself."""

from __future__ import annotations

import importlib
from types import ModuleType

from pad.errors import PadError


def from_extra(module: str, extra: str) -> ModuleType:
    """A module of ours. Raises PadError, saying what to install, where a package that it needs is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "pad":
            raise
        raise PadError(f"{missing} is not installed: python -m pip install 'pad-anomaly[{extra}]'") from None
