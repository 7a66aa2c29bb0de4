"""How alike the normal images of a model are, in two respects. It says beforehand where an anomaly is to be
expected: among pictures that are hardly alike, in what a picture shows; on a belt, in a part of it."""

from __future__ import annotations

from typing import NamedTuple


class Likeness(NamedTuple):
    """Mean cosines of the features of two normal images, in [0, 1]; 0 where they are not known."""

    places: float = 0.0  # of the local layers, at the same place
    whole: float = 0.0  # of the last deep layer


UNKNOWN = Likeness()
