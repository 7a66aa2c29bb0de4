"""The view *parts*: how far the features at each place lie from what is normal at that place.

    s(x) = (mean of the ten largest d_p²(x) over places p)^(1/2),    d_p²(x) = |L_p⁻¹ Wᵀ (f_p(x) − m_p)|²

f_p are the features at place p, m_p their mean over normal images. W whitens what remains, by one covariance
for all places, and keeps its first 64 directions; L_p L_pᵀ is the covariance at the place itself in these
coordinates, shrunk towards the one of all places (Ledoit and Wolf, 2004). A Gaussian for each place is
PaDiM's (Defard et al., arXiv:2011.08785); the common whitening makes it small, and steady with few images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pad.views.features import Features

DIRECTIONS = 64
FARTHEST = 10  # places that make the score
_SAMPLES = 50_000  # feature vectors that the common covariance is made of


class Parts(nn.Module):
    """`side` x `side` places with `features` features each."""

    mean: Tensor  # (side, side, c), half precision
    whitening: Tensor  # (c, d)
    factors: Tensor  # (side * side, d (d + 1) / 2), half precision: the lower triangles of L_p⁻¹

    def __init__(self, side: int, features: int) -> None:
        super().__init__()
        self.side, self.kept = side, min(DIRECTIONS, features)
        self.register_buffer("mean", torch.zeros(side, side, features, dtype=torch.float16))
        self.register_buffer("whitening", torch.zeros(features, self.kept))
        triangle = self.kept * (self.kept + 1) // 2
        self.register_buffer("factors", torch.zeros(side * side, triangle, dtype=torch.float16))
        self._unpacked: Tensor | None = None

    def fit(self, normal: Features) -> None:
        # A row of places at a time: all of them, of thousands of images, would take gigabytes.
        rows = range(self.side)
        self.mean = torch.stack([normal.local[:, row].float().mean(0) for row in rows]).half()
        self.whitening = _whitening(self._some_centred(normal), self.kept)
        lower, upper = torch.tril_indices(self.kept, self.kept)
        self.factors = torch.cat([self._inverse_factors(normal, row)[:, lower, upper] for row in rows]).half()
        self._unpacked = None

    def _some_centred(self, normal: Features) -> Tensor:
        """f_p − m_p of at most _SAMPLES places of images, (m, c)."""
        places = normal.local.flatten(0, 2)
        chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:_SAMPLES]
        mean = self.mean.flatten(0, 1)
        return places[chosen].float() - mean[chosen % len(mean)].float()

    def _inverse_factors(self, normal: Features, row: int) -> Tensor:
        """L_p⁻¹ of a row of places, (side, d, d)."""
        z = (normal.local[:, row].float() - self.mean[row].float()) @ self.whitening  # (n, side, d)
        factors = torch.linalg.cholesky(_shrunk_covariances(z.transpose(0, 1)))
        identity = torch.eye(self.kept, dtype=factors.dtype)
        return torch.linalg.solve_triangular(factors, identity, upper=False)

    def distances(self, features: Features) -> Tensor:
        """d_p, (n, side, side)."""
        z = (features.local.float() - self.mean.float()) @ self.whitening  # (n, side, side, d)
        z = z.flatten(1, 2).permute(1, 2, 0)  # (places, d, n)
        return (self.triangles() @ z).square().sum(1).sqrt().T.unflatten(1, (self.side, self.side))

    def score(self, features: Features) -> Tensor:
        squared = self.distances(features).square().flatten(1)
        return squared.topk(min(FARTHEST, squared.shape[1])).values.mean(1).clamp_min(1e-12).sqrt()

    def map(self, features: Features) -> Tensor:
        return self.distances(features)

    def triangles(self) -> Tensor:
        """L_p⁻¹, (places, d, d), unpacked once."""
        if self._unpacked is None or self._unpacked.device != self.factors.device:
            rows, columns = torch.tril_indices(self.kept, self.kept)
            full = self.factors.new_zeros(len(self.factors), self.kept, self.kept, dtype=torch.float32)
            full[:, rows, columns] = self.factors.float()
            self._unpacked = full
        return self._unpacked


def _whitening(x: Tensor, kept: int) -> Tensor:
    """(c, kept): the directions of largest variance of samples (m, c), each divided by its deviation."""
    from sklearn.covariance import ledoit_wolf

    covariance = torch.from_numpy(ledoit_wolf(x.double().numpy(), assume_centered=True)[0])
    variances, vectors = torch.linalg.eigh(covariance)
    largest = slice(len(variances) - kept, None)
    return (vectors[:, largest] / variances[largest].clamp_min(1e-12).sqrt()).float().contiguous()


def _shrunk_covariances(z: Tensor) -> Tensor:
    """Ledoit-Wolf covariances (places, d, d) of samples (places, n, d) with mean 0."""
    z = z.double()
    n, d = z.shape[1:]
    covariance = z.transpose(1, 2) @ z / n
    scale = covariance.diagonal(dim1=1, dim2=2).mean(1)  # mu
    spread = covariance.square().sum((1, 2)) - d * scale.square()  # |S - mu I|²
    noise = (z.square().sum(2).square().sum(1) / n - covariance.square().sum((1, 2))) / n
    shrinkage = (noise / spread.clamp_min(1e-12)).clamp(0, 1)
    target = scale.clamp_min(1e-6)[:, None, None] * torch.eye(d, dtype=z.dtype)
    return (
        (1 - shrinkage)[:, None, None] * covariance + shrinkage[:, None, None] * target + 1e-6 * torch.eye(d)
    )
