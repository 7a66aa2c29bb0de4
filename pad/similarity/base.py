"""What every similarity is: two images compared, and what it learns from normal images to do so.

Two images are compared in two steps: `prepare` what is needed of the first, once, and `compare` the second
with it. What a similarity learns, it learns in this order; one that learns nothing has nothing to do there:

1. Before training: `fit` on batches of `features` of the training images, or `take_statistics` of one that is
   trained.
2. Training follows `compare`.
3. After training, to score: `choose_channels`, then `fit_residuals` on batches of `differences` between
   normal images and what the model makes of them; `reset_residuals` goes back to what training follows.

Saved is `statistics_state`; before it is loaded, `make_room` for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Similarity(nn.Module):
    """How different two images (n, 1 or 3, h, w) in [-1, 1] are: 0 for equal ones, higher is more different.

    Attributes:
        keeps_features: whether `features` are dear enough for those of the training images to be kept.
    """

    keeps_features = False

    def prepare(self, x: Tensor) -> list[Tensor]:
        """What `compare` needs of the first image."""
        return [x]

    def compare(self, reference: Sequence[Tensor], y: Tensor) -> Tensor:
        """How different images y are from those that were prepared, (n,)."""
        raise NotImplementedError

    def map(self, x: Tensor, y: Tensor) -> Tensor:
        """Where x and y differ, (n, h, w) >= 0."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """How different they are, (n,)."""
        return self.compare(self.prepare(x), y)

    # The network that it sees through

    def backbone_card(self) -> dict[str, str]:
        """Name and fingerprint of the backbone whose weights a model must meet again, or nothing."""
        return {}

    def cast(self, dtype: torch.dtype) -> None:
        """Sets the number format of its frozen network. What it has learned stays as it is."""

    # What it learns

    def features(self, x: Tensor) -> list[Tensor]:
        """What `fit` learns from, and `standardize` makes into what `prepare` gives."""
        return self.prepare(x)

    def standardize(self, features: Sequence[Tensor]) -> list[Tensor]:
        """`prepare` from `features`."""
        return list(features)

    def fit(self, batches: Iterable[Sequence[Tensor]]) -> Similarity:
        """Learns from batches of `features` of normal images."""
        return self

    def take_statistics(self, other: Similarity) -> None:
        """What another one of the same settings has learned by `fit`."""

    def choose_channels(self) -> None:
        """From now on only the channels that tell most count; to be done before `fit_residuals`."""

    def differences(self, reference: Sequence[Tensor], y: Tensor) -> list[Tensor]:
        """What `fit_residuals` learns from, of prepared images and images y."""
        return []

    def fit_residuals(self, batches: Iterable[Sequence[Tensor]], known: Any = None) -> Similarity:
        """Learns from batches of `differences` how a model errs on normal images; `known`: one of the same
        settings, of whose errors as much is kept as can be."""
        return self

    def reset_residuals(self) -> None:
        """Forgets what `choose_channels` and `fit_residuals` did."""

    def freeze(self) -> None:
        """Nothing is learned any more: what follows from what was learned is computed once, for a graph that
        is exported."""

    # What travels with a model

    def statistics_state(self) -> dict[str, Tensor]:
        """What it has learned, by name."""
        return {}

    def make_room(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """For a state whose tensors have these shapes, by name."""

    def load_statistics_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes a `statistics_state`, for which there is room. Further tensors are passed over."""
