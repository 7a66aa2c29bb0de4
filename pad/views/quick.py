"""The quick views of a model, and the backbone that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from pad.backbones.timm_model import TimmBackbone
from pad.config import Config
from pad.errors import PadError, did_you_mean, shown
from pad.views.base import View
from pad.views.features import Features, features_of
from pad.views.gaussian import Gaussian
from pad.views.kept import KeptNormals
from pad.views.likeness import Likeness
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
        shape = features_of(backbone.blank)
        self.kept = KeptNormals(features=shape.deep[-1].shape[1])
        self.views = nn.ModuleDict({name: _build(name, shape) for name in self.names})

    @property
    def backbone(self) -> TimmBackbone:
        return self._backbone[0]

    def among(self, names: Iterable[str]) -> QuickViews:
        """Some of these views, as they were fitted."""
        chosen = QuickViews(names, self.backbone)
        chosen.kept = self.kept
        chosen.views = nn.ModuleDict({name: self.views[name] for name in chosen.names})
        return chosen

    def of(self, name: str) -> View:
        return cast(View, self.views[name])

    @torch.no_grad()
    def features(self, x: Tensor) -> Features:
        """Of images (n, 1 or 3, side, side) in [-1, 1], on the CPU."""
        seen = features_of(self.backbone(x.to(self.backbone.mean.device)))
        return Features(
            [layer.cpu() for layer in seen.deep], seen.middle.cpu(), seen.local.cpu(), seen.layers
        )

    @torch.no_grad()
    def fit(self, normal: Features, like: QuickViews | None = None) -> QuickViews:
        """From the features of n >= 2 normal images; with covariances shrunk as in a fit of `like`."""
        for name in self.names:
            self.of(name).fit(normal, like.of(name) if like else None)
        return self

    @torch.no_grad()
    def scores(self, features: Features) -> Tensor:
        """(n, views) float32, in the order of `names`; higher is more anomalous."""
        return torch.stack([self.of(name).score(features).float() for name in self.names], 1)

    @torch.no_grad()
    def map(self, features: Features) -> Tensor:
        """Where a picture differs from what is normal there, (n, g, g) float32 >= 0; zero without *parts*."""
        if "parts" not in self.names:
            return torch.zeros(features.middle.shape[0], 1, 1)
        return cast(Parts, self.views["parts"]).map(features)

    @property
    def likeness(self) -> Likeness:
        """How alike normal images are; not known without *parts* and *whole*."""
        places = cast(Parts, self.views["parts"]).likeness if "parts" in self.names else 0.0
        whole = cast(Whole, self.views["whole"]).likeness if "whole" in self.names else 0.0
        return Likeness(places, whole)

    @torch.no_grad()
    def placed(self, features: Features) -> Tensor:
        """Where images lie along the main directions of their deep features, (n, k); without *whole*, the
        features themselves."""
        if "whole" not in self.names:
            return features.deep[-1]
        gaussian = cast(Gaussian, cast(Whole, self.views["whole"]).gaussians[-1])
        return (features.deep[-1] - gaussian.mean) @ gaussian.directions.float().T

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes a saved state, whatever the number of directions of its Gaussians and of the images that it
        keeps. Raises PadError for one that is not of these views: a model may come from a stranger."""
        for name, module in self.named_modules():
            variances = state.get(f"{name}.variances")
            if isinstance(module, Gaussian) and variances is not None and variances.dim() == 1:
                module.make_room(min(len(variances), module.most_directions))
        if "kept.pictures" in state:
            self.kept.make_room(state["kept.pictures"].shape)
        expected = self.state_dict()
        for key in sorted(expected.keys() | state.keys()):
            if key not in state or key not in expected or not _alike(state[key], expected[key]):
                name = shown(f"views.{key}")
                raise PadError(f"the model's views do not fit its recipe: tensor {name}; refused")
            if key.endswith((".variances", ".rest")) and not (state[key] > 0).all():
                raise PadError(f"the model's tensor 'views.{key}' must hold variances, above 0; refused")
        self.load_state_dict(dict(state))


def build_quick(config: Config, download: bool = True) -> QuickViews:
    """The quick views that a recipe asks for. Raises PadError if their backbone cannot be had."""
    backbone = TimmBackbone(config.view_backbone, config.view_size, config.view_backbone_weights, download)
    return QuickViews(config.quick_views, backbone)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _build(name: str, shape: Features) -> nn.Module:
    if name == "whole":
        return Whole([layer.shape[1] for layer in shape.deep])
    if name == "middle":
        return Middle(shape.middle.shape[1])
    if name == "parts":
        return Parts(shape.local.shape[1], shape.local.shape[3], shape.layers)
    raise PadError(f"setting 'views': there is no view '{name}'{did_you_mean(name, QUICK_VIEWS)}")
