"""Pretrained feature extractors ("backbones") and the relative perceptual L1 (arXiv:1909.05904, section 3.1).

    rho(x, y) = ||f^(x) - f^(y)||_1 / ||f^(x)||_1,    f^ = (f - mu) / sigma

f is the response of a pretrained VGG layer, mu and sigma its mean and deviation per channel over a set of
images. Dividing by the input's own feature norm makes rho robust to contrast.

As the score of a trained model, rho takes into account how the model errs on normal images, which is this
package's addition:

    rho(x, y) = ||(I - B B^T) (w * (f^(x) - f^(y)))||_1 / ||f^(x)||_1

    w_i = c / (r_i + 0.3 mean(r)),    r_i^2 = E[(f^_i(x) - f^_i(G(E(x))))^2],    c such that mean(w) = 1

Each feature i (a channel at a place) is weighted by how well it is reconstructed; and B, (features, k), holds
the first k principal components of w * (f^(x) - f^(G(E(x)))) over normal images, so that errors of the kinds
that the model makes on normal images do not count. (What principal components leave of features themselves
is the feature reconstruction error of arXiv:2203.10422.) To be quicker, only the channels of largest sigma of
the deepest layer count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pad.backbones.vgg import VGGBackbone
from pad.errors import PadError
from pad.similarity.base import Similarity

MAP_LAYERS = ("relu2_1", "relu2_2", "relu3_1")  # of anomaly maps, as far as the backbone goes
_WEIGHT_FLOOR = 0.3  # least residual of a feature, as a share of the mean over features
_COMPONENT_IMAGES = 4  # for each component: fewer say more about these images than about normal ones
_COMPONENT_NUMBERS = 1 << 25  # of residuals that components are found from, in all


class RelativePerceptualL1(Similarity):
    """rho(x, y), over one layer or several (their weighted mean).

    Args:
        backbone: the feature extractor.
        layers: {layer: weight}.
        standardize: divide by "sigma" (the paper) or by "variance" (the authors' public code).
        sigma_floor: the least sigma, as a share of the root mean square of sigma over the channels. Normal
            images of one kind leave many channels almost silent; divided by their own tiny sigma, those would
            drown the others. (Over a large set of photographs, as in the paper, no channel is silent.)
        size: side of the images; only needed for the following three, which take effect after
            `choose_channels` and `fit_residuals` and are not in the paper.
        weighted: weigh the features.
        channels: share of the deepest layer's channels that count, those of largest sigma: half of them tell
            about as much, for half of the last convolution.
        components: how many principal components of normal residuals at most do not count.

    Images are (n, 1 or 3, h, w) in [-1, 1]. Higher is more different; 0 for equal images.
    """

    keeps_features = True

    def __init__(
        self,
        backbone: VGGBackbone,
        layers: Mapping[str, float],
        standardize: str = "sigma",
        sigma_floor: float = 0.3,
        size: int | None = None,
        weighted: bool = False,
        channels: float = 1.0,
        components: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = dict(layers)
        self.power = 1 if standardize == "sigma" else 2
        seen = size and (backbone.size or size)  # side of the images that the backbone sees
        self.statistics = nn.ModuleDict()
        for name in self.layers:
            convolution = backbone.convolution(name)
            side = seen and backbone.side(name, seen)
            share = channels if name == backbone.deepest else 1.0
            self.statistics[name] = LayerStatistics(
                convolution.out_channels, sigma_floor, side, weighted, share, components
            )

    def backbone_card(self) -> dict[str, str]:
        """Which network it sees through."""
        return {"name": self.backbone.name, "fingerprint": self.backbone.fingerprint}

    def cast(self, dtype: torch.dtype) -> None:
        """Sets the number format of the frozen convolutions. The statistics stay as they are."""
        self.backbone.convolutions.to(dtype=dtype).to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> list[Tensor]:
        """f(x) of each layer, (n, c, h', w'), of the channels that count, not yet standardized."""
        features = self.backbone(x, channels=self.of(self.backbone.deepest).channels())
        return [features[name] for name in self.layers]

    def standardize(self, features: Sequence[Tensor]) -> list[Tensor]:
        """f^ = (f - mu) / sigma of each layer."""
        return [self.statistics[name](f, self.power) for name, f in zip(self.layers, features, strict=True)]

    def prepare(self, x: Tensor) -> list[Tensor]:
        """f^(x) of each layer: what `compare` needs of the first image, to compute it once."""
        return self.standardize(self.features(x))

    def differences(self, reference: Sequence[Tensor], y: Tensor) -> list[Tensor]:
        """f^(x) - f^(y) of each layer, (n, c, h', w')."""
        return [f_x - f_y for f_x, f_y in zip(reference, self.prepare(y), strict=True)]

    def residuals(self, reference: Sequence[Tensor], y: Tensor) -> list[Tensor]:
        """(I - B B^T) (w * (f^(x) - f^(y))) of each layer, (n, c, h', w')."""
        differences = zip(self.layers, self.differences(reference, y), strict=True)
        return [self.of(name).project(self.of(name).weigh(difference)) for name, difference in differences]

    def compare(self, reference: Sequence[Tensor], y: Tensor) -> Tensor:
        """rho of prepared x and of images y, (n,)."""
        total = torch.zeros(y.shape[0], device=y.device)
        for f_x, residual, share in zip(
            reference, self.residuals(reference, y), self.layers.values(), strict=True
        ):
            total = total + share * residual.abs().sum((1, 2, 3), dtype=torch.float32) / _norm(f_x)
        return total / sum(self.layers.values())

    def map(self, x: Tensor, y: Tensor) -> Tensor:
        """Where x and y differ, (n, h, w) >= 0; the mean over its pixels is the mean over the layers of
        ||f(x) - f(y)||_1 / ||f(x)||_1.

        It is finer than the score: earlier layers (MAP_LAYERS), and images at their full size.
        """
        layers = [name for name in MAP_LAYERS if name in self.backbone.convolutions] or list(self.layers)
        features_x, features_y = (self.backbone(image, layers, resize=False) for image in (x, y))
        total = torch.zeros(x.shape[0], 1, *x.shape[-2:], device=x.device)
        for name in layers:
            f_x, f_y = features_x[name], features_y[name]
            difference = (f_x - f_y).abs().sum(1, keepdim=True, dtype=torch.float32)
            density = difference * difference[0].numel() / _norm(f_x)[:, None, None, None]
            total = total + F.interpolate(density, size=x.shape[-2:], mode="bilinear")
        return total[:, 0] / len(layers)

    @torch.no_grad()
    def fit(self, batches: Iterable[Sequence[Tensor]]) -> RelativePerceptualL1:
        """Sets mu and sigma of each layer from batches of `features`. Raises PadError if there are none."""
        count = [0] * len(self.layers)
        sums = [[torch.zeros(()), torch.zeros(())] for _ in self.layers]
        for features in batches:
            for i, f in enumerate(features):
                flat = f.float().transpose(0, 1).flatten(1).cpu()
                count[i] += flat.shape[1]
                sums[i][0] = sums[i][0] + flat.sum(1, dtype=torch.float64)
                sums[i][1] = sums[i][1] + flat.square().sum(1, dtype=torch.float64)
        for name, n, (total, squares) in zip(self.layers, count, sums, strict=True):
            if not n:
                raise PadError("feature statistics: no images were given")
            mean = total / n
            self.of(name).assign(mean, (squares / n - mean.square()).clamp_min(0).sqrt())
        return self

    def take_statistics(self, other: Similarity) -> None:
        """mu and sigma of another one of the same layers."""
        assert isinstance(other, RelativePerceptualL1)
        for layer in self.layers:
            self.of(layer).mean.copy_(other.of(layer).mean)
            self.of(layer).sigma.copy_(other.of(layer).sigma)

    @torch.no_grad()
    def fit_residuals(
        self, batches: Iterable[Sequence[Tensor]], known: RelativePerceptualL1 | None = None
    ) -> RelativePerceptualL1:
        """Sets w and B of each layer from batches of `differences` between normal images and what a trained
        model makes of them, in no particular order. The components of `known` are kept: errors of those kinds
        do not count either. Raises PadError if there are no images."""
        residuals = [Residuals() for _ in self.layers]
        for differences in batches:
            for of_layer, difference in zip(residuals, differences, strict=True):
                of_layer.add(difference)
        for name, of_layer in zip(self.layers, residuals, strict=True):
            self.of(name).assign_residuals(of_layer, known.of(name) if known else None)
        return self

    def choose_channels(self) -> None:
        """From now on only those of largest sigma count, as many as were asked for; to be done before
        `fit_residuals`."""
        for name in self.layers:
            self.of(name).reset_residuals(chosen=True)

    def reset_residuals(self) -> None:
        """All channels count, all weights are 1 and there are no components: rho as it stands in the paper,
        which is what training follows."""
        for name in self.layers:
            self.of(name).reset_residuals(chosen=False)

    def statistics_state(self) -> dict[str, Tensor]:
        """mu and sigma and, once it knows of residuals, w and B of each layer, as LAYER.NAME."""
        return self.statistics.state_dict()

    def make_room(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """For the channels that count, and for as many components as a state has: fewer than the recipe asks
        for where images were few, more where the model was fine-tuned."""
        self.choose_channels()
        for layer in self.layers:
            shape = shapes.get(f"{layer}.components")
            self.of(layer).make_room(shape[0] if shape else 0)

    def load_statistics_state(self, state: Mapping[str, Tensor]) -> None:
        self.statistics.load_state_dict({key: state[key] for key in self.statistics.state_dict()})

    def freeze(self) -> None:
        for name in self.layers:
            self.of(name).freeze()

    def of(self, layer: str) -> LayerStatistics:
        """The statistics of a layer."""
        return cast(LayerStatistics, self.statistics[layer])


def _norm(f_x: Tensor) -> Tensor:
    return f_x.abs().sum((1, 2, 3), dtype=torch.float32).clamp_min(1e-6).detach()


class Residuals:
    """What is left of a layer's features on normal images: mean squares of all, and the first ones whole, as
    many as memory allows."""

    def __init__(self) -> None:
        self.count, self.squares = 0, torch.zeros(())
        self.kept: list[Tensor] = []

    def add(self, difference: Tensor) -> None:
        """A batch, (n, c, h, w)."""
        self.count += len(difference)
        self.squares = self.squares + difference.float().square().sum(0).cpu()
        room = _COMPONENT_NUMBERS // difference[0].numel() - sum(map(len, self.kept))
        self.kept.append(difference[: max(0, room)].bfloat16().cpu())

    def root_mean_square(self) -> Tensor:
        """r, (c, h, w). Raises PadError if there was no image."""
        if not self.count:
            raise PadError("feature weights: no images were given")
        return (self.squares / self.count).sqrt()

    def principal_components(self, weight: Tensor, most: int, besides: Tensor | None = None) -> Tensor:
        """The first ones of the weighted residuals, (k, c, h, w), orthonormal: `most`, or as many as the
        images can tell. They are not centred: a mean error is an error of a kind, too.

        besides: components (j, c, h, w), orthonormal, that there are already; the others are orthogonal to
            them.
        """
        images = torch.cat(self.kept)
        flat = images.float().mul_(weight.cpu()).flatten(1)
        if besides is not None:
            flat = flat - (flat @ besides.flatten(1).T) @ besides.flatten(1)
        k = min(most, len(flat) // _COMPONENT_IMAGES)
        # The eigenvectors of the smaller U U^T instead of U^T U, for U (n, features); in double precision, or
        # they may not be found where images are nearly alike.
        gram = (flat @ flat.T).double()
        if not gram.isfinite().all():
            raise PadError("residual components: the model makes numbers that are not finite")
        variances, vectors = (part.float() for part in torch.linalg.eigh(gram))
        k = min(k, int((variances > 1e-6 * variances[-1]).sum()))
        first = slice(len(flat) - k, None)
        components = flat.T @ vectors[:, first] / variances[first].sqrt()
        return components.T.unflatten(1, images.shape[1:])


class LayerStatistics(nn.Module):
    """mu and sigma of a layer, one for each of its channels; and, where wanted, of the c channels that count
    the weights w of the features, (c, side, side), and the components B that do not count, as whole numbers
    up to 127, (k, side, side, c), and the unit of each component, (k,). They travel with the model.

    The components lie in memory as the features do, with the channels last.
    """

    mean: Tensor
    sigma: Tensor
    weight: Tensor | None
    components: Tensor | None
    units: Tensor | None

    def __init__(
        self,
        channels: int,
        floor: float,
        side: int | None = None,
        weighted: bool = False,
        share: float = 1.0,
        components: int = 0,
    ) -> None:
        super().__init__()
        self.floor, self.most_components = floor, components
        self.side, self.weighted, self.counted = side or 0, weighted, max(1, round(share * channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("sigma", torch.ones(channels))
        for name in ("weight", "components", "units"):
            self.register_buffer(name, None)
        self._frozen: Tensor | None = None  # channels
        self.reset_residuals(chosen=False)

    def assign(self, mean: Tensor, sigma: Tensor) -> None:
        self.mean.copy_(mean)
        floor = self.floor * float(sigma.square().mean().sqrt())
        self.sigma.copy_(sigma.clamp_min(max(floor, 1e-6)))

    def assign_residuals(self, residuals: Residuals, known: LayerStatistics | None = None) -> None:
        """w and B from what is left of the features of normal images, besides the components that are
        `known`."""
        r = residuals.root_mean_square()
        if self.weight is not None:
            weight = 1 / (r + _WEIGHT_FLOOR * r.mean()).clamp_min(1e-6)
            self.weight.copy_(weight / weight.mean())
        if self.components is not None:
            weight = torch.ones_like(r) if self.weight is None else self.weight
            kept = None if known is None else known.reweighted_components(weight)
            found = residuals.principal_components(weight, self.most_components, kept)
            found = found if kept is None else torch.cat([kept, found])
            self._round(found.permute(0, 2, 3, 1))

    def basis(self) -> Tensor:
        """The components as they are multiplied by, (k, c, side, side), orthonormal but for the rounding."""
        assert self.components is not None
        assert self.units is not None
        return (self.components.float() * self.units[:, None, None, None]).permute(0, 3, 1, 2)

    def _round(self, components: Tensor) -> None:
        """Sets the components (k, side, side, c), in whole numbers of a 127th of the largest of each."""
        assert self.components is not None
        assert self.units is not None
        units = components.flatten(1).abs().amax(1) / 127
        rounded = (components / units[:, None, None, None]).round()
        self.units = units.to(self.units)
        self.components = rounded.contiguous().to(self.components)

    def reweighted_components(self, weight: Tensor) -> Tensor | None:
        """An orthonormal basis of what the components span, (k, c, side, side), for features of other
        weights than its own."""
        if self.components is None or not len(self.components):
            return None
        components = self.basis().cpu() * weight.cpu()
        if self.weight is not None:
            components = components / self.weight.cpu()
        basis, _ = torch.linalg.qr(components.flatten(1).T)
        return basis.T.unflatten(1, components.shape[1:])

    def make_room(self, components: int) -> None:
        """For so many components, all zero."""
        if self.components is not None:
            self.components = self.components.new_zeros(components, *self.components.shape[1:])
        if self.units is not None:
            self.units = self.units.new_zeros(components)

    def reset_residuals(self, chosen: bool) -> None:
        """Weights of 1 and no components, for the channels of largest sigma or for all."""
        self.chosen = chosen
        channels = self.counted if chosen else len(self.sigma)
        if self.side and self.weighted:
            self.weight = self.sigma.new_ones(channels, self.side, self.side)
        if self.side and self.most_components:
            self.components = self.sigma.new_zeros(0, self.side, self.side, channels, dtype=torch.int8)
            self.units = self.sigma.new_zeros(0)

    def channels(self) -> Tensor | None:
        """Those that count, in their order, (c,); None: all."""
        if not self.chosen or self.counted == len(self.sigma):
            return None
        if self._frozen is not None:
            return self._frozen
        return self.sigma.argsort(descending=True, stable=True)[: self.counted].sort().values

    def freeze(self) -> None:
        """Keeps the channels that count as they are now."""
        self._frozen = self.channels()

    def weigh(self, difference: Tensor) -> Tensor:
        """w d, for d (n, c, side, side)."""
        if self.weight is None:
            return difference
        # In the layout of features on a CPU: two layouts in one product take several times as long.
        weight = self.weight.to(difference.dtype)[None].contiguous(memory_format=torch.channels_last)
        return difference * weight

    def project(self, difference: Tensor) -> Tensor:
        """(I - B B^T) d, for d (n, c, side, side)."""
        if self.components is None or self.units is None or not len(self.components):
            return difference
        flat = difference.permute(0, 2, 3, 1).flatten(1)
        components = self.components.flatten(1).to(flat.dtype)
        lengths = (flat @ components.T) * self.units.square().to(flat.dtype)
        left = torch.addmm(flat, lengths, components, alpha=-1)
        return left.view(flat.shape[0], *self.components.shape[1:]).permute(0, 3, 1, 2)

    def forward(self, f: Tensor, power: int) -> Tensor:
        channels = self.channels()
        mean, sigma = (s if channels is None else s[channels] for s in (self.mean, self.sigma))
        scale = sigma.pow(-power)
        shift = -mean * scale
        return f * scale.to(f.dtype)[:, None, None] + shift.to(f.dtype)[:, None, None]
