"""Does an exported graph say what its detector says? Asked on pictures of many sizes before it is used.

Two implementations of a convolution differ in the last bits. So a score may differ by 1e-4 of itself (a fused
one, which is a logarithm, by 1e-4), and a p-value where a calibration score lies between the two. Pixels that
are resized are rounded to 8 bits; of about one picture in a thousand one of them falls to the other side, and
the score differs by up to ten times as much: that is granted to one picture in twenty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pad.detector import Detector
from pad.errors import PadError
from pad.images.decode import batch_tensor
from pad.views.examined import Examined

TOLERANCE = 1e-4
_SHADE = 10 * TOLERANCE  # by which a score may differ where a pixel is a shade lighter or darker
_SHADES = 0.05  # the share of pictures of which that may be so
_SIDES = ((28, 28), (64, 64), (33, 127), (96, 61), (1, 3), (240, 320), (301, 200), (224, 224))


class Runs(Protocol):
    """What was exported, read again and run: `Exported`, or a program of torch."""

    def run(
        self, images: NDArray[np.uint8], fpr: float | None = None, explain: bool = False
    ) -> dict[str, NDArray[Any]]: ...


class Parity(NamedTuple):
    """What was compared, and what came out."""

    images: int
    largest_difference: float  # of a score, as a share of it, or of 1 where the score is less
    other_p_values: int  # that differ, each by calibration scores between the two scores


def check_parity(exported: Runs, detector: Detector, images: Sequence[NDArray[np.uint8]]) -> Parity:
    """Compares all that both say of pictures (H, W, 1 or 3). Raises PadError where they differ."""
    differences, others, shades = [0.0], 0, 0
    calibration = detector.calibrated()
    fused = len(detector.views) > 1
    for pixels in images:
        said = exported.run(pixels[None], explain=True)
        examined = detector.examine(batch_tensor([pixels], detector.config))
        score, expected = float(said["score"][0]), float(examined.scores[0])
        difference = abs(score - expected) / max(abs(expected), 1.0 if fused else 1e-12)
        differences.append(difference)
        where = f"on a picture of {pixels.shape[1]}x{pixels.shape[0]} pixels"
        shades += difference > TOLERANCE
        if not difference <= _SHADE or shades > max(1, _SHADES * len(images)):  # also NaN
            raise PadError(
                f"the exported graph scores {score:.7g} instead of {expected:.7g} {where}: not written"
            )
        p_value, of_detector = float(said["p_value"][0]), float(calibration.p_values(expected))
        if p_value != float(calibration.p_values(score)):
            raise PadError(f"the exported graph gives the p-value {p_value:g} of a score of {score:.7g} "
                           f"{where}: not written")  # fmt: skip
        if p_value != of_detector:
            others += 1
        _compare_shown(said, examined, where)
    return Parity(len(images), max(differences), others)


def _compare_shown(said: dict[str, NDArray[Any]], examined: Examined, where: str) -> None:
    """The map within a hundredth of its largest value, the nearest normal image within a shade or two."""
    expected = examined.maps[0].numpy()
    if not np.allclose(said["anomaly_map"][0], expected, rtol=0.01, atol=0.01 * float(expected.max())):
        raise PadError(f"the exported graph gives another anomaly map {where}: not written")
    nearest = ((examined.nearest[0].permute(1, 2, 0).numpy() + 1) * 127.5).round()
    if np.abs(said["nearest_normal"][0].astype(np.float32) - nearest).max() > 2:
        raise PadError(f"the exported graph gives another nearest normal image {where}: not written")


def made_up(seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Pictures of many sizes, grey and coloured: waves, edges and noise."""
    random = np.random.default_rng(seed)
    for height, width in _SIDES:
        for channels in (1, 3):
            y, x = np.mgrid[:height, :width][..., None] / max(height, width)
            phase, pace = random.uniform(0, 6, channels), random.uniform(2, 20, (2, channels))
            waves = 0.5 + 0.4 * np.sin(pace[0] * x + pace[1] * y + phase)
            waves += 0.3 * (x > random.uniform(0.2, 0.8)) + random.normal(0, 0.05, waves.shape)
            yield (waves.clip(0, 1) * 255).astype(np.uint8)
