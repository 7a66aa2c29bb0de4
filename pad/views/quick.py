"""The quick views of a model, and the backbone that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from pad.backbones.timm_model import TimmBackbone, usable_side
from pad.config import MOST_KEPT, Config
from pad.errors import PadError, did_you_mean, shown
from pad.views.base import View
from pad.views.features import Features, features_of
from pad.views.gaussian import Gaussian
from pad.views.kept import SIDE as KEPT_SIDE
from pad.views.kept import KeptNormals
from pad.views.middle import Middle
from pad.views.parts import Parts
from pad.views.whole import Whole

QUICK_VIEWS = ("whole", "middle", "parts")


class QuickViews(nn.Module):
    """Views of features, by name. All of them see a picture through one pass of one backbone.

    Args:
        names: among QUICK_VIEWS.
        backbone: what they see through. It is not part of the state that is saved.

    Raises:
        PadError: an unknown view.
    """

    def __init__(self, names: Iterable[str], backbone: TimmBackbone) -> None:
        super().__init__()
        self.names = tuple(names)
        self._backbone = [backbone]  # in a list, so that it is no sub-module
        with torch.no_grad():
            shape = features_of(backbone(torch.zeros(1, 3, backbone.side, backbone.side)))
        self.kept = KeptNormals(features=shape.deep[-1].shape[1])
        self.views = nn.ModuleDict({name: _build(name, shape) for name in self.names})

    @property
    def backbone(self) -> TimmBackbone:
        return self._backbone[0]

    def of(self, name: str) -> View:
        return cast(View, self.views[name])

    @torch.no_grad()
    def features(self, x: Tensor) -> Features:
        """Of images (n, 1 or 3, side, side) in [-1, 1], on the CPU."""
        seen = features_of(self.backbone(x.to(self.backbone.mean.device)))
        return Features([layer.cpu() for layer in seen.deep], seen.middle.cpu(), seen.local.cpu())

    @torch.no_grad()
    def fit(self, normal: Features) -> QuickViews:
        """From the features of n >= 2 normal images."""
        for name in self.names:
            self.of(name).fit(normal)
        return self

    @torch.no_grad()
    def scores(self, features: Features) -> Tensor:
        """(n, views) float32, in the order of `names`; higher is more anomalous."""
        return torch.stack([self.of(name).score(features).float() for name in self.names], 1)

    @torch.no_grad()
    def map(self, features: Features) -> Tensor:
        """Where a picture differs from what is normal there, (n, g, g) float32 >= 0; zero without *parts*."""
        if "parts" not in self.names:
            return torch.zeros(len(features), 1, 1)
        return cast(Parts, self.views["parts"]).map(features)

    @torch.no_grad()
    def placed(self, features: Features) -> Tensor:
        """Where images lie along the main directions of their deep features, (n, k); without *whole*, the
        features themselves."""
        if "whole" not in self.names:
            return features.deep[-1]
        gaussian = cast(Gaussian, cast(Whole, self.views["whole"]).gaussians[-1])
        return (features.deep[-1] - gaussian.mean) @ gaussian.directions.float().T

    def backbone_card(self) -> dict[str, str]:
        """Which network they see through."""
        return {"name": self.backbone.name, "fingerprint": self.backbone.fingerprint}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of `state_dict`, whatever the number of directions of its Gaussians.

        Raises PadError, before it takes memory for it, for a state that does not fit."""
        for name, module in self.named_modules():
            variances = state.get(f"{name}.variances")
            # No more directions than there are features: for each there is room for all of them.
            if isinstance(module, Gaussian) and variances is not None and variances.dim() == 1:
                module.make_room(min(len(variances), len(module.mean)))
        pictures = state.get("kept.pictures")
        if pictures is not None and pictures.dim() == 4:
            count, channels, side = pictures.shape[:3]
            if count <= MOST_KEPT and channels in (1, 3) and side <= KEPT_SIDE:
                self.kept = KeptNormals(count, channels, side, self.kept.features.shape[1])
        expected = self.state_dict()
        for key in sorted(expected.keys() | state.keys()):
            wanted, found = expected.get(key), state.get(key)
            if wanted is None or found is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
                raise PadError(
                    f"the model's views do not fit its recipe: tensor {shown('views.' + key)}; refused"
                )
        self.load_state_dict(dict(state))


def build_quick(config: Config, download: bool = True) -> QuickViews:
    """The quick views that a recipe asks for. Raises PadError if their backbone cannot be had."""
    side = usable_side(config.view_backbone, config.view_size)
    backbone = TimmBackbone(config.view_backbone, side, config.view_backbone_weights, download)
    return QuickViews(config.quick_views, backbone)


def _build(name: str, shape: Features) -> nn.Module:
    if name == "whole":
        return Whole([layer.shape[1] for layer in shape.deep])
    if name == "middle":
        return Middle(shape.middle.shape[1])
    if name == "parts":
        return Parts(shape.local.shape[1], shape.local.shape[3])
    raise PadError(f"setting 'views': there is no view '{name}'{did_you_mean(name, QUICK_VIEWS)}")
