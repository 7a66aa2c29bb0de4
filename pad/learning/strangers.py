"""Which images of a folder do not belong there, without a label.

A tenth of cats among dogs draws mean and covariance towards itself: under a Gaussian of all images they look
as normal as the dogs (*masking*). So Gaussians are concentrated, step by step, on the images that are most
like the others, as the minimum covariance determinant is found (Rousseeuw and Van Driessen, 1999), with two
differences: every image is judged by a fit on folds that it is not in, since in many dimensions the images
that a fit is made of look closest to it; and the start is the distance to the nearest quarter of the images,
of which a smaller group finds too few among itself. An image is *far* by

    zᵢ = (uᵢ − median u) / (median u − 16 % quantile of u)

u being the fused log-distance: the lower half, which no stranger is in, says what a deviation is.

Being far proves nothing: the tail of what is normal is far too, and leaving it out costs more than it brings
(0.01 of ROC AUC on clothes). But strangers who matter are many of a kind. A group of images *stands apart* if
its nearest relatives are far as well, and a gap lies between it and the others: along the direction that
tells the two best apart (Fisher's, found in folds), fewer images lie in the middle third than GAP times the
group. Whether such a group is a rare kind of normal or does not belong, no picture can tell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pad.images.hashes import Hashes
from pad.judging.fusion import Fusion
from pad.learning.cross_fit import fold_of_each
from pad.views.features import Features
from pad.views.gaussian import Gaussian

FAR = 2.5  # z, in deviations
GAP = 0.4  # images in the gap, as a share of the group
LEAST_IMAGES = 40  # in fewer nobody can tell a group from chance
_LEAST_GROUP = 8
_DIRECTIONS = 64  # of largest variance, in which all this is done
_NEAREST = 0.25  # share of the images that is near at the start
_CONCENTRATED = (0.5, 0.5, 0.5, 0.5, 0.75, 0.75)  # share of the images that teaches, step by step
_LOWER = 0.16  # the quantile that lies one deviation of a normal distribution below the median
_RELATIVES, _MOST_OF_THEM = 5, 0.6
_ROUNDS, _FOLDINGS = 3, 4  # of telling the group apart anew; of folds that are averaged over
_MIDDLE = (1 / 3, 2 / 3)


class Strangers(NamedTuple):
    """Of n images."""

    z: Tensor  # (n,) float32: how far each is from the bulk; FAR and more is far
    apart: Tensor  # (n,) bool: the group that stands apart; none where there is no gap

    @property
    def far(self) -> Tensor:
        """(n,) bool, the group included."""
        return (self.z > FAR) | self.apart


@torch.no_grad()
def find_strangers(features: Features, hashes: Hashes, seed: int = 0) -> Strangers:
    """The strangers among images, by their features; `hashes` (n,) say which are copies of one picture.

    Of fewer images than LEAST_IMAGES, none is called far or apart.
    """
    n = len(features)
    nobody = torch.zeros(n, dtype=torch.bool)
    if n < LEAST_IMAGES:
        return Strangers(torch.zeros(n), nobody)
    z = _how_far(features, fold_of_each(hashes, seed))
    deep = features.deep[-1]
    group = _with_relatives(deep, z > FAR)
    foldings = [fold_of_each(hashes, seed + 1 + i) for i in range(_FOLDINGS)]
    group, gap = _told_apart(_principal(deep), group, foldings)
    return Strangers(z, group if gap < GAP else nobody)


def farthest(features: Features, hashes: Hashes, share: float, seed: int = 0) -> Tensor:
    """The share of the images that belongs least, (n,) bool: the group of that size that is told apart from
    the others best, beginning with those that are farthest."""
    n = len(features)
    count = min(round(share * n), n // 2)
    if count == 0 or n < LEAST_IMAGES:
        return torch.zeros(n, dtype=torch.bool)
    z = _how_far(features, fold_of_each(hashes, seed))
    foldings = [fold_of_each(hashes, seed + 1 + i) for i in range(_FOLDINGS)]
    return _told_apart(_principal(features.deep[-1]), _highest(z, count), foldings, count)[0]


# How far an image is from the bulk ----------------------------------------------------------------


def _how_far(features: Features, fold: Tensor) -> Tensor:
    layers = [features.deep[-1], F.normalize(features.middle)]
    u = _fused(torch.stack([_to_nearest_share(x) for x in layers], 1))
    reduced = [_principal(x) for x in layers]
    for share in _CONCENTRATED:
        teaching = u <= u.quantile(share)
        u = _fused(torch.stack([_distances(x, fold, teaching) for x in reduced], 1))
    return _in_deviations(u)


def _to_nearest_share(x: Tensor) -> Tensor:
    """The cosine distance of each sample (n, c) of unit length to the last of its nearest quarter, (n,)."""
    count = max(1, round(_NEAREST * len(x)))
    return torch.cat([1 - (part @ x.T).topk(count + 1).values[:, -1] for part in x.split(1024)])


def _distances(x: Tensor, fold: Tensor, teaching: Tensor) -> Tensor:
    """The Mahalanobis distance of each sample (n, c) under a Gaussian of those that teach in other folds."""
    distances = torch.empty(len(x))
    for held_out in fold.unique():
        chosen = teaching & (fold != held_out)
        if int(chosen.sum()) < 2:  # of copies of few pictures all may lie in one fold
            chosen = fold != held_out
        gaussian = Gaussian(x.shape[1]).fit(x[chosen])
        distances[fold == held_out] = gaussian(x[fold == held_out]).clamp_min(1e-12).sqrt()
    return distances


def _fused(distances: Tensor) -> Tensor:
    """u, (n,), of distances (n, 2) in *whole* and *middle*."""
    logs = distances.double().clamp_min(1e-12).log()
    middle, deviation = _robust(logs)
    fusion = Fusion.fit(("whole", "middle"), distances.numpy())
    robust = Fusion(fusion.views, middle.numpy(), deviation.numpy(), fusion.weights)
    return torch.from_numpy(robust.fuse(distances.numpy()))


def _in_deviations(u: Tensor) -> Tensor:
    middle, deviation = _robust(u)
    return (u - middle) / deviation


def _robust(values: Tensor) -> tuple[Tensor, Tensor]:
    """Median and deviation of the lower half, along the first dimension."""
    median = values.quantile(0.5, dim=0)
    return median, (median - values.quantile(_LOWER, dim=0)).clamp_min(1e-6)


def _principal(x: Tensor) -> Tensor:
    """Samples (n, c) along their directions of largest variance, (n, k)."""
    centred = x - x.mean(0)
    small = (centred.T @ centred if len(x) >= x.shape[1] else centred @ centred.T).double()
    variances, vectors = torch.linalg.eigh(small)
    k = min(_DIRECTIONS, int((variances > 1e-9 * variances[-1]).sum()))
    vectors = vectors[:, -k:].flip(1)
    if len(x) >= x.shape[1]:
        return centred @ vectors.float()
    return (vectors * variances[-k:].flip(0).sqrt()).float()


# Whether a group stands apart ---------------------------------------------------------------------


def _with_relatives(x: Tensor, far: Tensor) -> Tensor:
    """Those of the far ones of whose nearest relatives, by samples (n, c) of unit length, most are far too."""
    group = far.clone()
    for i in far.nonzero().flatten().tolist():
        similar = x @ x[i]
        similar[i] = -2
        nearest = similar.topk(_RELATIVES).indices
        group[i] = float(far[nearest].float().mean()) >= _MOST_OF_THEM
    return group


def _told_apart(
    x: Tensor, group: Tensor, foldings: list[Tensor], count: int | None = None
) -> tuple[Tensor, float]:
    """The group among samples (n, c), told apart anew a few times (of `count` images where that is given),
    and how full the gap is, as a share of the group; infinity if there is no group."""
    gap = float("inf")
    for _ in range(_ROUNDS):
        if not _LEAST_GROUP <= int(group.sum()) <= len(x) // 2:
            return group, float("inf")
        place = sum(_places(x, group, fold) for fold in foldings) / len(foldings)
        zero, one = place[~group].mean(), place[group].mean()
        place = (place - zero) / (one - zero)
        low, high = _MIDDLE
        gap = float(((place > low) & (place < high)).sum() / group.sum())
        group = place > 0.5 if count is None else _highest(place, count)
    return group, gap


def _places(x: Tensor, group: Tensor, fold: Tensor) -> Tensor:
    """Where samples (n, c) lie between the mean of the others (0) and that of the group (1), (n,), along
    Fisher's direction; each by a fit on other folds."""
    from sklearn.covariance import ledoit_wolf

    x = x.double()
    places = torch.zeros(len(x), dtype=torch.float64)
    for held_out in fold.unique():
        inside, outside = x[group & (fold != held_out)], x[~group & (fold != held_out)]
        if len(inside) < 2:
            continue
        spread = torch.cat([inside - inside.mean(0), outside - outside.mean(0)])
        covariance = torch.from_numpy(ledoit_wolf(spread.numpy(), assume_centered=True)[0])
        across = inside.mean(0) - outside.mean(0)
        direction = torch.linalg.solve(covariance, across)
        places[fold == held_out] = ((x[fold == held_out] - outside.mean(0)) @ direction) / (across @ direction)
    return places


def _highest(values: Tensor, count: int) -> Tensor:
    """The mask of the `count` highest values (n,)."""
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[values.topk(count).indices] = True
    return mask
