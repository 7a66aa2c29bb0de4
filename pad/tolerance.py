"""What a normal image may differ by: the setting `tolerate`, its names and ranges, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pad.errors import PadError, did_you_mean, shown

NONE = "none"
EXAMPLE = "brightness=0.2,contrast=0.2,rotation=5,shift=0.05,flip"


class _Range(NamedTuple):
    most: float
    what: str


RANGES = {
    "brightness": _Range(0.9, "a share of all intensities, from 0 to 0.9"),
    "contrast": _Range(0.9, "a share of the distance to the mean grey, from 0 to 0.9"),
    "rotation": _Range(180.0, "degrees, from 0 to 180"),
    "shift": _Range(0.5, "a share of the side, from 0 to 0.5"),
    "flip": _Range(1.0, "no value: left and right are the same"),
}


def parse_tolerance(value: Any, where: str) -> dict[str, float]:
    """What is tolerated, each up to how much, in the order of RANGES; what is tolerated by 0 is left out.

    Args:
        value: text such as EXAMPLE, or "none"; a mapping such as {"brightness": 0.2, "flip": True}; or None.
        where: what an error message begins with.

    Raises:
        PadError: an unknown name, or a value out of its range.
    """
    found: dict[str, float] = {}
    for name, given in _pairs(value, where):
        if name not in RANGES:
            hint = did_you_mean(str(name), RANGES) or f"; it takes {', '.join(RANGES)}, or {NONE}"
            raise PadError(f"{where}: setting 'tolerate' knows no {shown(name)}{hint}")
        most, what = RANGES[name]
        number = _number(given, flag=name == "flip")
        if not 0 <= number <= most or (name == "flip" and number not in (0, 1)):
            raise PadError(f"{where}: setting 'tolerate': {name} cannot be {shown(given)}; it takes {what}")
        found[name] = number
    return {name: found[name] for name in RANGES if found.get(name)}


def describe_tolerance(tolerate: Mapping[str, float]) -> str:
    """`"brightness ±20 %, rotation ±5°, left-right flips"`."""
    words = {
        "brightness": "brightness ±{:.3g} %",
        "contrast": "contrast ±{:.3g} %",
        "rotation": "rotation ±{:.3g}°",
        "shift": "shift ±{:.3g} %",
        "flip": "left-right flips",
    }
    return ", ".join(
        words[name].format(value if name == "rotation" else 100 * value) for name, value in tolerate.items()
    )


def _pairs(value: Any, where: str) -> list[tuple[Any, Any]]:
    if value is None or value == NONE:
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        value = ",".join(value)
    if not isinstance(value, str):
        raise PadError(f"{where}: setting 'tolerate' cannot be {shown(value)}; it takes {EXAMPLE}, or {NONE}")
    words = [word.partition("=") for word in value.split(",")]
    return [(name.strip(), text.strip() if equals else True) for name, equals, text in words]


def _number(value: Any, flag: bool) -> float:
    """NaN for what is no number. Only a flag may be true, or stand without a value."""
    if isinstance(value, bool):
        return float(value) if flag else math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
