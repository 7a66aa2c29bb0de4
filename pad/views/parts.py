"""The view *parts*: how far the features at each place lie from what is normal at that place.

    s(x) = (mean of the three largest d_p²(x) over places p)^(1/2),    d_p²(x) = |L_p⁻¹ Wᵀ (f_p(x) − m_p)|²

f_p are the features at place p, m_p their mean over normal images. W whitens what remains, by one covariance
for all places; L_p L_pᵀ is the covariance at the place itself in these coordinates. A Gaussian for each place
is PaDiM's (Defard et al., arXiv:2011.08785); the common whitening makes it steady with few images, towards
whose covariance that of each place is shrunk. All directions count, those in which normal images hardly vary
most of all: that is where defects show.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pad.views.features import Features

DIRECTIONS = 160  # at most; more features than that are projected onto so many random directions
FARTHEST = 3  # places that make the score
_SAMPLES = 50_000  # feature vectors that the common covariance is made of


class Parts(nn.Module):
    """`side` x `side` places with `features` features each, of `layers` layers."""

    mean: Tensor  # (side, side, c), half precision
    whitening: Tensor  # (c, d)
    factors: Tensor  # (side * side, d (d + 1) / 2), half precision: the lower triangles of L_p⁻¹

    def __init__(self, side: int, features: int, layers: int = 2) -> None:
        super().__init__()
        self.side, self.layers, self.kept = side, layers, min(DIRECTIONS, features)
        self.register_buffer("mean", torch.zeros(side, side, features, dtype=torch.float16))
        self.register_buffer("whitening", torch.zeros(features, self.kept))
        triangle = self.kept * (self.kept + 1) // 2
        self.register_buffer("factors", torch.zeros(side * side, triangle, dtype=torch.float16))
        self._unpacked: Tensor | None = None
        self.shrinkage: float | None = None  # of the last fit

    @property
    def likeness(self) -> float:
        """How alike two normal images are at the same place: about the mean cosine of their features, in
        [0, 1]."""
        return float(self.mean.float().square().sum(-1).mean() / self.layers)

    def fit(self, normal: Features, like: Parts | None = None) -> None:
        # A row of places at a time: all of them, of thousands of images, would take gigabytes.
        rows = range(self.side)
        self._centre(normal)
        self.whitening = _whitening(self._some_centred(normal), self.kept)
        covariances, fourth = zip(*(self._moments(normal, row) for row in rows), strict=True)
        moments = torch.cat(covariances), torch.cat(fourth)
        self.shrinkage = like.shrinkage if like else None
        if self.shrinkage is None:
            self.shrinkage = _shrinkage(*moments, len(normal))
        factors = torch.linalg.cholesky(_shrunk(moments[0], self.shrinkage))
        identity = torch.eye(self.kept, dtype=factors.dtype)
        inverse = torch.linalg.solve_triangular(factors, identity, upper=False)
        lower, upper = torch.tril_indices(self.kept, self.kept)
        self.factors = inverse[:, lower, upper].half()
        self._unpacked = None

    def fit_mean(self, normal: Features, like: Parts) -> None:
        """Only m_p from n >= 1 images, which are too few for more; their covariances are taken to be those of
        another kind of images."""
        self.whitening, self.factors, self._unpacked = like.whitening, like.factors, like.triangles()
        self._centre(normal)

    def _centre(self, normal: Features) -> None:
        rows = range(self.side)
        self.mean = torch.stack([normal.local[:, row].float().mean(0) for row in rows]).half()

    def _some_centred(self, normal: Features) -> Tensor:
        """f_p − m_p of at most _SAMPLES places of images, (m, c)."""
        places = normal.local.flatten(0, 2)
        chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:_SAMPLES]
        mean = self.mean.flatten(0, 1)
        return places[chosen].float() - mean[chosen % len(mean)].float()

    def _moments(self, normal: Features, row: int) -> tuple[Tensor, Tensor]:
        """Of a row of places in whitened coordinates z: E[z zᵀ], (side, d, d), and E[|z|⁴], (side,)."""
        z = ((normal.local[:, row].float() - self.mean[row].float()) @ self.whitening).double()
        z = z.transpose(0, 1)  # (side, n, d)
        return z.transpose(1, 2) @ z / z.shape[1], z.square().sum(2).square().mean(1)

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
        """L_p⁻¹, (places, d, d), unpacked once; in a graph that is exported by the graph itself, which is
        four times smaller for it."""
        if torch.compiler.is_compiling():
            return self._unpack()
        if self._unpacked is None or self._unpacked.device != self.factors.device:
            self._unpacked = self._unpack()
        return self._unpacked

    def _unpack(self) -> Tensor:
        d = self.kept
        rows, columns = torch.tril_indices(d, d)
        place = torch.full((d, d), len(rows))  # above the diagonal, of the zero that is put last
        place[rows, columns] = torch.arange(len(rows))
        padded = torch.nn.functional.pad(self.factors, (0, 1))
        return padded.index_select(1, place.flatten().to(padded.device)).float().unflatten(1, (d, d))


def _whitening(x: Tensor, kept: int) -> Tensor:
    """(c, kept): W, by the Ledoit-Wolf covariance of samples (m, c); of more features than `kept`, of a
    random projection."""
    from sklearn.covariance import ledoit_wolf

    projection = torch.eye(x.shape[1], dtype=torch.float64)
    if kept < x.shape[1]:
        random = torch.Generator().manual_seed(0)
        projection = torch.linalg.qr(torch.randn(x.shape[1], kept, generator=random, dtype=torch.float64))[0]
    samples = x.double() @ projection
    covariance = torch.from_numpy(ledoit_wolf(samples.numpy(), assume_centered=True)[0])
    variances, vectors = torch.linalg.eigh(covariance)
    return (projection @ (vectors / variances.clamp_min(1e-12).sqrt())).float().contiguous()


def _shrinkage(covariances: Tensor, fourth: Tensor, n: int) -> float:
    """How much covariances of n samples z each, (places, d, d), are shrunk towards multiples of the identity,
    in [0, 1]; `fourth` is E[|z|⁴], (places,).

    It is one intensity for all places, or their distances could not be compared: the square of Ledoit and
    Wolf's (2004), pooled. Theirs is the best for the covariance itself, but blurs the directions of least
    variance, which distances are mostly made of.
    """
    scale = covariances.diagonal(dim1=1, dim2=2).mean(1)  # mu
    squared = covariances.square().sum((1, 2))
    spread = squared - covariances.shape[1] * scale.square()  # |S - mu I|²
    noise = (fourth - squared) / n  # its expected error
    return float((noise.sum() / spread.sum().clamp_min(1e-12)).clamp(0, 1)) ** 2


def _shrunk(covariances: Tensor, intensity: float) -> Tensor:
    """Covariances (places, d, d) and a multiple of the identity each, mixed."""
    scale = covariances.diagonal(dim1=1, dim2=2).mean(1)
    identity = torch.eye(covariances.shape[1], dtype=covariances.dtype)
    target = scale.clamp_min(1e-6)[:, None, None] * identity
    return (1 - intensity) * covariances + intensity * target + 1e-6 * identity
