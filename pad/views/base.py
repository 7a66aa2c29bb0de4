"""What every view of features is: fitted on normal images, it scores others; higher is more anomalous."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from pad.views.features import Features


class View(Protocol):
    """A way of looking at images. Its state travels with the model (`state_dict`)."""

    def fit(self, normal: Features, like: Any = None) -> None:
        """From the features of n >= 2 normal images; with covariances shrunk as much as in the last fit of
        `like`, a view of the same kind, or by default as much as suits n."""

    def score(self, features: Features) -> Tensor:
        """(n,) float32 > 0, higher is more anomalous."""

    def state_dict(self) -> dict[str, Tensor]: ...


class MappingView(View, Protocol):
    """A view that says where, too."""

    def map(self, features: Features) -> Tensor:
        """(n, g, g) float32 >= 0, higher where it is more anomalous."""
