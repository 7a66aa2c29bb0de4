"""Every normal image both teaches and tests: views are fitted in folds, each image judged by a fit without
it.

Of n images none is thrown away. The scores that come out of this calibrate the views that are fitted on all
n: K-fold cross-conformal prediction (Vovk, 2015), and for few images the jackknife. What theory guarantees
for any data is twice the rate asked, for comparisons fold by fold (Barber et al., arXiv:1905.02928); what is
measured is the rate asked (docs/photographs.md), since a fit on n images differs little from one on n (1 −
1/K), and is the better one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pad.errors import PadError
from pad.images.hashes import Hashes
from pad.judging.calibration import place_in_order
from pad.views.features import Features, joined_features
from pad.views.quick import QuickViews

FOLDS = 5
FEW = 160  # pictures up to which there are twice as many folds, shrunk as the fit on all is
_JACKKNIFE = 20  # pictures up to which each is a fold of its own


def folds_of(pictures: int) -> int:
    """How many folds so many pictures are cut into: the more, the nearer is a fit on all but one of them to
    the fit on all that is judged by in the end."""
    if pictures <= _JACKKNIFE:
        return pictures
    return 2 * FOLDS if pictures <= FEW else FOLDS


def fold_of_each(hashes: Hashes, seed: int = 0) -> Tensor:
    """The fold of each of n images, (n,) int64.

    `hashes` (n,) say which picture each image is (pad/images/identity.py). Copies of a picture are in one
    fold, and folds have nearly the same number of pictures; where an image goes depends on `seed` and on what
    pictures there are, not on their order.
    """
    pictures, places = np.unique(hashes, return_inverse=True)
    order = sorted(range(len(pictures)), key=lambda i: place_in_order(int(pictures[i]), seed))
    fold = torch.empty(len(pictures), dtype=torch.int64)
    fold[order] = torch.arange(len(pictures)) % folds_of(len(pictures))
    return fold[torch.from_numpy(places.ravel())]


def out_of_fold_scores(
    views: QuickViews,
    normal: Features,
    hashes: Hashes,
    seed: int = 0,
    varied: Features | None = None,
    teaching: Tensor | None = None,
) -> Tensor:
    """The score of each image in each view, (n, views), by a fit on the folds that it is not in; with
    variations of the images (`fits_by_fold`) that of its variation."""
    judged = normal if varied is None else varied
    scores = torch.empty(len(normal), len(views.names))
    for held_out, fitted in fits_by_fold(views, normal, hashes, seed, varied, teaching):
        scores[held_out] = fitted.scores(judged.take(held_out))
    return scores


def fits_by_fold(
    views: QuickViews,
    normal: Features,
    hashes: Hashes,
    seed: int = 0,
    varied: Features | None = None,
    teaching: Tensor | None = None,
) -> Iterator[tuple[Tensor, QuickViews]]:
    """For each fold, which images are in it, (n,) bool, and the views as fitted on all others.

    hashes: of the images, (n,). varied: of the same images in a tolerated variation each, which is in the
    fold of its image; then both teach. teaching: which images teach, (n,) bool; by default all. Raises
    PadError if all are copies of one picture.
    """
    fold = fold_of_each(hashes, seed)
    if not fold.any():
        raise PadError(f"all {len(fold)} normal images are copies of one picture; give at least 2 pictures")
    like = None
    if _JACKKNIFE < len(np.unique(hashes)) <= FEW:
        # Of few pictures a tenth more makes covariances to be shrunk so much less that all distances grow,
        # those of normal images too: judged by folds shrunk by themselves, too many would be flagged.
        everything = torch.ones(len(fold), dtype=torch.bool) if teaching is None else teaching
        like = copy.deepcopy(views, {id(views.backbone): views.backbone})
        like.fit(taught(normal, varied, everything))
    for held_out in fold.unique():
        # A copy but for the backbone, which no fit changes.
        fitted = copy.deepcopy(views, {id(views.backbone): views.backbone})
        others = fold != held_out
        chosen = others if teaching is None else others & teaching
        yield fold == held_out, fitted.fit(taught(normal, varied, chosen), like)


def taught(normal: Features, varied: Features | None, chosen: Tensor) -> Features:
    """What the chosen images teach: themselves, and their variations."""
    if varied is None:
        return normal.take(chosen)
    return joined_features([normal.take(chosen), varied.take(chosen)])
