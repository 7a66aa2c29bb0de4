"""The one exception that a user's input can cause, and text that is safe to show on a terminal."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any


class PadError(Exception):
    """Unusable arguments or input. Its message is one clear line that names the file or argument and
    says what to do; the command line prints it without a traceback and exits with status 2.

    What is not printable in the message (file names, settings and what servers say may hold anything) is
    escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """`text` in one line that no terminal obeys: line breaks, control characters, marks that turn the
    direction of writing, and bytes of a file name that are no text come out as Python escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(value: Any, limit: int = 60) -> str:
    """`repr(value)` for a message: at most `limit` characters, whatever the value is."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out whole numbers of more than 4,300 digits
        text = f"<{type(value).__name__} that is too large to show>"
    return printable(text if len(text) <= limit else f"{text[: limit - 1]}…")


def one_line(text: str, limit: int = 200) -> str:
    """What another program or library said, in one line of at most `limit` characters."""
    return printable(re.sub(r"\s+", " ", text).strip())[:limit]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'steps'?"` for the nearest of `known`, or an empty string if none is near."""
    near = difflib.get_close_matches(word[:200], list(known), n=1, cutoff=0.5)
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
