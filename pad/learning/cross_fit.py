"""Every normal image both teaches and tests: views are fitted in folds, each image judged by a fit without
it.

Of n images none is thrown away. The scores that come out of this calibrate the views that are fitted on all
n:
K-fold cross-conformal prediction (Vovk, 2015; for few images the jackknife, Barber et al.,
arXiv:1905.02928). What
is guaranteed for any data is twice the rate asked, for fold-wise comparison; what is measured is the rate
asked
(docs/promise.md), since a fit on n images differs little from one on n (1 − 1/K), and is the better one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pad.views.features import Features, joined
from pad.views.quick import QuickViews

FOLDS = 5
_JACKKNIFE = 20  # images up to which each is a fold of its own


def fold_of_each(n: int, seed: int = 0, folds: int = FOLDS) -> Tensor:
    """The fold of each of n images, (n,) int64, all of nearly one size and in random order."""
    count = n if n <= _JACKKNIFE else folds
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(n, dtype=torch.int64)
    fold[shuffled] = torch.arange(n) % count
    return fold


def out_of_fold_scores(
    views: QuickViews, normal: Features, seed: int = 0, varied: Features | None = None
) -> Tensor:
    """The score of each image in each view, (n, views), by a fit on the folds that it is not in.

    varied: of the same images in a tolerated variation, which is in the fold of its image. Then both teach,
    and the variation is judged.
    """
    judged = normal if varied is None else varied
    fold = fold_of_each(len(normal), seed)
    scores = torch.empty(len(normal), len(views.names))
    for held_out in fold.unique():
        others = fold != held_out
        fitted = copy.deepcopy(views).fit(taught(normal, varied, others))
        scores[fold == held_out] = fitted.scores(judged.take(fold == held_out))
    return scores


def taught(normal: Features, varied: Features | None, chosen: Tensor) -> Features:
    """What the chosen images teach: themselves, and their variations."""
    if varied is None:
        return normal.take(chosen)
    return joined([normal.take(chosen), varied.take(chosen)])
