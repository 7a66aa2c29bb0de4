"""Detectors that need no training to speak of: what `pad` has to beat. All are scikit-learn's.

Each takes the training images and the images to score as an array (n, values) and returns scores (m,),
higher for more anomalous. Pixels are in [0, 1]; settings are scikit-learn's defaults unless named here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Scores = NDArray[np.float64]

SVM_IMAGES = 6000  # at most so many to fit the one-class SVM on: its time grows with their square
HSV_BINS = (8, 4, 4)  # of hue, saturation and value


def knn(train: Array, test: Array, seed: int) -> Scores:
    """Mean Euclidean distance to the five nearest training images."""
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=min(5, len(train)), algorithm="brute").fit(train)
    return neighbours.kneighbors(test)[0].mean(axis=1).astype(np.float64)


def isolation_forest(train: Array, test: Array, seed: int) -> Scores:
    """Isolation forest of 200 trees (Liu, Ting and Zhou, 2008)."""
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(n_estimators=200, random_state=seed).fit(train).score_samples(test)


def pca(train: Array, test: Array, seed: int) -> Scores:
    """Squared error of the reconstruction from 32 principal components."""
    from sklearn.decomposition import PCA

    model = PCA(min(32, *train.shape), random_state=seed).fit(train)
    return np.square(model.inverse_transform(model.transform(test)) - test).sum(axis=1, dtype=np.float64)


def one_class_svm(train: Array, test: Array, seed: int) -> Scores:
    """One-class SVM (RBF kernel) on 64 principal components (Schölkopf et al., 2001)."""
    from sklearn.decomposition import PCA
    from sklearn.svm import OneClassSVM

    chosen = np.random.default_rng(seed).permutation(len(train))[:SVM_IMAGES]
    model = PCA(min(64, *train.shape), random_state=seed).fit(train)
    svm = OneClassSVM().fit(model.transform(train[chosen]))
    return -svm.score_samples(model.transform(test))


def mahalanobis(train: Array, test: Array, seed: int) -> Scores:
    """Squared Mahalanobis distance; with few images the covariance is shrunk (Ledoit and Wolf, 2004)."""
    from sklearn.covariance import EmpiricalCovariance, LedoitWolf

    model = EmpiricalCovariance() if len(train) > 2 * train.shape[1] else LedoitWolf()
    return model.fit(train).mahalanobis(test)


def feature_pca(train: Array, test: Array, seed: int) -> Scores:
    """Norm of what 128 principal components leave of deep features (arXiv:2203.10422)."""
    from sklearn.decomposition import PCA

    model = PCA(min(128, *train.shape), svd_solver="randomized", random_state=seed).fit(train)
    parts = np.array_split(test, max(1, len(test) // 1000))
    left = [model.inverse_transform(model.transform(part)) - part for part in parts]
    return np.concatenate([np.linalg.norm(part, axis=1) for part in left]).astype(np.float64)


PIXELS: dict[str, Callable[[Array, Array, int], Scores]] = {
    "knn": knn,
    "isolation-forest": isolation_forest,
    "pca": pca,
    "one-class-svm": one_class_svm,
}
POOLED: dict[str, Callable[[Array, Array, int], Scores]] = {"mahalanobis": mahalanobis}
FEATURES: dict[str, Callable[[Array, Array, int], Scores]] = {"feature-pca": feature_pca}
COLOURS: dict[str, Callable[[Array, Array, int], Scores]] = {"hsv-isolation-forest": isolation_forest}
BASELINES = {**PIXELS, **POOLED, **FEATURES, **COLOURS}
TITLES = {
    "knn": "kNN on pixels, k = 5",
    "isolation-forest": "isolation forest on pixels",
    "pca": "PCA-32 reconstruction",
    "one-class-svm": "one-class SVM on PCA-64",
    "mahalanobis": "Mahalanobis on relu3_3",
    "feature-pca": "PCA-128 of relu3_1",
    "hsv-isolation-forest": "isolation forest on HSV histograms",
}


def pooled_features(images: NDArray[np.float32], backbone: str = "vgg16-st") -> Array:
    """Responses at relu3_3, averaged over a 2x2 grid: images (n, c, h, w) in [-1, 1] -> (n, 1024)."""
    import torch
    from torch.nn import functional as F

    from pad.backbones.vgg import VGGBackbone

    network = VGGBackbone(backbone, ["relu3_3"])
    parts = []
    with torch.no_grad():
        for batch in torch.from_numpy(images).split(64):
            parts.append(F.adaptive_avg_pool2d(network(batch)["relu3_3"], 2).flatten(1))
    return torch.cat(parts).numpy()


def default_features(images: NDArray[np.float32]) -> Array:
    """The features that `pad` compares by default, f of all places: images (n, c, s, s) in [-1, 1] ->
    (n, values)."""
    import torch

    from pad.config import Config
    from pad.similarity.build import build_similarity
    from pad.similarity.relative import RelativePerceptualL1

    similarity = build_similarity(Config(size=images.shape[-1], channels=images.shape[1]))
    assert isinstance(similarity, RelativePerceptualL1)
    with torch.no_grad():
        parts = [similarity.features(batch)[0].flatten(1) for batch in torch.from_numpy(images).split(64)]
    return torch.cat(parts).numpy()


def hsv_histograms(images: NDArray[np.float32]) -> Array:
    """Shares of pixels in 8x4x4 bins of hue, saturation, value: (n, 3, h, w) in [-1, 1] -> (n, 128)."""
    from matplotlib.colors import rgb_to_hsv

    hsv = rgb_to_hsv(np.moveaxis((images + 1) / 2, 1, 3).clip(0, 1))
    bins = np.minimum((hsv * HSV_BINS).astype(int), np.array(HSV_BINS) - 1)
    index = np.ravel_multi_index(tuple(np.moveaxis(bins, 3, 0)), HSV_BINS).reshape(len(images), -1)
    counts = np.stack([np.bincount(row, minlength=int(np.prod(HSV_BINS))) for row in index])
    return (counts / index.shape[1]).astype(np.float32)
