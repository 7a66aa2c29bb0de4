"""Which images of a folder do not belong there, without a label.

A tenth of cats among dogs draws mean and covariance towards itself: under a Gaussian of all images they look
as normal as the dogs (*masking*). So a Gaussian of the deep features is concentrated, step by step, on the
images that are most like the others, as the minimum covariance determinant is found (Rousseeuw and Van
Driessen, 1999), with two differences: every image is judged by a fit on folds that it is not in, since in
many dimensions the images that a fit is made of look closest to it; and the start is the distance to the
nearest quarter of the images, of which a smaller group finds too few among itself. An image is *far* by

    zᵢ = (uᵢ − median u) / (median u − 16 % quantile of u)

u being the log-distance: the lower half, which no stranger is in, says what a deviation is.

Being far proves nothing: the tail of what is normal is far too, and leaving it out costs more than it brings.
But strangers who matter are many of a kind. So the far images are tried as a whole and in three clusters
(Ward): a group *stands apart* if there is a gap between it and all others. Along the direction that tells the
two best apart (Fisher's, found in folds), fewer images lie in the middle third than a fifth of the group. If
the others fall apart into clusters with a gap between, they are of several kinds, and the group is one more.
Whether a single small group is a rare kind of normal or does not belong, no picture can tell.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pad.images.hashes import Hashes
from pad.learning.cross_fit import fold_of_each
from pad.views.gaussian import Gaussian

MOST = 0.15  # of the images: a larger group is rather a kind of normal
_FAR = 2.5  # z, in deviations
_GAP, _GAP_OF_KINDS = 0.2, 0.15  # images in the gap, as a share of the group: of strangers; between kinds
_LEAST_GROUP, _LEAST_FOR_A_GAP = 8, 80  # images; in fewer nobody can tell a group from chance
_CLUSTERS = 3
_DIRECTIONS = 64  # of largest variance, in which all this is done
_NEAREST = 0.25  # share of the images that is near at the start
_CONCENTRATED = (0.5, 0.5, 0.5, 0.5, 0.75, 0.75)  # share of the images that teaches, step by step
_LOWER = 0.16  # the quantile that lies one deviation of a normal distribution below the median
_ROUNDS, _FOLDINGS = 3, 4  # of telling the group apart anew; of folds that are averaged over
_MIDDLE = (1 / 3, 2 / 3)


@torch.no_grad()
def standing_apart(deep: Tensor, hashes: Hashes, seed: int = 0, most: float = MOST) -> Tensor:
    """The group that stands apart among n images, (n,) bool; nobody where there is no gap, where the others
    are of several kinds, where the group is a larger share than `most`, and among few images.

    deep: their features (n, c), of unit length. hashes: which pictures they are, (n,).
    """
    group = beyond_a_gap(deep, hashes, seed)
    nobody = torch.zeros_like(group)
    if not 0 < int(group.sum()) <= most * len(deep):
        return nobody
    return nobody if _of_several_kinds(deep[~group], hashes[~group.numpy()], seed) else group


@torch.no_grad()
def beyond_a_gap(deep: Tensor, hashes: Hashes, seed: int = 0) -> Tensor:
    """Of all groups beyond a gap that of the emptiest, whatever the others are, (n,) bool; nobody where there
    is none. Arguments as for `standing_apart`."""
    best, narrowest = torch.zeros(len(deep), dtype=torch.bool), _GAP
    if len(deep) < _LEAST_FOR_A_GAP:
        return best
    x, foldings = _principal(deep), _foldings(hashes, seed)
    far = how_far(deep, hashes, seed) > _FAR
    if int(far.sum()) < _LEAST_GROUP:
        return best
    for candidate in (far, *_clusters(x, far)):
        group, gap = _told_apart(x, candidate, foldings)
        if gap < narrowest:
            best, narrowest = group, gap
    return best


@torch.no_grad()
def farthest(deep: Tensor, hashes: Hashes, share: float, seed: int = 0) -> Tensor:
    """The share of n images that belongs least, (n,) bool: the group of that size that is told apart from the
    others best, beginning with those that are farthest. Arguments as for `standing_apart`."""
    count = round(share * len(deep))
    if count == 0:
        return torch.zeros(len(deep), dtype=torch.bool)
    group = _highest(how_far(deep, hashes, seed), count)
    return _told_apart(_principal(deep), group, _foldings(hashes, seed), count)[0]


def _foldings(hashes: Hashes, seed: int) -> list[Tensor]:
    return [fold_of_each(hashes, seed + 1 + i) for i in range(_FOLDINGS)]


# How far an image is from the bulk ----------------------------------------------------------------


def how_far(deep: Tensor, hashes: Hashes, seed: int = 0) -> Tensor:
    """z, (n,): how far each of n images is from the bulk. Arguments as for `standing_apart`."""
    u, x, fold = _to_nearest_share(deep), _principal(deep), fold_of_each(hashes, seed)
    for share in _CONCENTRATED:
        u = _distances(x, fold, u <= u.quantile(share)).log()
    median = u.quantile(0.5)
    return (u - median) / (median - u.quantile(_LOWER)).clamp_min(1e-6)


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


def _principal(x: Tensor) -> Tensor:
    """Samples (n, c) along their directions of largest variance, (n, k)."""
    centred = x - x.mean(0)
    small = (centred.T @ centred if len(x) >= x.shape[1] else centred @ centred.T).double()
    variances, vectors = torch.linalg.eigh(small)
    k = max(1, min(_DIRECTIONS, int((variances > 1e-9 * variances[-1]).sum())))
    vectors = vectors[:, -k:].flip(1)
    if len(x) >= x.shape[1]:
        return centred @ vectors.float()
    return (vectors * variances[-k:].flip(0).clamp_min(0).sqrt()).float()


# Whether a group stands apart ---------------------------------------------------------------------


def _of_several_kinds(deep: Tensor, hashes: Hashes, seed: int) -> bool:
    """Whether there is a gap between the largest clusters of images."""
    x, foldings = _principal(deep), _foldings(hashes, seed)
    everyone = torch.ones(len(x), dtype=torch.bool)
    return any(_told_apart(x, group, foldings)[1] < _GAP_OF_KINDS for group in _clusters(x, everyone))


def _clusters(x: Tensor, chosen: Tensor) -> Iterator[Tensor]:
    """Clusters of those that are chosen among samples (n, c), each (n,) bool."""
    from scipy.cluster.hierarchy import fcluster, ward

    places = chosen.nonzero().flatten()
    cluster_of_each = torch.from_numpy(fcluster(ward(x[places].numpy()), _CLUSTERS, "maxclust"))
    for cluster in cluster_of_each.unique():
        group = torch.zeros_like(chosen)
        group[places[cluster_of_each == cluster]] = True
        yield group


def _told_apart(
    x: Tensor, group: Tensor, foldings: list[Tensor], count: int | None = None
) -> tuple[Tensor, float]:
    """The group among samples (n, c), told apart anew a few times (of `count` images where that is given),
    and how full the gap is, as a share of the group; infinity if there is no group."""
    gap = float("inf")
    for _ in range(_ROUNDS):
        if not _LEAST_GROUP <= int(group.sum()) <= len(x) // 2:
            return group, float("inf")
        place = torch.stack([_places(x, group, fold) for fold in foldings]).mean(0)
        zero, one = place[~group].mean(), place[group].mean()
        place = (place - zero) / (one - zero)
        low, high = _MIDDLE
        gap = float(((place > low) & (place < high)).sum() / group.sum())
        group = place > 0.5 if count is None else _highest(place, count)
    return group, gap


def _places(x: Tensor, group: Tensor, fold: Tensor) -> Tensor:
    """Where samples (n, c) lie between the mean of the others (0) and that of the group (1), (n,), along
    Fisher's linear discriminant, each by one that is found in the folds that it is not in."""
    from sklearn.covariance import ledoit_wolf

    x = x.double()
    places = torch.zeros(len(x), dtype=torch.float64)
    for held_out in fold.unique():
        inside, outside = x[group & (fold != held_out)], x[~group & (fold != held_out)]
        if len(inside) == 0 or len(outside) == 0:
            continue
        spread = torch.cat([inside - inside.mean(0), outside - outside.mean(0)])
        covariance = torch.from_numpy(ledoit_wolf(spread.numpy(), assume_centered=True)[0])
        across = inside.mean(0) - outside.mean(0)
        direction = torch.linalg.solve(covariance, across)
        places[fold == held_out] = ((x[fold == held_out] - outside.mean(0)) @ direction) / (
            across @ direction
        )
    return places


def _highest(values: Tensor, count: int) -> Tensor:
    """The mask of the `count` highest values (n,)."""
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[values.topk(count).indices] = True
    return mask
