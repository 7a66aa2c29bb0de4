"""`pad.sklearn.PadDetector`: scikit-learn's own checks, and images as they come."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import pad
from pad.sklearn import PadDetector

QUICK = {"steps": 0, "device": "cpu", "tolerate": "none", "settings": {"view_size": 32}}

# Its checks are of rows of numbers: each becomes an image one pixel high. Those of outlier detectors want
# some of the rows that were fitted on to be flagged, which a rate of a twentieth does not do.
FLAT = PadDetector(
    fpr=0.25,
    steps=0,
    settings={"views": ["whole"], "view_size": 32, "fit": "stretch", "size": 16, "input_size": 32},
    device="cpu",
    image_shape=(1, -1),
    value_range=(-15, 110),
)


@pytest.fixture(scope="module")
def paths(boots: Path) -> list[str]:
    return [str(path) for path in sorted(boots.glob("*.png"))[:40]]


@pytest.fixture(scope="module")
def bags(fashion: Path) -> list[str]:
    return [str(path) for path in sorted((fashion / "test" / "bag").glob("*.png"))]


@pytest.fixture(scope="module")
def fitted(paths: list[str]) -> PadDetector:
    return PadDetector(**QUICK).fit(paths)


def test_scikit_learns_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pad.PadWarning)
        warnings.simplefilter("ignore", UserWarning)
        results = check_estimator(FLAT, on_fail=None, on_skip=None)
        others = check_estimator(PadDetector(), on_fail=None, on_skip=None)
    not_passed = {r["check_name"]: r["exception"] for r in results + others if r["status"] != "passed"}
    # It wants an environment variable of SciPy's; arrays of other libraries are not taken.
    assert set(not_passed) == {"check_array_api_input"}, not_passed
    assert len(results) > 40


def test_it_says_what_the_detector_says(fitted: PadDetector, paths: list[str], bags: list[str]) -> None:
    detector = fitted.detector_
    scores = detector.score(bags)
    np.testing.assert_array_equal(fitted.score_samples(bags), -scores.astype(np.float64))
    flagged = detector.predict(bags)
    assert flagged.sum() > len(bags) / 2
    np.testing.assert_array_equal(fitted.predict(bags), np.where(flagged, -1, 1))
    np.testing.assert_array_equal(fitted.decision_function(bags) < 0, flagged)
    direct = pad.fit(paths, steps=0, device="cpu", tolerate="none", view_size=32)
    np.testing.assert_array_equal(direct.score(bags), scores)


def test_arrays_paths_and_columns_are_the_same(fitted: PadDetector, bags: list[str]) -> None:
    scores = fitted.score_samples(bags)
    arrays = np.stack([np.asarray(Image.open(path)) for path in bags])
    others = (
        arrays,
        np.array(bags),
        np.array(bags, dtype=object),
        pandas.Series(bags),
        [Path(p) for p in bags],
    )
    for images in others:
        np.testing.assert_array_equal(fitted.score_samples(images), scores)
    table = pandas.DataFrame({"image": bags, "day": ["Monday"] * len(bags)})
    np.testing.assert_array_equal(fitted.score_samples(table[["image"]]), scores)
    with pytest.raises(ValueError, match="2 columns"):
        fitted.predict(table)
    unit = PadDetector(**QUICK, value_range=(0, 1))
    unit.__dict__ |= {"detector_": fitted.detector_, "offset_": fitted.offset_}
    np.testing.assert_array_equal(unit.score_samples(arrays / 255), scores)
    with pytest.raises(ValueError, match=r"outside of \(0, 1\)"):
        unit.score_samples(arrays.astype(float))


def test_rows_of_flattened_images(paths: list[str]) -> None:
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    flat = PadDetector(**QUICK, image_shape=(28, 28)).fit(arrays.reshape(len(arrays), -1))
    whole = PadDetector(**QUICK).fit(arrays)
    np.testing.assert_array_equal(
        flat.score_samples(arrays.reshape(len(arrays), -1)), whole.score_samples(arrays)
    )
    with pytest.raises(ValueError, match="784 features"):
        flat.predict(np.zeros((2, 99), np.uint8))
    with pytest.raises(ValueError, match="value_range"):
        flat.predict(np.zeros((2, 784)))


def test_outliers_among_the_labels_are_not_fitted_on(paths: list[str], bags: list[str]) -> None:
    labels = [1] * len(paths) + [-1] * len(bags)
    mixed = PadDetector(**QUICK).fit(paths + bags, labels)
    clean = PadDetector(**QUICK).fit(paths)
    np.testing.assert_array_equal(mixed.score_samples(bags), clean.score_samples(bags))
    with pytest.raises(ValueError, match="a label for each of the 40 images"):
        PadDetector(**QUICK).fit(paths, [1, 1])


def test_pickled_without_its_backbone(fitted: PadDetector, bags: list[str]) -> None:
    content = pickle.dumps(fitted)
    assert len(content) < 8e6  # the backbone alone is 23 MB
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.score_samples(bags), fitted.score_samples(bags))
    np.testing.assert_array_equal(again.predict(bags), fitted.predict(bags))
    assert clone(fitted).get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "detector_")


def test_in_a_pipeline_cross_validated_and_searched(paths: list[str], bags: list[str]) -> None:
    images, labels = np.array(paths + bags), np.array([1] * len(paths) + [-1] * len(bags))
    opened = FunctionTransformer(lambda names: [Image.open(name) for name in names])
    pipeline = make_pipeline(opened, PadDetector(**QUICK))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pad.PadWarning)
        scores = cross_val_score(pipeline, images, labels, scoring=ranked, cv=StratifiedKFold(3))
        assert scores.shape == (3,)
        assert scores.min() > 0.8
        search = GridSearchCV(
            PadDetector(**QUICK),
            {"settings": [{"view_size": 32}, {"view_size": 64}]},
            scoring=ranked,
            cv=StratifiedKFold(2),
        )
        search.fit(images, labels)
    assert search.best_score_ > 0.8


def ranked(estimator: PadDetector, images: list[str], labels: np.ndarray) -> float:
    """ROC AUC. By `score_samples`: where too few images calibrate, `decision_function` is infinite."""
    from sklearn.metrics import roc_auc_score

    return roc_auc_score(labels, estimator.score_samples(images))
