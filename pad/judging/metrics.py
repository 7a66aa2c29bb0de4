"""How well scores separate anomalies from normal images, with intervals, and how well anomaly maps find the
marked pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pad.errors import PadError

METRICS = ("roc_auc", "average_precision", "fpr_at_95_tpr")
Interval = dict[str, float]  # {"value", "low", "high"}


def detection_metrics(
    normal: ArrayLike, anomalous: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """ROC AUC, average precision and the false-alarm rate at which 95 % of the anomalies are found.

    `normal`, `anomalous`: finite scores, shapes (n,) and (m,), n, m >= 1; higher is more anomalous.
    Returns `{name: {"value", "low", "high"}}`, all in [0, 1]: scikit-learn's value and the 2.5 and 97.5
    percentiles over resamples drawn with replacement from the normal and from the anomalous images apart
    (stratified bootstrap; Efron and Tibshirani, 1993). Fewer resamples, but at least 200, are drawn
    where there are more than half a million images. Where these percentiles reach the best (or worst)
    value that there is, the images say too little of their own errors to be resampled, and the interval
    is widened by one that knows how few they are (`_few_errors`).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    normal, anomalous = np.asarray(normal, np.float64), np.asarray(anomalous, np.float64)
    scores = np.concatenate([normal, anomalous])
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    values = (
        roc_auc_score(labels, scores),
        average_precision_score(labels, scores),
        false_rate[np.argmax(true_rate >= 0.95)],
    )
    resamples = int(min(resamples, max(200, 5e8 // len(scores))))
    drawn = _bootstrap(normal, anomalous, resamples, np.random.default_rng(seed))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=1)
    results = {
        name: {"value": float(v), "low": float(a), "high": float(b)}
        for name, v, a, b in zip(METRICS, values, low, high, strict=True)
    }
    wider = _few_errors(results, len(normal), len(anomalous))
    for name, of in results.items():
        if of["low"] <= 0 or of["high"] >= 1:
            of["low"], of["high"] = min(of["low"], wider[name]["low"]), max(of["high"], wider[name]["high"])
    return results


def _few_errors(results: Mapping[str, Interval], n: int, m: int) -> dict[str, Interval]:
    """95 % intervals of the three metrics that keep a width however few errors n normal and m anomalous
    images show.

    ROC AUC: `auc_interval`. The false-alarm rate: Clopper and Pearson's, the threshold taken as given.
    Average precision: as if the share of normal images that n have not shown, with a probability of 97.5 %
    at most u = 1 - 0.025^(1/n) (the "rule of three" of Hanley and Lippman-Hand, JAMA 1983, exactly), lay
    above every anomaly, which makes the precision at the i-th one i / (i + u n).
    """
    found = np.arange(1, m + 1)
    unseen = n * (1 - 0.025 ** (1 / n))
    false_alarms = round(results["fpr_at_95_tpr"]["value"] * n)
    return {
        "roc_auc": auc_interval(results["roc_auc"]["value"], n, m),
        "average_precision": {"low": float((found / (found + unseen)).mean()), "high": 1.0},
        "fpr_at_95_tpr": rate(false_alarms, n),
    }


def auc_interval(auc: float, n: int, m: int) -> Interval:
    """The 95 % score interval of a ROC AUC of n normal and m anomalous images, n, m >= 1, by their numbers
    alone: all values that lie within 1.96 of their own standard deviations of `auc`.

    The variance is Hanley and McNeil's (Radiology, 1982) with n and m replaced by their mean where the
    shapes of the distributions enter: method 5 of Newcombe, "Confidence intervals for an effect size measure
    based on the Mann-Whitney statistic", part 2, Statistics in Medicine, 2006. It keeps a width at 0 and 1.
    """
    from scipy.optimize import brentq

    shape = (n + m) / 2 - 1
    z = 1.959963984540054

    def beyond(true: float, side: float) -> float:
        variance = true * (1 - true) * (1 + shape * ((1 - true) / (2 - true) + true / (1 + true))) / (n * m)
        return side * (auc - true) - z * variance**0.5

    # At 0 and 1 the variance vanishes, so `auc` itself would be found there.
    inside = min(max(auc, 1e-12), 1 - 1e-12)
    low = float(brentq(beyond, 0, inside, (1.0,))) if auc > 0 else 0.0
    high = float(brentq(beyond, inside, 1, (-1.0,))) if auc < 1 else 1.0
    return {"value": float(auc), "low": low, "high": high}


def _bootstrap(
    normal: NDArray[np.float64], anomalous: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The three metrics over resamples, shape (3, resamples).

    A resample only changes how often each distinct score occurs, so the scores are sorted once.
    """
    levels, place = np.unique(-np.concatenate([normal, anomalous]), return_inverse=True)
    chunk = max(1, 2_000_000 // len(place))  # resamples at a time, for flat memory
    parts = []
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        negatives = _resample(place[: len(normal)], len(levels), count, rng)
        positives = _resample(place[len(normal) :], len(levels), count, rng)
        parts.append(weighted_metrics(positives, negatives))
    return np.concatenate(parts, axis=1)


def _resample(
    place: NDArray[np.intp], levels: int, count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """How often each level occurs in each of `count` resamples of `place`: (count, levels)."""
    drawn = place[rng.integers(0, len(place), (count, len(place)))]
    drawn += np.arange(count)[:, None] * levels
    return np.bincount(drawn.ravel(), minlength=count * levels).reshape(count, levels)


def weighted_metrics(positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> NDArray[np.float64]:
    """The three metrics of scores given as counts of each distinct score, from the highest score down:
    two arrays of shape (k, levels) give shape (3, k)."""
    found, false = np.cumsum(positives, axis=1), np.cumsum(negatives, axis=1)
    p, n = found[:, -1], false[:, -1]
    lower = n[:, None] - false + 0.5 * negatives  # normal images below each level, ties by half
    auc = (positives * lower).sum(axis=1) / (p * n)
    precision = found / np.maximum(found + false, 1)
    average_precision = (positives * precision).sum(axis=1) / p
    at = np.argmax(found / p[:, None] >= 0.95, axis=1)
    return np.stack([auc, average_precision, false[np.arange(len(at)), at] / n])


def rate(flagged: int, total: int) -> Interval:
    """A share with its exact 95 % interval (Clopper and Pearson, 1934); total >= 1."""
    from scipy.stats import binomtest

    interval = binomtest(flagged, total).proportion_ci()
    return {"value": flagged / total, "low": float(interval.low), "high": float(interval.high)}


class PixelMetrics:
    """ROC AUC over pixels, and AUPRO, of anomaly maps against masks, in flat memory over any number of
    images.

    Map values are collected in half a million bins of 0.05 % relative width (the leading bits of the
    float32), so the results differ from exact ones only where pixels tie within a bin.
    """

    _SHIFT = 12  # bits dropped from the float32: 11 of the fraction are left
    _BINS = (0x7F800000 >> _SHIFT) + 1  # up to infinity

    def __init__(self) -> None:
        self._normal = np.zeros(self._BINS)  # pixels outside every mask
        self._marked = np.zeros(self._BINS)  # pixels inside
        self._overlap = np.zeros(self._BINS)  # the same, each weighing 1 / (pixels of its region)
        self._regions = 0

    def add(self, anomaly_map: ArrayLike, mask: ArrayLike | None, name: str = "mask") -> None:
        """Adds one image: a map (H, W) of finite numbers >= 0, and its mask (H, W), above 0 where
        anomalous; None for a normal image.

        Regions are the 8-connected parts of the mask. Raises PadError, beginning with `name`, if the
        two differ in shape or if the map holds something else.
        """
        from scipy.ndimage import label

        values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
        marked = np.zeros(values.shape, bool) if mask is None else np.asarray(mask) > 0
        if marked.shape != values.shape:
            given, wanted = ("x".join(map(str, a.shape[::-1])) for a in (marked, values))
            raise PadError(f"{name}: is {given} pixels, but its image has {wanted}")
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise PadError(f"{name}: the anomaly map must hold finite numbers of at least 0")
        # Bit patterns of floats >= 0 are ordered as the floats are; + 0 turns -0 into 0.
        bins = (values + np.float32(0)).view(np.uint32) >> self._SHIFT
        self._normal += np.bincount(bins[~marked], minlength=self._BINS)
        if marked.any():
            regions, count = label(marked, structure=np.ones((3, 3)))
            area = np.bincount(regions.ravel())
            inside = bins[marked]
            self._marked += np.bincount(inside, minlength=self._BINS)
            self._overlap += np.bincount(inside, 1 / area[regions[marked]], minlength=self._BINS)
            self._regions += count

    def results(self) -> dict[str, float]:
        """`{"pixel_roc_auc", "aupro"}`, in [0, 1]; empty unless there are marked and unmarked pixels.

        AUPRO: the mean, over the regions, of the share of a region above the threshold, integrated
        over the false-positive rate of the unmarked pixels up to 0.3, divided by 0.3 (Bergmann et al.,
        "The MVTec Anomaly Detection Dataset", IJCV 2021).
        """
        from scipy.integrate import trapezoid

        normal, marked = self._normal.sum(), self._marked.sum()
        if not normal or not marked:
            return {}
        false_rate = np.concatenate([[0], np.cumsum(self._normal[::-1])]) / normal
        true_rate = np.concatenate([[0], np.cumsum(self._marked[::-1])]) / marked
        overlap = np.concatenate([[0], np.cumsum(self._overlap[::-1])]) / self._regions
        return {
            "pixel_roc_auc": float(trapezoid(true_rate, false_rate)),
            "aupro": _area_up_to(false_rate, overlap, 0.3),
        }


def _area_up_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """The mean height of the curve (x rising from 0 to 1) between 0 and `limit`."""
    from scipy.integrate import trapezoid

    kept = x <= limit
    end = np.interp(limit, x, y)
    return float(trapezoid(np.append(y[kept], end), np.append(x[kept], limit)) / limit)


def pixel_metrics(maps: Iterable[ArrayLike], masks: Iterable[ArrayLike | None]) -> dict[str, float]:
    """`PixelMetrics` of all maps and masks at once."""
    collected = PixelMetrics()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        collected.add(anomaly_map, mask)
    return collected.results()
