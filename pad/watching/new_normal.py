"""A new normal: the quick views fitted on pictures that were accepted, and calibrated on them.

Old and new normal are judged apart, and a picture is normal if it is in any of them:

    p(x) = max_k p_k(x)

p_0 is the model's own. So nothing that was normal is flagged because of what was accepted, and what is like
neither is found as before: a single Gaussian over dogs and cats would be wide enough for much that is
neither. For a picture of the kind k, p(x) ≥ p_k(x), hence what holds for p_k holds for p: class-conditional
conformal prediction (Vovk, 2012), with the largest p-value of all classes.

Of the view *parts* a new kind has its own mean at each place, and the model's covariances: a dozen pictures
say nothing of those, and seconds would pass. *Whole* and *middle* are fitted on the accepted pictures alone.

A generator that has learnt the kind (pad/watching/fine_tuning.py) is one more view of it; until then the
quick views judge alone.

With n accepted pictures each of which is scored by a fit without it, p_k is conformal
(pad/judging/calibration.py) where n is large enough for the rate asked; a dozen are not, 5 % takes 19. Then,
and as a lower bound besides, the fused score, a logarithm, is taken for normally distributed, and p_k is the
upper limit, with a confidence of SURE, of the probability that a picture of the kind scores as high (Owen,
1968):

    p_k(x) = Φ̄(δ / √n),    T_{n−1}(z √n; δ) = SURE,    z = (A(x) − m) / s

T is the noncentral t distribution, m and s are mean and deviation over the n. That is an estimate, no
guarantee: accepted pictures have been flagged, and are alike, so that those to come differ more; a limit
instead of the likeliest value makes up for that, as far as was measured.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pad.errors import PadError
from pad.judging.calibration import Calibration
from pad.judging.fusion import Fusion
from pad.views.features import Features
from pad.views.parts import Parts
from pad.views.quick import QuickViews
from pad.watching.learnt import Learnt

FOLDS = 6
OUTLIER = 3.5
SURE = 0.9


class NewNormal:
    """What was accepted as normal in one go.

    Args:
        accepted: features of its n >= 4 pictures.
        views: the model's; their backbone is shared, nothing of them is changed.
        fpr: the false-alarm rate asked for.
        learnt: what the generator has learnt of those pictures that are alike; None: it has no say. Raises
            PadError if it has learnt others.

    Attributes:
        alike: (n,), which of the pictures count.
    """

    def __init__(
        self, accepted: Features, views: QuickViews, fpr: float, learnt: Learnt | None = None
    ) -> None:
        self.views, self.learnt = QuickViews(views.names, views.backbone), learnt
        scores = self._out_of_fold(accepted, views)
        self.alike = _alike(Fusion.fit(views.names, scores, likeness=views.likeness).fuse(scores))
        if not self.alike.all():
            accepted = accepted.take(torch.from_numpy(self.alike))
            scores = self._out_of_fold(accepted, views)
        self._fit(accepted, views)
        names, explained = views.names, 0.0
        if learnt is not None:
            if len(learnt.held_out) != len(scores):
                raise PadError("the generator has learnt other pictures than those that are alike")
            names, explained = ("generator", *names), learnt.explained
            scores = np.column_stack([learnt.held_out.numpy(), scores])
        self.fusion = Fusion.fit(names, scores, explained, views.likeness)
        fused = self.fusion.fuse(scores).astype(np.float64)
        self.size = len(fused)
        self.mean, self.deviation = float(fused.mean()), max(float(fused.std(ddof=1)), 1e-6)
        self.calibration = Calibration(fused)
        self.holds = self.calibration.note(fpr) is None  # enough pictures to hold the rate

    @torch.no_grad()
    def _fit(self, accepted: Features, like: QuickViews) -> None:
        for name in self.views.names:
            view, known = self.views.of(name), like.of(name)
            if isinstance(view, Parts) and isinstance(known, Parts):
                view.fit_mean(accepted, known)
            else:
                view.fit(accepted)

    def _out_of_fold(self, accepted: Features, like: QuickViews) -> NDArray[np.float32]:
        fold = torch.arange(len(accepted)) % min(FOLDS, len(accepted))
        scores = torch.empty(len(accepted), len(self.views.names))
        for held_out in fold.unique():
            self._fit(accepted.take(fold != held_out), like)
            scores[fold == held_out] = self.views.scores(accepted.take(fold == held_out))
        return scores.numpy()

    def p_values(self, features: Features, images: Tensor | None = None) -> NDArray[np.float64]:
        """p_k, (n,) in (0, 1]. images: (n, channels, size, size) in [-1, 1], as a generator sees them, where
        one has a say."""
        from scipy.special import nctdtrinc, ndtr

        scores = self.views.scores(features)
        if self.learnt is not None:
            assert images is not None
            scores = torch.cat([self.learnt.view.score(images)[:, None], scores], 1)
        fused = self.fusion.fuse(scores.numpy()).astype(np.float64)
        root = math.sqrt(self.size)
        beyond = nctdtrinc(self.size - 1, SURE, (fused - self.mean) / self.deviation * root)
        limit = np.nan_to_num(ndtr(-beyond / root), nan=0.0).clip(1e-12, 1.0)  # what cannot be had flags
        return np.maximum(limit, self.calibration.p_values(fused)) if self.holds else limit


def _alike(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of some pictures are not far above the others, (n,): those came to be accepted by mistake, and
    each would let in whatever is as strange. Far is what lies OUTLIER deviations above the median, by the
    median absolute deviation (Iglewicz and Hoaglin, 1993)."""
    median = np.median(scores)
    deviation = 1.4826 * np.median(np.abs(scores - median))
    return scores <= median + OUTLIER * max(float(deviation), 1e-6)
