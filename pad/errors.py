"""The one exception that a user's input can cause."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PadError(Exception):
    """Unusable arguments or input. Its message is one clear line that names the file or argument and
    says what to do; the command line prints it without a traceback and exits with status 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'steps'?"` for the nearest of `known`, or an empty string if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
