"""Which flagged pictures are alike, many and dense enough to be proposed as a new normal.

The rule is MINAS's (Faria et al., 2016): a group is a new kind if it has enough members, and is closer to
itself than to what is known. Pictures differ by one minus the cosine of their deep features. Of a group, a
is the mean difference of its pairs, b that to the normal pictures that the model keeps; then

    silhouette = 1 − a / b    (Rousseeuw, 1987, for a < b)

must reach COHESION. Groups are those of average linkage, which is that very mean, in the buffer of what was
flagged. A picture belongs to a group that there is if its own silhouette in it reaches BELONGING: that is
asked less strictly, so that what a group becomes is not only the core that it began with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from pad.views.features import Features
from pad.watching.rules import LEAST_MEMBERS

COHESION = 0.25
BELONGING = 0.15


def vectors(features: Features) -> Tensor:
    """(n, c) of unit length: what is compared."""
    return F.normalize(features.deep[-1].float())


def groups(flagged: Tensor, normals: Tensor, least_members: int = LEAST_MEMBERS) -> list[list[int]]:
    """The groups of flagged pictures (n, c) that are to be proposed, given some normal ones (k, c): each the
    indices in order, the largest group first."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(flagged) < max(2, least_members):
        return []
    differences = 1 - (flagged @ flagged.T).double().clamp(-1, 1)
    differences = ((differences + differences.T) / 2).fill_diagonal_(0)
    known = 1 - (flagged @ normals.T).double().mean(1)
    tree = linkage(squareform(differences.numpy(), checks=False), "average")
    labels = fcluster(tree, (1 - COHESION) * float(known.mean()), "distance")
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        n = len(members)
        if n < least_members:
            continue
        within = float(differences[members][:, members].sum()) / (n * (n - 1))
        if within <= (1 - COHESION) * float(known[members].mean()):
            chosen.append(members.tolist())
    return sorted(chosen, key=len, reverse=True)


def belongs_to(picture: Tensor, groups: Sequence[tuple[int, Tensor]], normals: Tensor) -> int | None:
    """The group (id, members (m, c)) to which a picture (c,) belongs, given some normal pictures (k, c);
    None if it belongs to none."""
    most = (1 - BELONGING) * (1 - float((normals @ picture).mean()))
    differences = [(1 - float((members @ picture).mean()), group) for group, members in groups]
    least = min(differences, default=(2.0, 0))
    return least[1] if least[0] <= most else None
