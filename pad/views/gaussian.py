"""A Gaussian of few numbers: its first principal directions in full, one variance for all others.

    d²(x) = Σₖ ((x − m)·vₖ)² / λₖ + (|x − m|² − Σₖ ((x − m)·vₖ)²) / λ₀

m, vₖ and λₖ are mean, eigenvectors and eigenvalues of the Ledoit-Wolf covariance (Ledoit and Wolf, 2004),
which is well-conditioned from three samples on; λ₀ is the mean of the eigenvalues that are left out, as in
probabilistic PCA (Tipping and Bishop, 1999). 512 directions of 1,280 tell as much as all of them, in less
than half of the room. A direction takes eight samples: with more directions than that, a fit on a few samples
more finds everything farther away, and distances from a fit on a part of them no longer calibrate it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DIRECTIONS = 512
_SAMPLES_A_DIRECTION = 8  # every picture is two of them where it is varied
_FEW_DIRECTIONS = 128  # for which any number of samples will do
_LEAST_VARIANCE = 1e-9  # of features of unit length
_RANK = 1e-10  # of the largest variance: what lies below comes from rounding


class Gaussian(nn.Module):
    """A multivariate normal distribution, low rank plus isotropic.

    Args:
        features: their number c.
        directions: at most so many principal directions are kept; of few samples fewer.
    """

    mean: Tensor  # (c,)
    directions: Tensor  # (k, c), orthonormal, half precision, those of largest variance first
    variances: Tensor  # (k,)
    rest: Tensor  # (), the variance in every other direction

    def __init__(self, features: int, directions: int = DIRECTIONS) -> None:
        super().__init__()
        self.most_directions = directions
        self.shrinkage: float | None = None  # of the last fit
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("directions", torch.zeros(0, features, dtype=torch.float16))
        self.register_buffer("variances", torch.zeros(0))
        self.register_buffer("rest", torch.ones(()))

    def make_room(self, directions: int) -> None:
        """For so many directions, before a saved state is loaded."""
        self.directions = self.directions.new_zeros(directions, len(self.mean))
        self.variances = self.variances.new_zeros(directions)

    def fit(self, x: Tensor, shrinkage: float | None = None) -> Gaussian:
        """From n >= 2 samples (n, c); `shrinkage` in [0, 1], by default Ledoit and Wolf's."""
        from sklearn.covariance import ledoit_wolf_shrinkage

        self.mean = x.mean(0)
        centred = (x - self.mean).double()
        n, c = centred.shape
        if shrinkage is None:
            shrinkage = float(ledoit_wolf_shrinkage(centred.numpy(), assume_centered=True))
        self.shrinkage = shrinkage
        mean_variance = float(centred.square().sum() / (n * c))
        most = min(self.most_directions, max(_FEW_DIRECTIONS, n // _SAMPLES_A_DIRECTION), n - 1, c - 1)
        eigenvalues, vectors = _principal(centred, most)
        k = len(eigenvalues)
        left_over = (mean_variance * c - float(eigenvalues.sum())) / (c - k)

        def shrunk(variance: Tensor | float) -> Tensor | float:
            return (1 - shrinkage) * variance + shrinkage * mean_variance + _LEAST_VARIANCE

        self.directions = vectors.half().contiguous()  # as it is when loaded, so that scores are too
        self.variances = torch.as_tensor(shrunk(eigenvalues)).float()
        self.rest = torch.tensor(shrunk(max(0.0, left_over)), dtype=torch.float32)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The squared Mahalanobis distance of samples (n, c), (n,)."""
        centred = x.float() - self.mean
        along = centred @ self.directions.float().T
        beside = (centred.square().sum(1) - along.square().sum(1)).clamp_min(0)
        return (along.square() / self.variances).sum(1) + beside / self.rest


def _principal(centred: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of the covariance of samples (n, c) with mean 0, (k,), the largest first, and
    their eigenvectors, (k, c), orthonormal; by way of the smaller of the two matrices X Xᵀ and Xᵀ X.

    They are fewer than k where the samples vary in fewer directions, as they do if some are copies.
    """
    n, c = centred.shape
    small = centred.T @ centred if n >= c else centred @ centred.T
    eigenvalues, vectors = (part.flip(-1) for part in torch.linalg.eigh(small / n))
    k = min(k, int((eigenvalues > _RANK * eigenvalues[0]).sum()))
    eigenvalues, vectors = eigenvalues[:k], vectors[:, :k]
    if n < c:
        vectors = (centred.T @ vectors) / (n * eigenvalues).sqrt()
    return eigenvalues, vectors.T
