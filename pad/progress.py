"""Progress bars on a terminal."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress_bar(total: int | None, what: str, unit: str, shown: bool) -> Any:
    """A bar of tqdm that goes when it is done; shown only if asked for, and not in a pipe."""
    return tqdm(total=total, desc=what, unit=unit, disable=None if shown else True, leave=False)
