"""A detector that looks through some of its views alone, with the calibration of just these.

Its p-values are those of a model that has only these views: the fusion is what `Fusion.fit` makes of them,
and the calibration images are judged by it anew, by their scores in each view, which the model keeps. A
p-value of another fusion would be none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pad.detector import Detector
from pad.errors import PadError, did_you_mean, shown
from pad.judging.calibration import Calibration
from pad.judging.fusion import Fusion

_ROUNDING = 1e-5  # of a fused score, from one machine to another


def with_views(detector: Detector, names: Sequence[str], model: str) -> Detector:
    """The detector with only the views of these names, in its own order; itself, if that is all of them.

    model: what messages call it. Raises PadError for a view that it does not have, and where its calibration
    does not know the images view by view.
    """
    for name in names:
        if name not in detector.views:
            hint = did_you_mean(name, detector.views)
            has = ", ".join(detector.views)
            raise PadError(f"--views: {model} has no view {shown(name)}, it has {has}{hint}")
    views = tuple(view for view in detector.views if view in names)
    if not views:
        raise PadError(f"--views: name some of {', '.join(detector.views)}")
    if views == detector.views:
        return detector
    quick = tuple(view for view in views if view != "generator")
    chosen = Detector(
        detector.config.replace(views=list(views)),
        detector.generator if "generator" in views else None,
        detector.quick.among(quick) if detector.quick is not None and quick else None,
        detector.device,
        card=detector.card,
        trained_on=detector.trained_on,
        fitted_on=detector.fitted_on,
    )
    columns = _columns(detector, views, model)
    extra = _kept(detector.calibrated().extra, chosen, detector)
    if len(views) == 1:
        chosen.calibration = Calibration(columns[:, 0].astype(np.float64), extra)
    else:
        assert detector.fusion is not None
        chosen.fusion = detector.fusion.among(views)
        chosen.calibration = Calibration.of_views(chosen.fusion.fuse(columns), views, columns, extra)
    return chosen


def _columns(detector: Detector, views: tuple[str, ...], model: str) -> NDArray[np.float32]:
    """The scores of the calibration images in these views, (n, v)."""
    calibration, fusion = detector.calibrated(), detector.fusion
    known = calibration.extra.get("views", {})
    if len(views) == 1 and len(known.get(views[0], ())) == len(calibration):
        return np.asarray(known[views[0]], dtype=np.float32)[:, None]
    rows = calibration.rows(detector.views)
    # Whoever changed the one and not the other has a calibration of something else.
    if rows is None or fusion is None or not _agree(fusion, rows, calibration):
        raise PadError(
            f"--views: the calibration of {model} keeps the scores of each view apart, as older pads did, so "
            f"that no fusion of {', '.join(views)} can be calibrated: calibrate it anew (pad calibrate MODEL "
            "NORMAL_IMAGES), or leave out --views"
        )
    return rows[:, [detector.views.index(view) for view in views]]


def _agree(fusion: Fusion, rows: NDArray[np.float32], calibration: Calibration) -> bool:
    return np.allclose(fusion.fuse(rows), calibration.scores, rtol=_ROUNDING, atol=_ROUNDING)


def _kept(extra: dict[str, Any], chosen: Detector, detector: Detector) -> dict[str, Any]:
    """What stays true of the calibration: not how maps are drawn, if they come from another view."""
    dropped = {"views", "view_ranks"}
    if _maps_of(chosen) != _maps_of(detector):
        dropped.add("map_scale")
    if chosen.generator is None:
        dropped.add("replay")
    return {key: value for key, value in extra.items() if key not in dropped}


def _maps_of(detector: Detector) -> str:
    """The view that anomaly maps come from; empty where they are blank."""
    return next((view for view in ("parts", "generator") if view in detector.views), "")
