"""From scores to verdicts that keep a promise: split-conformal p-values.

A part of the normal images is never trained on. Under the one assumption that a new normal image is
exchangeable with those, its p-value is at most `fpr` with a probability of at most `fpr`, whatever the
distribution of the scores and however few they are (Vovk et al., "Algorithmic Learning in a Random
World", 2005; for anomaly detection Bates et al., "Testing for outliers with conformal p-values", 2023,
who also show that Benjamini-Hochberg on them bounds the false discovery rate).

That is a promise on average, over calibration sets as well as new images. The rate of one calibrated model
is what it is: if images above the k-th largest of n calibration scores are flagged, it was drawn from
Beta(k, n + 1 - k) (ties lower it), and so it exceeds `fpr` in some 30 to 50 % of cases. With a `confidence`
k is chosen so that it does not, with that probability (Vovk, "Conditional validity of inductive conformal
predictors", 2012, Proposition 2a; the tolerance limits of Wilks, 1941).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pad.errors import PadError


@dataclass(frozen=True, eq=False)
class Calibration:
    """The scores of normal images that were not trained on.

    Scores are single precision, as the detector makes them: given numbers are rounded to float32, then
    kept sorted, as a float64 array of shape (n,), n >= 1. `extra` holds whatever else is measured on the
    same images (plain JSON types); `doubt` says why scores to come may not compare with these, if that is
    known. Raises PadError for no scores or for one that is not finite.
    """

    scores: NDArray[np.float64]
    extra: dict[str, Any] = field(default_factory=dict)
    doubt: str | None = None

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float32).astype(np.float64)
        if scores.ndim != 1 or scores.size == 0:
            raise PadError("calibration needs a list of at least one score")
        if not np.isfinite(scores).all():
            raise PadError("calibration: every score must be a finite number")
        object.__setattr__(self, "scores", np.sort(scores))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def smallest_rate(self) -> float:
        """1 / (n + 1): the smallest p-value there is, so the lowest false-alarm rate that can be held."""
        return 1 / (len(self) + 1)

    @property
    def caveat(self) -> str | None:
        """Why rates are not held as promised, as a sentence for the user: what is known in `extra` of scores
        that are not those of new images, or `doubt`. None for a sound calibration."""
        if trained := self.extra.get("trained_images"):
            return (
                f"the model was trained on {trained} of its {len(self)} calibration images, so more new "
                "normal images are flagged than promised; recalibrate it on others: pad calibrate"
            )
        if self.extra.get("old_normal") == "estimated":
            return (
                "the model was fine-tuned without images of its old normal, for which the false-alarm rate "
                "is an estimate; to hold it, recalibrate on images of all that is normal: pad calibrate"
            )
        return self.doubt

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Conformal p-values in [1/(n+1), 1], shape as `scores`: (1 + #{calibration >= score}) / (n + 1).

        A score equal to a calibration score counts as no more anomalous than that one. The p-value of a
        score that is not a number is not a number.
        """
        given = np.asarray(scores, dtype=np.float32).astype(np.float64)
        at_least = len(self) - np.searchsorted(self.scores, given, side="left")
        return np.where(np.isnan(given), np.nan, (1 + at_least) / (len(self) + 1))

    def view_p_values(self, views: Sequence[str], scores: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """The p-values of scores (n, v) in each view by itself, (n,) each; of a single view, those of its
        score. They say where an image is unusual; the verdict is by the fused score alone."""
        columns = np.asarray(scores, dtype=np.float32).T
        known = self.extra.get("views")
        if len(views) == 1 or not isinstance(known, Mapping):
            return {views[0]: self.p_values(columns[0])} if len(views) == 1 else {}
        return {
            view: Calibration(np.asarray(known[view])).p_values(column)
            for view, column in zip(views, columns, strict=True)
            if view in known
        }

    @classmethod
    def of_views(
        cls, scores: ArrayLike, views: Sequence[str], columns: ArrayLike, extra: Mapping[str, Any]
    ) -> Calibration:
        """From fused scores (n,), with the scores (n, v) of the same images in each view: sorted, for its own
        p-values, and as ranks that say which belong to one image, for those of other fusions (`rows`)."""
        single = np.asarray(columns, dtype=np.float32)
        single = single[np.asarray(scores, dtype=np.float32).argsort(kind="stable")]
        ordered = np.sort(single, axis=0)
        ranks = single.argsort(axis=0, kind="stable").argsort(axis=0)
        known = {
            # Nine significant digits give back every float32.
            "views": {v: [float(f"{s:.9g}") for s in ordered[:, i]] for i, v in enumerate(views)},
            "view_ranks": {v: ranks[:, i].tolist() for i, v in enumerate(views)},
        }
        return cls(np.asarray(scores), {**extra, **known})

    def rows(self, views: Sequence[str]) -> NDArray[np.float32] | None:
        """The scores of the calibration images in some views, (n, v), in the order of `scores`; None where
        they are not known image by image: a calibration of an older version kept those of each view alone."""
        known, ranks = self.extra.get("views", {}), self.extra.get("view_ranks", {})
        columns = []
        for view in views:
            if len(known.get(view, ())) != len(self) or len(ranks.get(view, ())) != len(self):
                return None
            columns.append(np.asarray(known[view], dtype=np.float32)[np.asarray(ranks[view])])
        return np.stack(columns, 1)

    def verdicts(self, scores: ArrayLike, fpr: float, confidence: float | None = None) -> NDArray[np.bool_]:
        """True where the p-value is at most `p_limit`: flagged as anomalous. A score that is not a number is
        not flagged: it has no verdict, and whoever reports it says so.

        On new normal images at most the share `fpr` is flagged: on average over calibration sets or, with a
        `confidence`, for all but the share 1 - confidence of calibration sets.
        Raises PadError unless 0 < fpr < 1, and 0 < confidence < 1 where it is given.
        """
        return self.p_values(scores) <= self.p_limit(fpr, confidence)

    def p_limit(self, fpr: float, confidence: float | None = None) -> float:
        """The largest p-value that is flagged: k / (n + 1), with k = `_allowed` of the calibration images at
        or above the threshold; 0 if nothing can be flagged. Without a confidence no more than `fpr`."""
        return self._allowed(fpr, confidence) / (len(self) + 1)

    def threshold(self, fpr: float, confidence: float | None = None) -> float:
        """The threshold of these verdicts: flagged if and only if `score >= threshold`; infinity if
        nothing can be flagged at this rate.

        An image is flagged when its score is above the k-th largest calibration score c (`p_limit`); one
        equal to c is not. The number given here lies three quarters of the way from c to the next float32,
        so that the comparison comes out the same for float32 scores, for their values in double precision,
        and for their nine digits in a file.
        """
        allowed = self._allowed(fpr, confidence)
        if allowed == 0:
            return math.inf
        below = np.float32(self.scores[len(self) - allowed])
        above = np.nextafter(below, np.float32(np.inf))
        return float(below) + 0.75 * (float(above) - float(below))

    def _allowed(self, fpr: float, confidence: float | None = None) -> int:
        """The largest whole number k <= n for which k / (n + 1) <= fpr, in the arithmetic of p_values, and
        with a confidence besides Beta(k, n + 1 - k) is at most `fpr` with that probability."""
        from scipy.special import betainc

        total, rate = len(self) + 1, check_rate(fpr, "--fpr")
        candidates = np.arange(max(0, math.floor(rate * total) - 1), math.floor(rate * total) + 2)
        allowed = min(int(candidates[candidates / total <= rate].max(initial=0)), len(self))
        if confidence is None:
            return allowed
        sure = check_rate(confidence, "--confidence")
        k = np.arange(1, allowed + 1)
        return int((betainc(k, total - k, rate) >= sure).sum())  # the larger k, the less probable

    def worst_rate(self, fpr: float, confidence: float) -> float:
        """What the false-alarm rate of this one model at the threshold for `fpr` on average does not exceed,
        with probability `confidence`: the quantile of Beta(k, n + 1 - k); 0 where nothing is flagged."""
        from scipy.special import betaincinv

        allowed, sure = self._allowed(fpr), check_rate(confidence, "--confidence")
        return float(betaincinv(allowed, len(self) + 1 - allowed, sure)) if allowed else 0.0

    def chance_of(self, flagged: int, images: int, fpr: float) -> float:
        """How probable it is that at least `flagged` of `images` new normal images are flagged at `fpr`, if
        they come from where the calibration images came from: the p-value of "there are too many".

        Beta-binomial: given its rate the number is binomial, and the rate itself was drawn with the
        calibration set (see the module's text).
        """
        from scipy.stats import betabinom

        allowed = self._allowed(fpr)
        if allowed == 0:
            return 0.0 if flagged else 1.0
        return float(betabinom.sf(flagged - 1, images, allowed, len(self) + 1 - allowed))

    def note(self, fpr: float, confidence: float | None = None) -> str | None:
        """A sentence for the user if there are too few calibration images for this rate, else None."""
        if self._allowed(fpr, confidence):
            return None
        lowest, needed = self.smallest_rate, math.ceil(1 / fpr - 1e-9) - 1
        held = held_or_lower = ""
        if confidence is not None:
            # One score above all n is at most as frequent as fpr with probability 1 - (1 - fpr)^n.
            lowest = max(lowest, -math.expm1(math.log1p(-confidence) / len(self)))
            needed = max(needed, math.ceil(math.log1p(-confidence) / math.log1p(-fpr) - 1e-9))
            held = f" with a confidence of {_percent(confidence)}"
            held_or_lower = ", or ask for less confidence"
        return (
            f"{len(self)} calibration image{'s' if len(self) > 1 else ''} cannot hold a false-alarm rate of "
            f"{_percent(fpr)}{held}, so nothing is flagged; the lowest they can hold is {_percent(lowest)} "
            f"(--fpr {round_up(lowest)}). For {_percent(fpr)}, calibrate on at least {needed} normal images"
            f"{held_or_lower}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as `calibration.json` holds them; `from_dict` gives the same object again."""
        # Nine significant digits give back every float32.
        return {"scores": [float(f"{score:.9g}") for score in self.scores], "extra": dict(self.extra)}

    @classmethod
    def from_dict(cls, data: Any, where: str = "calibration.json") -> Calibration:
        """The inverse of `to_dict`. Raises PadError, beginning with `where`, for anything else."""
        if not isinstance(data, Mapping) or not isinstance(data.get("scores"), list):
            raise PadError(f"{where}: must hold 'scores', a list of numbers")
        scores, extra = data["scores"], data.get("extra", {})
        if not scores:
            raise PadError(f"{where}: 'scores' is empty")
        for score in scores:
            # The comparison is false for what is not a number, too.
            if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 3e38:
                raise PadError(f"{where}: 'scores' holds {score!r}, which is not a finite number")
        if any(a > b for a, b in pairwise(scores)):
            raise PadError(f"{where}: 'scores' is not sorted, so the file was changed by hand")
        if not isinstance(extra, Mapping):
            raise PadError(f"{where}: 'extra' must be a mapping")
        return cls(np.array(scores, dtype=np.float64), dict(extra))


def false_discovery(p_values: ArrayLike, fdr: float) -> NDArray[np.bool_]:
    """Which images of a batch to flag so that the expected share of normal ones among the flagged is at
    most `fdr`: Benjamini-Hochberg on conformal p-values, shape (m,). NaN is left out and not flagged.

    A p-value that equals its bound is flagged: bound and p-value are rounded, so they are compared to a few
    units in the last place (p-values differ by far more). Raises PadError unless 0 < fdr < 1.
    """
    from scipy.stats import false_discovery_control

    check_rate(fdr, "--fdr")
    p = np.asarray(p_values, dtype=np.float64)
    judged = ~np.isnan(p)
    flagged = np.zeros(p.shape, dtype=bool)
    if judged.any():
        adjusted = false_discovery_control(p[judged], method="bh")
        flagged[judged] = adjusted <= fdr * (1 + 8 * np.finfo(np.float64).eps)
    return flagged


def calibration_split(
    hashes: NDArray[np.uint64],
    fraction: float = 0.2,
    minimum: int = 50,
    seed: int = 0,
    trained: NDArray[np.uint64] | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which of n normal images to train on and which to keep for calibration: two sorted index arrays.

    The share `fraction` goes to calibration, and at least `minimum` images where there are enough, but
    never more than half. `hashes` (n,) say which picture each image is (pad/images/identity.py): those whose
    hash comes first in an order that depends on `seed` are kept. So an image stays on its side whatever the
    order of the list, copies of a picture are on one side, and few change sides when the list grows. What a
    model was `trained` on (hashes) is never kept; if that leaves too few to keep, all others are.

    Raises PadError unless 0 < fraction < 1 and n >= 2, if all images are copies of one picture, or if all
    were trained on.
    """
    check_rate(fraction, "calibration_fraction")
    n = len(hashes)
    if n < 2:
        raise PadError(f"{n} normal image(s) cannot be split into training and calibration; give at least 2")
    pictures, places, copies = np.unique(hashes, return_inverse=True, return_counts=True)
    if len(pictures) == 1:
        raise PadError(f"all {n} normal images are copies of one picture; give at least 2 pictures")
    free = np.ones(len(pictures), bool) if trained is None else ~np.isin(pictures, trained)
    if not free.any():
        raise PadError(f"all {n} normal images were trained on, so none is left to calibrate on; add others")
    wanted = min(max(round(n * fraction), minimum, 1), n // 2)
    kept = np.zeros(len(pictures), bool)
    count = 0
    for picture in sorted(np.flatnonzero(free), key=lambda i: place_in_order(int(pictures[i]), seed)):
        if count < wanted and count + copies[picture] <= n // 2:
            kept[picture] = True
            count += copies[picture]
    if not count:  # every free picture fills more than half of the list; keep the one with the fewest copies
        kept[np.flatnonzero(free)[copies[free].argmin()]] = True
    calibrating = kept[places.ravel()]
    return np.flatnonzero(~calibrating), np.flatnonzero(calibrating)


def place_in_order(picture: int, seed: int) -> bytes:
    """By what the picture of a hash is sorted, for a random order that is the same wherever the list of
    pictures begins, and when it grows."""
    return hashlib.blake2b(f"{seed} {picture}".encode(), digest_size=8).digest()


def check_rate(rate: float, name: str) -> float:
    """`rate` if it lies between 0 and 1, both excluded. Raises PadError naming the argument otherwise."""
    if not 0 < rate < 1:
        raise PadError(f"{name} takes a rate between 0 and 1, such as 0.05, not {rate:g}")
    return float(rate)


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def round_up(rate: float) -> str:
    """`rate` with two digits, never less than it is."""
    step = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return f"{math.ceil(rate / step - 1e-9) * step:.2g}"
