"""A detector as a scikit-learn outlier estimator: for pipelines, cross-validation and searches of settings.

    PadDetector(steps=0).fit(normal_images).predict(new_images)  # 1 for normal images, -1 for anomalies

scikit-learn counts the other way round: here higher is more normal, since its estimators say so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from pad.api import fit, load
from pad.config import FPR
from pad.detector import Detector
from pad.learning.images import MINIMUM_IMAGES


class PadDetector(OutlierMixin, BaseEstimator):
    """An outlier estimator over images.

    `X` is whatever `pad.fit` and `Detector.score` take: a list of paths or of PIL images, a folder, an array
    of images, uint8 (n, H, W[, C]). With an `image_shape` it is an array (n, H * W [* C]) of images that are
    flattened into rows, as in scikit-learn's own data sets.

    Args:
        fpr: the share of new normal images that `predict` may take for outliers.
        confidence: the probability with which this very model holds that; None: it holds on average.
        steps: of training a generator; 0: the quick views alone, in seconds; None: as the recipe says.
        tolerate: what new normal images may differ by, such as "brightness=0.2,flip"; None: as the recipe.
        seed: of all random numbers.
        config: a recipe's name or file; None: the recipe that looks at the images.
        settings: further settings of the recipe by their names (pad/config.py).
        device: auto, cpu, cuda or mps.
        image_shape: (H, W) or (H, W, C) of the rows of X, one of which may be -1; None: X holds images.
        value_range: the numbers that mean black and white, where X is an array of floats: (0, 1), say. They
            are rounded to 256 steps. None: floats are taken as `Detector.score` takes them.

    Attributes:
        detector_: the `pad.Detector`, with all that it can say besides.
        offset_: `decision_function` is `score_samples` minus this; minus infinity where the images that
            calibrate are too few for `fpr`, so that nothing can be flagged.
        n_features_in_: of the rows, where there is an `image_shape`.
    """

    def __init__(
        self,
        *,
        fpr: float = FPR,
        confidence: float | None = None,
        steps: int | None = None,
        tolerate: str | Mapping[str, float] | None = None,
        seed: int = 0,
        config: str | None = None,
        settings: Mapping[str, Any] | None = None,
        device: str = "auto",
        image_shape: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.fpr = fpr
        self.confidence = confidence
        self.steps = steps
        self.tolerate = tolerate
        self.seed = seed
        self.config = config
        self.settings = settings
        self.device = device
        self.image_shape = image_shape
        self.value_range = value_range

    def fit(self, X: Any, y: Any = None) -> PadDetector:
        """Trains and calibrates a detector on normal images. y: labels of them; those at -1 are outliers, and
        are left out. Raises PadError as `pad.fit` does, and ValueError for an X or a y that does not fit."""
        images = self._images(X, reset=True)
        if y is not None:
            images = _without_outliers(images, np.asarray(y))
        self.detector_ = fit(images, self.config, self.device, **self._settings())
        threshold = self.detector_.calibrated().threshold(self.fpr, self.confidence)
        self.offset_ = -threshold
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """(n,); higher is more normal: the anomaly scores with their sign turned."""
        check_is_fitted(self)
        return -self.detector_.score(self._images(X)).astype(np.float64)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """(n,); below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """(n,): 1 for normal images, -1 for outliers. Of new normal images at most the share `fpr` is
        flagged; those that were fitted on score lower, and say nothing about that. Warns as
        `Detector.predict`."""
        check_is_fitted(self)
        flagged = self.detector_.predict(self._images(X), self.fpr, self.confidence)
        return np.where(flagged, -1, 1)

    def _settings(self) -> dict[str, Any]:
        named = {"steps": self.steps, "tolerate": self.tolerate}
        given = {name: value for name, value in named.items() if value is not None}
        return {"seed": self.seed, **given, **(self.settings or {})}

    # Images

    def _images(self, X: Any, reset: bool = False) -> Any:
        if self.image_shape is not None:
            least = MINIMUM_IMAGES if reset else 1
            X = validate_data(self, X, reset=reset, dtype="numeric", ensure_min_samples=least)
            channels = () if len(self.image_shape) == 3 else (1,)
            X = X.reshape(len(X), *self.image_shape, *channels)
            if X.dtype != np.uint8 and self.value_range is None:
                raise ValueError(
                    "rows that are not uint8 want a value_range: the numbers for black and white"
                )
        elif hasattr(X, "to_numpy"):  # a column of a DataFrame: of paths, say
            X = X.to_numpy()
        if isinstance(X, np.ndarray) and X.dtype.kind in "OU":
            if X.size != len(X):
                raise ValueError(f"X holds {X.shape[1]} columns; give the one of the images")
            return list(X.ravel())
        if self.value_range is None or not isinstance(X, np.ndarray):
            return X
        return self._in_range(X)

    def _in_range(self, X: NDArray[Any]) -> NDArray[np.uint8]:
        assert self.value_range is not None
        black, white = self.value_range
        share = (X.astype(np.float64) - black) / (white - black)
        if share.size and not (share.min() >= 0 and share.max() <= 1):
            raise ValueError(f"X holds values from {X.min():g} to {X.max():g}, outside of {self.value_range}")
        return (share * 255).round().astype(np.uint8)

    # scikit-learn

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        flat = self.image_shape is not None
        tags.input_tags.two_d_array = flat
        tags.input_tags.three_d_array = not flat
        tags.input_tags.string = not flat
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """A detector is pickled as the files of its model folder: without its backbones, in plain tensors."""
        state = dict(super().__getstate__())
        if isinstance(detector := state.get("detector_"), Detector):
            with tempfile.TemporaryDirectory() as folder:
                detector.save(folder)
                state["detector_"] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(files := vars(self).get("detector_"), dict):
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    (Path(folder) / Path(name).name).write_bytes(content)
                settings = self._settings()
                weights, view_weights = (
                    settings.get(key) for key in ("backbone_weights", "view_backbone_weights")
                )
                self.detector_ = load(folder, self.device, weights, view_backbone_weights=view_weights)


def _without_outliers(images: Any, labels: NDArray[Any]) -> Any:
    """Raises ValueError if there is not one label for each image."""
    if not hasattr(images, "__len__") or isinstance(images, str):
        raise ValueError("y goes with a list or an array of images, one label for each")
    if labels.shape != (len(images),):
        raise ValueError(f"y must hold a label for each of the {len(images)} images, not {labels.shape}")
    kept = labels != -1
    if isinstance(images, np.ndarray):
        return images[kept]
    return [image for image, normal in zip(images, kept, strict=True) if normal]
