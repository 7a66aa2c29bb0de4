"""The one exception that a user's input can cause."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


class PadError(Exception):
    """Unusable arguments or input. Its message is one clear line that names the file or argument and
    says what to do; the command line prints it without a traceback and exits with status 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'steps'?"` for the nearest of `known`, or an empty string if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


class PadWarning(UserWarning):
    """What a program that calls `pad` would not notice: an answer that says less than it seems to, or input
    that is probably not what it was meant to be. `warnings.simplefilter("error", pad.PadWarning)` makes
    errors of them."""


def warn(message: str) -> None:
    """Issues a PadWarning that points at the line outside this package which led to it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "pad":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, PadWarning, stacklevel=level)
