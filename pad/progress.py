"""Progress bars on a terminal and in notebooks."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this; that `ipykernel` is imported says nothing."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def progress_bar(total: int | None, what: str, unit: str, shown: bool) -> Any:
    """A bar of tqdm that goes when it is done; shown only if asked for, and not in a pipe."""
    disabled = None if shown and not in_notebook() else not shown  # None: unless on a terminal
    return tqdm(total=total, desc=what, unit=unit, disable=disabled, leave=False)
