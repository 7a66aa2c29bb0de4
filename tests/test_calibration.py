"""The conformal calibration against independent computation, and its statistical promise."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binom

from pad.errors import PadError
from pad.judging.calibration import Calibration, calibration_split, false_discovery


def test_p_values_are_the_formula():
    rng = np.random.default_rng(0)
    calibration = Calibration(rng.integers(0, 20, 37) / 8)  # exact in float32, with ties
    scores = np.concatenate([rng.integers(-3, 25, 50) / 8, [np.inf, -np.inf]])
    wanted = [(1 + sum(c >= s for c in calibration.scores)) / 38 for s in scores]
    np.testing.assert_array_equal(calibration.p_values(scores), wanted)
    assert calibration.p_values(scores.reshape(2, 26)).shape == (2, 26)


@pytest.mark.parametrize("n", [1, 2, 9, 19, 20, 99, 100, 999])
def test_threshold_gives_the_verdicts_of_the_p_values(n: int):
    rng = np.random.default_rng(n)
    calibration = Calibration(np.round(rng.gamma(3, 1, n), 1))  # ties
    near = np.float32(calibration.scores)
    scores = np.concatenate(
        [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf)),
         rng.gamma(3, 1, 200).astype(np.float32)]
    )  # fmt: skip
    written = np.array([float(f"{s:.9g}") for s in scores])
    for fpr in (0.001, 0.01, 0.05, 0.1, 0.2, 1 / 3, 0.5, 0.9, 0.999, 1 / (n + 1), 2 / (n + 1)):
        if not 0 < fpr < 1:
            continue
        flagged = calibration.verdicts(scores, fpr)
        np.testing.assert_array_equal(flagged, calibration.p_values(scores) <= fpr)
        threshold = calibration.threshold(fpr)
        for same in (scores, scores.astype(np.float64), written):
            np.testing.assert_array_equal(same >= threshold, flagged)


def test_too_few_images_for_the_rate():
    calibration = Calibration(np.arange(9.0))
    assert calibration.smallest_rate == 0.1
    assert calibration.threshold(0.05) == math.inf
    assert not calibration.verdicts([100.0, np.inf], 0.05).any()
    note = calibration.note(0.05)
    assert note is not None
    assert "9 calibration images cannot hold a false-alarm rate of 5 %" in note
    assert "the lowest they can hold is 10 % (--fpr 0.1)" in note
    assert "at least 19 normal images" in note
    assert calibration.note(0.1) is None
    assert Calibration(np.arange(19.0)).note(0.05) is None


@pytest.mark.parametrize("n", range(1, 60, 7))
def test_the_rate_that_the_note_offers_can_be_held(n: int):
    calibration = Calibration(np.arange(n))
    note = calibration.note(0.001)
    assert note is not None
    offered = float(note.split("--fpr ")[1].split(")")[0])
    assert calibration.note(offered) is None
    assert calibration.verdicts([1e9], offered).all()


def test_what_is_known_of_an_image_in_each_view_stays_together():
    random = np.random.default_rng(0)
    columns = random.normal(size=(40, 3)).astype(np.float32).round(1)  # with ties
    fused = columns.sum(1)
    calibration = Calibration.of_views(fused, ("a", "b", "c"), columns, {"kept": 1})
    assert calibration.extra["kept"] == 1
    assert calibration.extra["views"]["b"] == sorted(calibration.extra["views"]["b"])
    read = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    rows = read.rows(("a", "b", "c"))
    np.testing.assert_array_equal(rows.sum(1), read.scores)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, columns.tolist()))
    np.testing.assert_array_equal(read.rows(("c",)), rows[:, 2:])
    del read.extra["view_ranks"]["b"]  # as in a calibration that an older version made
    assert read.rows(("a", "b")) is None
    assert read.rows(("d",)) is None


def test_not_a_number_has_no_verdict():
    calibration = Calibration(np.arange(99.0))
    p = calibration.p_values([np.nan, 50.0])
    assert np.isnan(p[0])
    assert p[1] == 0.5
    assert calibration.verdicts([np.nan, 500.0], 0.05).tolist() == [False, True]
    for bad in ([], [1.0, np.nan], [np.inf], [[1.0, 2.0]]):
        with pytest.raises(PadError):
            Calibration(np.array(bad))


def test_dict_round_trip_is_exact():
    scores = np.random.default_rng(0).gamma(2, 0.3, 500).astype(np.float32)
    calibration = Calibration(scores, {"map_scale": {"low": 0.1, "high": 2.0}})
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    np.testing.assert_array_equal(again.scores, np.sort(scores.astype(np.float64)))
    assert again.extra == calibration.extra


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([1.0], "must hold 'scores'"),
        ({}, "must hold 'scores'"),
        ({"scores": "1, 2"}, "must hold 'scores'"),
        ({"scores": []}, "empty"),
        ({"scores": [1.0, "2"]}, "'2'"),
        ({"scores": [1.0, None]}, "None"),
        ({"scores": [1.0, True]}, "True"),
        ({"scores": [1.0, float("nan")]}, "nan"),
        ({"scores": [1.0, float("inf")]}, "inf"),
        ({"scores": [1.0, 10**400]}, "not a finite number"),
        ({"scores": [2.0, 1.0]}, "not sorted"),
        ({"scores": [1.0], "extra": []}, "'extra'"),
    ],
)
def test_a_damaged_file_is_refused_by_name(data: object, says: str):
    with pytest.raises(PadError, match=r"^m/calibration\.json: ") as error:
        Calibration.from_dict(data, where="m/calibration.json")
    assert says in str(error.value)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_rates_outside_their_range_are_refused(rate: float):
    with pytest.raises(PadError, match="--fpr takes a rate"):
        Calibration(np.arange(5.0)).verdicts([1.0], rate)
    with pytest.raises(PadError, match="--fdr takes a rate"):
        false_discovery([0.1], rate)


def false_alarm_rates(fpr: float, leak: float = 0.0, splits: int = 1000) -> np.ndarray:
    """False-alarm rates over random splits of exchangeable scores into 100 for calibration and 200 new
    ones; `leak` is how much lower the scores of calibration images are, as if they were trained on."""
    rng = np.random.default_rng(7)
    pool = rng.lognormal(0, 0.4, 3000)
    rates = []
    for _ in range(splits):
        drawn = rng.permutation(pool)[:300]
        rates.append(Calibration(drawn[:100] * (1 - leak)).verdicts(drawn[100:], fpr).mean())
    return np.array(rates)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1, 0.2])
def test_the_promise_holds_in_finite_samples(fpr: float):
    rates = false_alarm_rates(fpr)
    error = rates.std(ddof=1) / len(rates) ** 0.5
    exact = math.floor(fpr * 101 + 1e-9) / 101  # what the method flags of continuous scores
    assert rates.mean() <= fpr + 3 * error
    assert abs(rates.mean() - exact) <= 4 * error


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1, 0.2])
def test_calibrating_on_training_images_breaks_the_promise(fpr: float):
    """The test above would catch it: scores that are lower for images trained on fail it."""
    rates = false_alarm_rates(fpr, leak=0.15, splits=300)
    assert rates.mean() > fpr + 3 * rates.std(ddof=1) / len(rates) ** 0.5


def test_a_rate_is_held_by_this_model_with_the_confidence_asked_for():
    """The true rate of each of many calibrated models is known: scores are uniform, so it is 1 - threshold.
    With confidence C it exceeds `fpr` in at most 1 - C of them, without in far more."""
    rng = np.random.default_rng(11)
    for n, fpr in ((50, 0.1), (100, 0.05), (400, 0.05)):
        models = [Calibration(rng.random(n)) for _ in range(1000)]
        for confidence in (0.8, 0.95):
            over = np.mean([1 - m.threshold(fpr, confidence) > fpr for m in models])
            assert over <= 1 - confidence + 3 * ((1 - confidence) * confidence / 1000) ** 0.5
        assert np.mean([1 - m.threshold(fpr) > fpr for m in models]) > 0.3
        bounds = [1 - m.threshold(fpr) <= m.worst_rate(fpr, 0.9) for m in models]
        assert np.mean(bounds) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("n", [9, 58, 59, 60, 93, 200, 1200])
@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_confident_threshold_against_the_binomial(n: int, fpr: float, confidence: float):
    """Above the k-th largest of n scores lies a share of at most `fpr` unless fewer than k of n scores are
    among the highest `fpr` of the distribution: a binomial number."""
    calibration = Calibration(np.random.default_rng(n).permutation(np.arange(float(n))))
    probable = [k for k in range(1, n + 1) if binom.sf(k - 1, n, fpr) >= confidence]
    allowed = min(max(probable, default=0), math.floor(fpr * (n + 1) + 1e-9))
    threshold = calibration.threshold(fpr, confidence)
    assert (calibration.scores >= threshold).sum() == max(0, allowed - 1)
    new = np.concatenate([calibration.scores, [n + 1.0]])
    np.testing.assert_array_equal(calibration.verdicts(new, fpr, confidence), new >= threshold)
    assert threshold >= calibration.threshold(fpr)
    note = calibration.note(fpr, confidence)
    assert (note is None) == bool(allowed)
    if note is not None:
        needed = int(note.split("at least ")[1].split()[0])
        assert Calibration(np.arange(needed)).note(fpr, confidence) is None
        assert Calibration(np.arange(needed - 1)).note(fpr, confidence) is not None
        offered = float(note.split("--fpr ")[1].split(")")[0])
        assert calibration.note(offered, confidence) is None


def test_little_confidence_still_holds_the_rate_on_average():
    calibration = Calibration(np.arange(98.0))
    for confidence in (0.01, 0.3, 0.5):
        assert calibration.threshold(0.05, confidence) >= calibration.threshold(0.05)
    with pytest.raises(PadError, match="--confidence takes a rate"):
        calibration.verdicts([1.0], 0.05, 1.0)


def test_how_probable_so_many_false_alarms_are():
    """Against drawing calibration and test images again and again."""
    rng = np.random.default_rng(2)
    counts = np.array([Calibration(rng.random(60)).verdicts(rng.random(40), 0.1).sum() for _ in range(4000)])
    calibration = Calibration(rng.random(60))
    for flagged in (0, 3, 6, 10):
        assert calibration.chance_of(flagged, 40, 0.1) == pytest.approx(np.mean(counts >= flagged), abs=0.03)
    assert calibration.chance_of(0, 40, 0.01) == 1.0  # 60 images can flag nothing at 1 %
    assert calibration.chance_of(1, 40, 0.01) == 0.0


def test_benjamini_hochberg_flags_what_equals_its_bound():
    # 0.1 * 3 / 3 is not 0.3 * 3 / 3 in floating point; every j / (n + 1) that equals fdr * k / m counts.
    assert false_discovery([0.1, 0.1, 0.1], 0.3).all()
    assert not false_discovery([0.1000001] * 3, 0.1).any()
    for images in (3, 7, 10, 30, 70):
        for flagged in range(1, images + 1):
            for hundredths in (5, 10, 20, 30):
                # p of the first `flagged` images: exactly fdr * flagged / images, as a fraction rounded once.
                p = [hundredths * flagged / (100 * images)] * flagged + [1.0] * (images - flagged)
                fdr = hundredths / 100
                assert false_discovery(p, fdr)[:flagged].all(), (images, flagged, fdr)
                above = [q * (1 + 1e-9) for q in p[:flagged]] + p[flagged:]
                assert not false_discovery(above, fdr)[:flagged].any()


def test_benjamini_hochberg_by_hand():
    # Benjamini and Hochberg (1995), section 3.2: their example rejects the four smallest at 0.05.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719,
         0.6528, 0.7590, 1.000]  # fmt: skip
    assert false_discovery(p, 0.05).tolist() == [True] * 4 + [False] * 11
    shuffled = np.random.default_rng(0).permutation(15)
    np.testing.assert_array_equal(false_discovery(np.array(p)[shuffled], 0.05), shuffled < 4)
    # Step-up: 0.04 alone misses 0.05 * 1/2, but the larger one passes and takes it along.
    assert false_discovery([0.04, 0.05], 0.05).tolist() == [True, True]
    assert false_discovery([np.nan, 0.001, np.nan], 0.05).tolist() == [False, True, False]
    assert false_discovery([], 0.05).tolist() == []


def test_false_discoveries_are_bounded():
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(300):
        calibration = Calibration(rng.normal(size=500))
        scores = np.concatenate([rng.normal(size=180), rng.normal(4, 1, 20)])
        flagged = false_discovery(calibration.p_values(scores), 0.2)
        shares.append(flagged[:180].sum() / max(1, flagged.sum()))
    assert 0.1 < np.mean(shares) <= 0.2 + 3 * np.std(shares) / 300**0.5


def pictures(n: int, start: int = 0) -> np.ndarray:
    """Hashes of n pictures; the first `start` of them are those of a call with n = `start`."""
    random = [np.random.default_rng(seed).integers(0, 2**48, size, dtype=np.uint64)
              for seed, size in ((8, min(n, start or n)), (9, n - min(n, start or n)))]  # fmt: skip
    return np.concatenate(random)


@pytest.mark.parametrize(
    ("n", "kept"), [(2, 1), (8, 4), (60, 30), (100, 50), (250, 50), (300, 60), (6000, 1200)]
)
def test_split_sizes(n: int, kept: int):
    train, calibration = calibration_split(pictures(n), seed=1)
    assert len(calibration) == kept
    np.testing.assert_array_equal(np.sort(np.concatenate([train, calibration])), np.arange(n))


def test_split_follows_the_seed():
    first, second = (calibration_split(pictures(500), seed=seed)[1] for seed in (0, 1))
    np.testing.assert_array_equal(first, calibration_split(pictures(500), seed=0)[1])
    assert 5 <= len(np.intersect1d(first, second)) <= binom.ppf(0.9999, 100, 0.2)
    with pytest.raises(PadError):
        calibration_split(pictures(1))
    with pytest.raises(PadError, match="calibration_fraction"):
        calibration_split(pictures(100), 1.0)


def test_split_goes_by_content_and_not_by_place():
    hashes = pictures(300)
    kept = set(hashes[calibration_split(hashes)[1]])
    order = np.random.default_rng(1).permutation(300)
    assert set(hashes[order][calibration_split(hashes[order])[1]]) == kept
    # In a list that has grown the first of the order are still the first: only what is pushed out leaves.
    grown = np.concatenate([pictures(360, start=300)[300:], hashes])
    now = set(grown[calibration_split(grown)[1]])
    assert len(now) == 72
    assert len(now & kept) >= 0.9 * len(kept)


@pytest.mark.parametrize("copies", [2, 3, 10])
def test_copies_of_a_picture_are_on_one_side(copies: int):
    hashes = np.random.default_rng(0).permutation(np.repeat(pictures(100), copies))
    training, calibration = calibration_split(hashes)
    assert not set(hashes[training]) & set(hashes[calibration])
    wanted = max(50, round(0.2 * len(hashes)))
    assert wanted <= len(calibration) < wanted + copies
    # One picture that fills most of the list cannot be kept back.
    training, calibration = calibration_split(np.append(np.repeat(hashes[0], 9), pictures(12)[9:]))
    assert len(calibration) == 3
    training, calibration = calibration_split(np.array([1, 1, 1, 2, 2], np.uint64))
    assert calibration.tolist() == [3, 4]
    with pytest.raises(PadError, match="copies of one picture"):
        calibration_split(np.full(20, 7, np.uint64))


def test_nothing_that_was_trained_on_is_kept():
    """Grown, reordered and mixed lists, over a chain of three models."""
    trained = np.empty(0, np.uint64)
    for step, n in enumerate((300, 360, 420)):
        hashes = np.random.default_rng(step).permutation(pictures(n, start=300))
        training, calibration = calibration_split(hashes, seed=step, trained=trained)
        assert len(calibration) == round(0.2 * n)
        assert not set(hashes[calibration]) & set(trained)
        assert len(training) + len(calibration) == n
        trained = np.union1d(trained, hashes[training])
    # By position as before, 80 % of those kept would have been trained on; the same list keeps its sides.
    hashes = pictures(300)
    training, calibration = calibration_split(hashes)
    again = calibration_split(hashes, trained=hashes[training])
    np.testing.assert_array_equal(again[1], calibration)
    few = calibration_split(hashes, trained=hashes[3:])[1]
    assert few.tolist() == [0, 1, 2]
    with pytest.raises(PadError, match="all 300 normal images were trained on"):
        calibration_split(hashes, trained=hashes)


def test_imports_without_torch():
    code = "import sys, pad.judging.calibration, pad.judging.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
