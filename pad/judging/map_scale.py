"""What anomaly maps are drawn on, measured on calibration images: colours mean the same on every image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pad.errors import PadError
from pad.judging.calibration import Calibration


@dataclass(frozen=True)
class MapScale:
    """What anomaly maps are drawn on, fixed per model: values up to `low` leave the picture as it is, and
    from `high` on it is covered in the brightest colour. 0 <= low < high."""

    low: float
    high: float

    @classmethod
    def from_maps(cls, maps: Iterable[ArrayLike], seed: int = 0) -> MapScale:
        """The scale from the maps (H, W) of calibration images, read one by one.

        `low`: the 95th percentile over pixels. `high`: the 99th percentile over images of the highest
        value in the map, so that the brightest colour says: higher than anywhere in 99 % of normal images.
        Raises PadError without any finite map.
        """
        rng = np.random.default_rng(seed)
        pixels, peaks = [], []
        for anomaly_map in maps:
            values = np.asarray(anomaly_map, dtype=np.float32).ravel()
            if values.size and np.isfinite(values).all():
                pixels.append(rng.choice(values, 1024))  # enough for a percentile, and flat memory
                peaks.append(values.max())
        if not peaks:
            raise PadError("the scale of anomaly maps needs at least one calibration image with a finite map")
        low, high = float(np.percentile(np.concatenate(pixels), 95)), float(np.percentile(peaks, 99))
        return cls(low, high if high > low else low + 1e-6)

    @classmethod
    def from_dict(cls, data: Any, where: str = "calibration.json") -> MapScale:
        """From `{"low", "high"}`. Raises PadError, beginning with `where`, for anything else."""
        values = [data.get(key) for key in ("low", "high")] if isinstance(data, Mapping) else []
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] < math.inf:
            raise PadError(f"{where}: 'map_scale' must hold numbers, 0 <= low < high")
        return cls(float(numbers[0]), float(numbers[1]))

    def to_dict(self) -> dict[str, float]:
        return {"low": self.low, "high": self.high}


def scale_of(calibration: Calibration | None) -> MapScale | None:
    """The scale of anomaly maps that was measured with this calibration; None if there is none."""
    if calibration is None or "map_scale" not in calibration.extra:
        return None
    return MapScale.from_dict(calibration.extra["map_scale"])
