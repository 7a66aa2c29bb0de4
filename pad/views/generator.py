"""The view *generator*, the paper's: how far an image lies from the nearest one that the generator can make.

    A(x) = rho(x, G(E(x)))

(arXiv:1909.05904, section 3.2); rho weighs features by how well normal images are reconstructed there
(pad/similarity/relative.py), unless the recipe says not to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pad.config import Config
from pad.devices import autocast, pick_precision, to_device
from pad.similarity.base import Similarity


class Compared(NamedTuple):
    """n images beside the nearest ones that the generator can make, float32 on the CPU."""

    scores: Tensor  # (n,), higher is more anomalous
    nearest: Tensor  # (n, channels, size, size) in [-1, 1]
    maps: Tensor  # (n, size, size) >= 0: where they differ; the mean over the pixels is the score
    latents: Tensor  # (n, d * r * r): E(x)


class GeneratorView:
    """Encoder, generator, the critics that they were trained against, and rho.

    All images are tensors (n, channels, size, size) in [-1, 1].
    """

    def __init__(
        self, config: Config, networks: nn.ModuleDict, similarity: Similarity, device: torch.device
    ) -> None:
        self.config, self.device = config, device
        self.dtype = pick_precision(config.precision, device)
        self.networks = to_device(networks, device)
        self.networks.requires_grad_(False).eval()
        self.similarity = similarity.to(device)
        self.similarity.cast(self.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """E(x), (n, d * r * r) float32 on the CPU: near N(0, I) for normal images."""
        with torch.no_grad(), self.autocast():
            return self.networks["encoder"](x.to(self.device)).float().flatten(1).cpu()

    def reconstruct(self, x: Tensor) -> Tensor:
        """The nearest normal image that the generator can make, (n, channels, size, size) in [-1, 1]."""
        return self._nearest(x.to(self.device))[1].clamp(-1, 1).cpu()

    def score(self, x: Tensor) -> Tensor:
        """A(x), (n,) float32 on the CPU."""
        reference, nearest, _ = self._nearest(x.to(self.device))
        with torch.no_grad(), self.autocast():
            return self.similarity.compare(reference, nearest).float().cpu()

    def compare(self, x: Tensor) -> Compared:
        """Scores, nearest normal images, anomaly maps and latents in one go, the same as one by one.

        Maps are smoothed over a sixteenth of the image: what matters is the region, not the sharpest pixel.
        """
        x = x.to(self.device)
        reference, nearest, latents = self._nearest(x)
        with torch.no_grad(), self.autocast():
            scores = self.similarity.compare(reference, nearest).float().cpu()
            shown = nearest.clamp(-1, 1)
            maps = self.similarity.map(x, shown).float().cpu()
        # What a map says is where; how much is said by the score.
        maps = maps * (scores / maps.mean((1, 2)).clamp_min(1e-12))[:, None, None]
        maps = smooth(maps, self.config.size / 16)
        return Compared(scores, shown.cpu(), maps, latents.flatten(1).cpu())

    def _nearest(self, x: Tensor) -> tuple[Any, Tensor, Tensor]:
        """What the similarity needs of x; G(z) for z = E(x), drawn into the prior, and refined if the recipe
        says so; and E(x)."""
        with torch.no_grad(), self.autocast():
            reference = self.similarity.prepare(x)
            latents = self.networks["encoder"](x).float()
        z = self.within_prior(latents)
        z = self._refine(reference, z) if self.config.refine_steps else z
        with torch.no_grad(), self.autocast():
            return reference, self.networks["generator"](z).float(), latents

    def explained(self, x: Tensor) -> tuple[float, float]:
        """Sums over n >= 2 normal images of rho(x, G(E(x))), and of rho(x, G(E(x'))) for another image x'.

        1 - E[rho(x, G(E(x)))] / E[rho(x, G(E(x')))] is the share of the differences between normal images
        that the generator explains: 0 if it draws the same whatever it is shown, 1 if it draws what it is
        shown."""
        reference, nearest, _ = self._nearest(x.to(self.device))
        with torch.no_grad(), self.autocast():
            own = self.similarity.compare(reference, nearest).float().sum()
            other = self.similarity.compare(reference, nearest.roll(1, 0)).float().sum()
        return float(own), float(other)

    def within_prior(self, z: Tensor) -> Tensor:
        """z, or the closest point to it in the ball that holds `prior_mass` of N(0, I).

        Of an image unlike anything normal, E(x) lies far outside, where G has never been and makes shapeless
        blots; from the edge of the ball it still makes the most similar image of the normal kind.
        """
        from scipy.special import gammaincinv

        dimensions = z[0].numel()  # |z|^2 is chi-squared with so many degrees of freedom
        radius = (2 * float(gammaincinv(dimensions / 2, self.config.prior_mass))) ** 0.5
        length = z.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        return z * (radius / length).clamp_max(1)

    def _refine(self, reference: Any, z: Tensor) -> Tensor:
        """Gradient steps on z from E(x) towards the closest generated image, argmin_z rho(x, G(z)); after
        each z is drawn into the prior again."""
        z = z.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([z], lr=self.config.refine_rate)
        for _ in range(self.config.refine_steps):
            with torch.enable_grad(), self.autocast():
                # A sum, and Adam is elementwise: each image goes its own way whatever its batch.
                distance = self.similarity.compare(reference, self.networks["generator"](z).float()).sum()
            (z.grad,) = torch.autograd.grad(distance, z)
            optimizer.step()
            with torch.no_grad():
                z.copy_(self.within_prior(z))
        return z.detach()

    def fit_residuals(self, batches: Iterable[Tensor], known: GeneratorView | None = None) -> None:
        """Sets what the score takes into account of errors on normal images (which channels count, the
        weights of the features, and the components that do not count) from batches of the images that were
        trained on; to be done before anything is calibrated. Where the recipe wants none of it, or its
        similarity has no features, it does nothing.

        known: a view of the same recipe whose components are kept: the one that was fine-tuned.
        """
        config = self.config
        wanted = config.feature_weights or config.residual_components or config.feature_channels < 1
        if not wanted:
            return
        self.similarity.choose_channels()

        def differences() -> Iterator[list[Tensor]]:
            for x in batches:
                reference, nearest, _ = self._nearest(x.to(self.device))
                with torch.no_grad(), self.autocast():
                    yield self.similarity.differences(reference, nearest)

        self.similarity.fit_residuals(differences(), known.similarity if known else None)

    def autocast(self) -> AbstractContextManager[Any]:
        """The number format in which it computes."""
        return autocast(self.device, self.dtype)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Maps (n, h, w) blurred by a Gaussian of deviation `sigma` pixels; each keeps its mean.

    Beyond the border lies zero, so that an edge that runs off the image counts less than a region inside it.
    """
    radius = math.ceil(3 * sigma)
    line = torch.exp(-torch.arange(-radius, radius + 1, dtype=maps.dtype).square() / (2 * sigma**2))
    line = line / line.sum()
    blurred = functional.conv2d(maps[:, None], line.view(1, 1, -1, 1), padding=(radius, 0))
    blurred = functional.conv2d(blurred, line.view(1, 1, 1, -1), padding=(0, radius))[:, 0]
    means = blurred.mean((1, 2), keepdim=True).clamp_min(1e-12)
    return blurred * (maps.mean((1, 2), keepdim=True) / means)
