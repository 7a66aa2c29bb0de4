"""Metrics, result files and the summary against independent computation."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from scipy.stats import beta, norm
from sklearn.metrics import roc_auc_score

from pad.errors import PadError
from pad.judging.calibration import Calibration
from pad.judging.metrics import (
    METRICS,
    PixelMetrics,
    auc_interval,
    detection_metrics,
    pixel_metrics,
    rate,
    weighted_metrics,
)
from pad.judging.rows import COLUMNS, FORMATS, Row, ScoreWriter, judge_batch, make_row, write_scores
from pad.judging.summary import format_table, summarize, write_summary

rng = np.random.default_rng(5)
NORMAL = np.round(rng.normal(0, 1, 70), 1)  # ties within and between
ANOMALOUS = np.round(rng.normal(1.5, 1, 43), 1)


def by_counting(normal: np.ndarray, anomalous: np.ndarray) -> tuple[float, float, float]:
    """The three metrics from their definitions, one threshold and one pair at a time."""
    pairs = [(a > n) + 0.5 * (a == n) for a in anomalous for n in normal]
    precision_sum, recall = 0.0, 0.0
    false_rate = None
    for threshold in sorted({*normal, *anomalous}, reverse=True):
        found, false = sum(anomalous >= threshold), sum(normal >= threshold)
        precision_sum += (found / len(anomalous) - recall) * found / (found + false)
        recall = found / len(anomalous)
        if false_rate is None and recall >= 0.95:
            false_rate = false / len(normal)
    assert false_rate is not None
    return sum(pairs) / len(pairs), precision_sum, false_rate


def test_metrics_are_their_definitions():
    metrics = detection_metrics(NORMAL, ANOMALOUS, resamples=50)
    np.testing.assert_allclose([metrics[m]["value"] for m in METRICS], by_counting(NORMAL, ANOMALOUS))


def test_metrics_of_a_resample_are_those_of_its_scores():
    levels = np.unique(np.concatenate([NORMAL, ANOMALOUS]))[::-1]
    for _ in range(5):
        drawn = rng.choice(NORMAL, 70), rng.choice(ANOMALOUS, 43)
        counts = [np.array([[np.sum(d == level) for level in levels]]) for d in drawn]
        np.testing.assert_allclose(weighted_metrics(counts[1], counts[0])[:, 0], by_counting(*drawn))


def test_bootstrap_interval_against_resampling_with_scikit_learn():
    aucs = [
        roc_auc_score(
            np.repeat([0, 1], [70, 43]), np.append(rng.choice(NORMAL, 70), rng.choice(ANOMALOUS, 43))
        )
        for _ in range(1000)
    ]
    auc = detection_metrics(NORMAL, ANOMALOUS, resamples=4000)["roc_auc"]
    np.testing.assert_allclose([auc["low"], auc["high"]], np.percentile(aucs, [2.5, 97.5]), atol=0.012)
    assert detection_metrics(NORMAL, ANOMALOUS)["roc_auc"] == detection_metrics(NORMAL, ANOMALOUS)["roc_auc"]


def test_separated_images_have_intervals_of_some_width():
    """40 and 100 images without an error do not show that there is none."""
    metrics = detection_metrics(np.arange(40), np.arange(100, 200))
    assert [metrics[m]["value"] for m in METRICS] == [1, 1, 0]
    auc = metrics["roc_auc"]
    assert auc["high"] == 1
    # Newcombe's equation at 1: (1 - t)^2 = z^2 t (1 - t) (1 + s (1 - t) / (2 - t) + s t / (1 + t)) / (n m).
    t, s = auc["low"], (40 + 100) / 2 - 1
    assert (1 - t) / t == pytest.approx(
        1.959964**2 * (1 + s * (1 - t) / (2 - t) + s * t / (1 + t)) / (40 * 100), rel=1e-5
    )
    assert 0.9 < t < 0.98
    assert metrics["fpr_at_95_tpr"]["high"] == pytest.approx(1 - 0.025 ** (1 / 40))
    unseen = 40 * (1 - 0.025 ** (1 / 40))
    low = np.mean([i / (i + unseen) for i in range(1, 101)])
    assert metrics["average_precision"] == {"value": 1.0, "low": pytest.approx(low), "high": 1.0}
    turned = detection_metrics(np.arange(100, 200), np.arange(40))["roc_auc"]
    assert turned == {"value": 0.0, "low": 0.0, "high": pytest.approx(1 - t)}
    one = detection_metrics([1], [3])
    assert one["roc_auc"]["low"] < 0.3
    assert one["fpr_at_95_tpr"]["high"] == pytest.approx(0.975)


def test_the_interval_of_a_nearly_perfect_roc_auc_covers_it():
    """Of 100 samples that hardly show an error; the bootstrap alone covers the truth in 50 to 80 of them."""
    generator = np.random.default_rng(1)
    for true in (0.97, 0.99, 0.998):
        shift = norm.ppf(true) * 2**0.5
        covered = 0
        for _ in range(100):
            normal, anomalous = generator.normal(size=20), generator.normal(shift, 1, 20)
            of = detection_metrics(normal, anomalous, resamples=200)["roc_auc"]
            covered += of["low"] <= true <= of["high"]
        assert covered >= 91


def test_auc_interval_away_from_the_ends_is_near_the_bootstrap():
    of, drawn = auc_interval(0.8, 60, 60), []
    generator = np.random.default_rng(3)
    shift = norm.ppf(0.8) * 2**0.5
    for _ in range(2000):
        normal, anomalous = generator.normal(size=60), generator.normal(shift, 1, 60)
        drawn.append((anomalous[:, None] > normal).mean())
    assert of["high"] - of["low"] == pytest.approx(3.92 * np.std(drawn), rel=0.15)


def test_bootstrap_of_ten_thousand_images_takes_seconds():
    start = time.perf_counter()
    detection_metrics(rng.normal(size=1000).astype("f"), rng.normal(1, 1, 9000).astype("f"))
    assert time.perf_counter() - start < 10  # measured: 0.9 s


def test_rate_has_the_exact_interval():
    of = rate(3, 40)
    np.testing.assert_allclose([of["low"], of["high"]], [beta.ppf(0.025, 3, 38), beta.ppf(0.975, 4, 37)])
    assert rate(0, 10)["low"] == 0


def test_aupro_by_hand():
    # 100 pixels, 10 marked: one region of 8, one of 2 (touching at a corner would join them).
    mask = np.zeros((10, 10))
    mask[0, :8] = 255
    mask[5, 5:7] = 1
    anomaly_map = np.zeros((10, 10))
    anomaly_map[0, :4] = 4.0  # half of the large region, before any false positive
    anomaly_map[9, :9] = 3.0  # then 9 of 90 false positives: rate 0.1
    anomaly_map[5, 5:7] = 2.0  # then the whole small region: overlap (0.5 + 1) / 2
    anomaly_map[8, :9] = 1.0  # rate 0.2
    # The rest ties at 0: a straight line from (0.2, 0.75) to (1, 1).
    area = 0.1 * 0.25 + 0.1 * 0.75 + 0.1 * (0.75 + (0.75 + 0.25 * 0.1 / 0.8)) / 2
    results = pixel_metrics([anomaly_map, np.zeros((4, 4))[:0]], [mask, None])
    assert results["aupro"] == pytest.approx(area / 0.3)
    assert results["pixel_roc_auc"] == pytest.approx(roc_auc_score(mask.ravel() > 0, anomaly_map.ravel()))


def test_pixel_metrics_of_random_maps_against_thresholds_one_by_one():
    from scipy.ndimage import gaussian_filter

    masks = [gaussian_filter(rng.normal(size=(24, 24)), 2) > 0.12 for _ in range(4)]
    maps = [rng.gamma(2, 1, (24, 24)) + mask for mask in masks]
    maps.append(rng.gamma(2, 1, (24, 24)))
    results = pixel_metrics(maps, [*masks, None])
    joined = np.concatenate([np.ravel([*masks, np.zeros((24, 24))])])
    assert results["pixel_roc_auc"] == pytest.approx(roc_auc_score(joined, np.ravel(maps)), abs=2e-3)

    from skimage.measure import label

    x, y = [0.0], [0.0]
    clear = np.concatenate(
        [m[~mask] for m, mask in zip(maps, [*masks, np.zeros((24, 24), bool)], strict=True)]
    )
    for threshold in np.quantile(clear, np.linspace(1, 0.5, 150)):
        overlaps = []
        for m, mask in zip(maps, masks, strict=False):
            regions = label(mask, connectivity=2)
            overlaps += [np.mean(m[regions == i] >= threshold) for i in range(1, regions.max() + 1)]
        x.append(np.mean(clear >= threshold))
        y.append(np.mean(overlaps))
    grid = np.linspace(0, 0.3, 3001)
    assert results["aupro"] == pytest.approx(np.interp(grid, x, y).mean(), abs=5e-3)


def test_pixel_metrics_refuse_what_does_not_fit():
    with pytest.raises(PadError, match=r"^hole\.png: is 4x5 pixels, but its image has 5x4"):
        PixelMetrics().add(np.zeros((4, 5)), np.zeros((5, 4)), "hole.png")
    with pytest.raises(PadError, match="finite numbers"):
        PixelMetrics().add(np.full((2, 2), np.nan), None)
    assert pixel_metrics([np.ones((3, 3))], [None]) == {}


def example_rows(calibration: Calibration | None) -> list[Row]:
    names = [
        "a, b.png",
        'quo"te.png',
        "line\nbreak.png",
        "return\r.png",
        "naïve 图.png",
        "<script>.png",
        "=1+1.png",
    ]
    rows = [make_row(name, 0.1 * i + 0.7, calibration, 0.05) for i, name in enumerate(names)]
    rows.append(make_row(os.fsdecode(b"latin-\xe9.png"), 1 / 3, calibration, 0.05))
    rows.append(make_row("\ud800.png", 1e-30, calibration, 0.05))
    rows.append(make_row("broken.png", None, calibration, 0.05, error="is truncated"))
    return rows


@pytest.mark.parametrize("calibrated", [True, False])
def test_csv_reads_back(tmp_path: Path, calibrated: bool):
    rows = example_rows(Calibration(np.arange(100) / 100) if calibrated else None)
    write_scores(iter(rows), tmp_path / "new" / "scores.csv")
    data = (tmp_path / "new" / "scores.csv").read_bytes()
    assert data.startswith(b"path,score,p_value,verdict,error\n")
    assert b"latin-\xe9.png" in data
    read = list(csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))[1:]
    assert [r[0] for r in read[:8]] == [r.path for r in rows[:8]]
    assert read[8][0] == "\\ud800.png"
    assert read[9] == ["broken.png", "", "", "", "is truncated"]
    for row, (_, score, p_value, verdict, _) in zip(rows[:9], read[:9], strict=True):
        assert np.float32(score) == np.float32(row.score)
        assert (
            verdict == row.verdict == (("anomaly" if row.p_value <= 0.05 else "normal") if calibrated else "")
        )
        assert (float(p_value) == pytest.approx(row.p_value)) if calibrated else p_value == ""
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["scores.csv"]


def test_json_and_json_lines_read_back(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]):
    rows = example_rows(Calibration(np.arange(100) / 100))
    write_scores(rows, tmp_path / "s.json", "json")
    write_scores(rows, "-", "jsonl")
    objects = json.loads((tmp_path / "s.json").read_text("ascii"))
    lines = capfdbinary.readouterr().out.decode("ascii").splitlines()
    assert [json.loads(line) for line in lines] == objects
    assert [o["path"] for o in objects] == [r.path for r in rows]
    assert all(tuple(o) == (*COLUMNS, "views") for o in objects)
    assert objects[9] == {
        "path": "broken.png",
        "score": None,
        "p_value": None,
        "verdict": "",
        "error": "is truncated",
        "views": {},
    }
    write_scores([], tmp_path / "none.json", "json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_parquet_reads_back(tmp_path: Path):
    rows = example_rows(Calibration(np.arange(100) / 100))
    rows.append(
        make_row("seen.png", 0.5, Calibration(np.arange(100)), 0.05, views={"whole": 0.25, "parts": 1.0})
    )
    write_scores(iter(rows), tmp_path / "s.parquet", "parquet")
    write_scores(rows, tmp_path / "s.json", "json")
    read = pyarrow.parquet.read_table(tmp_path / "s.parquet").to_pylist(maps_as_pydicts="strict")
    objects = json.loads((tmp_path / "s.json").read_text("ascii"))
    assert [row.pop("path") for row in read[:7]] == [row.pop("path") for row in objects[:7]]
    assert [row.pop("path") for row in read[7:9]] == [r"latin-\xe9.png", r"\ud800.png"]  # it holds UTF-8 only
    assert [{**row, "path": ""} for row in read] == [{**row, "path": ""} for row in objects]
    with pytest.raises(PadError, match="name a folder with --out"):
        write_scores(rows, "-", "parquet")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    target = tmp_path / "scores.csv"
    target.write_text("old")

    def rows():
        yield Row("a.png", 1.0)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_scores(rows(), target)
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(PadError, match=r"cannot write .*scores\.csv/x"):
        write_scores([], target / "x")
    with pytest.raises(PadError, match="--format takes csv, jsonl, json"):
        write_scores([], target, "xml")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("provisional", [False, True])
def test_rows_that_come_over_time_make_the_same_file(tmp_path: Path, form: str, provisional: bool):
    rows = example_rows(Calibration(np.arange(100) / 100))
    write_scores(rows, tmp_path / "whole", form)
    target = tmp_path / "new" / f"scores.{form}"
    with ScoreWriter(target, form, provisional) as writer:
        writer.add(rows[:3])
        assert not target.exists()
        writer.add([])
        writer.add(rows[3:])
        writer.finish(rows)
    assert target.read_bytes() == (tmp_path / "whole").read_bytes()
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_what_was_added_is_on_disk_at_once(tmp_path: Path):
    with ScoreWriter(tmp_path / "scores.csv") as writer:
        writer.add([Row("a.png", 1.0), Row("b.png", error="is empty")])
        (growing,) = tmp_path.iterdir()
        assert "partial" in growing.name
        assert growing.read_text().splitlines()[1:] == ["a.png,1,,,", "b.png,,,,is empty"]
        writer.finish()


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_an_evaluation_that_fails_are_kept_under_another_name(tmp_path: Path, form: str):
    target = tmp_path / f"scores.{form}"
    target.write_text("old")
    writer = ScoreWriter(target, form, provisional=True)
    with suppress(RuntimeError), writer:
        writer.add([Row("a.png", 1.0, 0.5, "normal"), Row("b.png", 2.0, 0.01, "anomaly")])
        raise RuntimeError
    assert target.read_text() == "old"
    grows = "jsonl" if form == "parquet" else form
    partial = tmp_path / f"scores.partial.{grows}"
    assert sorted(tmp_path.iterdir()) == sorted([target, partial])
    assert writer.kept == f"the 2 rows so far are kept in {partial}"
    write_scores([Row("a.png", 1.0, 0.5), Row("b.png", 2.0, 0.01)], tmp_path / "whole", grows)
    assert partial.read_bytes() == (tmp_path / "whole").read_bytes()  # verdicts are not known yet
    with ScoreWriter(target, form) as writer:
        writer.finish()
    assert not partial.exists()
    with pytest.raises(RuntimeError), ScoreWriter(tmp_path / "none" / "scores.csv") as writer:
        raise RuntimeError
    assert list((tmp_path / "none").iterdir()) == []


def test_where_rows_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(PadError, match=r"cannot write .*file/scores\.csv"),
        ScoreWriter(tmp_path / "file/scores.csv"),
    ):
        pass
    with pytest.raises(PadError, match="--format takes csv, jsonl, json"):
        ScoreWriter(tmp_path / "scores.xml", "xml")


def test_a_score_that_is_not_finite_is_an_error_row():
    calibration = Calibration(np.arange(100))
    for score in (np.nan, np.inf):
        row = make_row("a.png", score, calibration, 0.05)
        assert (row.score, row.p_value, row.verdict) == (None, None, "")
        assert "no finite score" in row.error


def labelled_rows(calibration: Calibration | None) -> list[Row]:
    rows = [make_row(f"good/{i}", s, calibration, 0.05, "", False, "good") for i, s in enumerate(NORMAL)]
    rows += [
        make_row(f"{i}", s, calibration, 0.05, "", True, ("hole", "cut")[i % 2])
        for i, s in enumerate(ANOMALOUS)
    ]
    return [*rows, Row("bad.png", error="is empty", anomalous=True, kind="cut")]


def test_summary_of_labelled_images(tmp_path: Path):
    calibration = Calibration(rng.normal(size=200))
    rows = labelled_rows(calibration)
    summary = summarize(rows, calibration, 0.05, resamples=100)
    write_summary(summary, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    flagged_normal = int((summary["threshold"] <= NORMAL).sum())
    flagged = flagged_normal + int((summary["threshold"] <= ANOMALOUS).sum())
    assert summary["counts"] == {
        "images": 114, "scored": 113, "unreadable": 1, "flagged": flagged, "normal": 70, "anomalous": 43,
    }  # fmt: skip
    assert summary["false_alarm_rate"]["value"] == flagged_normal / 70
    assert summary["roc_auc"] == detection_metrics(NORMAL, ANOMALOUS, 100)["roc_auc"]
    assert list(summary["kinds"]) == ["cut", "hole"]
    assert summary["kinds"]["cut"]["images"] == 21
    cut = by_counting(NORMAL, ANOMALOUS[1::2])
    np.testing.assert_allclose([summary["kinds"]["cut"][m]["value"] for m in METRICS], cut)
    table = format_table(summary)
    assert "113 images scored, 1 unreadable" in table
    assert f"{summary['roc_auc']['value']:.3f} [" in table
    assert [line.split()[0] for line in table.splitlines()[-4:]] == ["normal", "anomalous", "cut", "hole"]
    assert table.isascii()


def test_summary_without_labels_or_calibration():
    calibration = Calibration(np.arange(100) / 10)
    rows = example_rows(calibration)
    summary = summarize(rows, calibration, 0.05)
    assert "roc_auc" not in summary
    assert "kinds" not in summary
    bare = summarize(example_rows(None), None, 0.05)
    assert bare["threshold"] is None
    assert "no calibration" in format_table(bare)
    few = Calibration(np.arange(9))
    assert "note: 9 calibration images cannot hold" in format_table(summarize([], few, 0.05))
    json.dumps(summarize([], few, 0.05), allow_nan=False)


def test_summary_says_what_the_threshold_holds():
    calibration = Calibration(np.arange(100) / 10)
    scores = np.append(np.arange(80, 101) / 10, 99)

    def summary(confidence: float | None) -> dict:
        rows = [make_row("a", s, calibration, 0.05, confidence=confidence) for s in scores]
        return summarize(rows, calibration, 0.05, confidence=confidence)

    plain, sure = summary(None), summary(0.95)
    assert (plain["confidence"], sure["confidence"]) == (None, 0.95)
    assert sure["threshold"] == calibration.threshold(0.05, 0.95) > plain["threshold"]
    assert sure["counts"]["flagged"] == (scores >= sure["threshold"]).sum() < plain["counts"]["flagged"]
    assert plain["worst_fpr"] == pytest.approx(beta.ppf(0.95, 5, 96))
    assert sure["worst_fpr"] is None
    assert "false-alarm rate of at most 0.05 on average (100 calibration images)" in format_table(plain)
    assert "own rate is at most 0.0892 with a probability of 95%" in format_table(plain)
    assert "at most 0.05 with a probability of 95% (100 calibration images)" in format_table(sure)
    few = summarize([], Calibration(np.arange(58)), 0.05, confidence=0.95)
    assert few["threshold"] is None
    assert "at least 59 normal images" in few["notes"][0]


def test_labels_never_touch_results():
    calibration = Calibration(np.arange(100) / 30)
    labels = [(None, None), (False, "good"), (True, "hole")]
    rows = [make_row("a", 3.0, calibration, 0.05, "", anomalous, kind) for anomalous, kind in labels]
    assert len({(r.score, r.p_value, r.verdict) for r in rows}) == 1


def test_verdicts_by_false_discovery_rate():
    calibration = Calibration(np.arange(999) / 100)
    rows = [make_row(str(i), score, calibration, 0.05) for i, score in enumerate([1, 5, 9.8, 20, 20, None])]
    judged = judge_batch(rows, 0.05)
    p = [r.p_value for r in rows[:5]]
    ranked = sorted(p)
    limit = max((q for k, q in enumerate(ranked, 1) if q <= 0.05 * k / 5), default=-1)  # the step-up rule
    assert [r.verdict == "anomaly" for r in judged[:5]] == [q <= limit for q in p]
    assert judged[5] == rows[5]
    summary = summarize(judged, calibration, 0.05, fdr=0.05)
    assert summary["threshold"] == min(r.score for r in judged if r.verdict == "anomaly")
    assert "false ones among the flagged" in format_table(summary)


def test_the_summary_says_what_could_not_be_judged():
    def reasons(scores: list[float | None], calibration: Calibration | None, fdr: float | None = None) -> str:
        rows = [make_row(str(i), score, calibration, 0.05) for i, score in enumerate(scores)]
        rows = judge_batch(rows, fdr) if fdr else rows
        summary = summarize(rows, calibration, 0.05, fdr)
        json.dumps(summary, allow_nan=False)
        return "; ".join(summary["unjudged"])

    enough, few = Calibration(np.arange(19) / 10), Calibration(np.arange(18) / 10)
    assert reasons([0.1, 5.0], enough) == ""
    assert reasons([0.1, 5.0], None) == "the model has no calibration"
    assert reasons([0.1, 5.0], few) == "18 calibration images cannot hold a rate of 0.05"
    assert reasons([0.1, None, None, 5.0], enough) == "2 of 4 images could not be scored"
    assert reasons([None], few) == (
        "18 calibration images cannot hold a rate of 0.05; 1 of 1 image could not be scored"
    )
    assert reasons([0.1, 5.0], few, 0.05) == "18 calibration images cannot hold a rate of 0.05"
    assert reasons([5.0], enough, 0.05) == ""  # flagged
    assert reasons([0.1] * 9, enough, 0.05) == ""  # below calibration images: normal at any number of them
    assert reasons([0.1] * 9 + [5.0], enough, 0.05) == (
        "1 image above all 19 calibration images, which are too few for a rate of 0.05 over 10 images"
    )


def test_names_cannot_steer_the_terminal():
    calibration = Calibration(np.arange(100) / 100)
    rows = [make_row("a", 0.5, calibration, 0.05, "", False, "good"),
            make_row("b", 2.0, calibration, 0.05, "", True, "\x1b[2J\nhole" + "x" * 60)]  # fmt: skip
    table = format_table(summarize(rows, calibration, 0.05, resamples=10))
    assert "\x1b" not in table
    assert "\\x1b[2J\\nhole" in table


def test_a_note_says_when_a_batch_is_too_large_to_flag_anything():
    calibration = Calibration(np.arange(99) / 100)

    def judged(high: int) -> list[Row]:
        scores = np.append(np.full(high, 5.0), np.full(200 - high, 0.5))
        return judge_batch([make_row(str(i), s, calibration, 0.05) for i, s in enumerate(scores)], 0.05)

    few = summarize(judged(39), calibration, 0.05, fdr=0.05)
    assert few["counts"]["flagged"] == 0
    assert "at least 40 of them score above every calibration image" in few["notes"][0]
    enough = summarize(judged(40), calibration, 0.05, fdr=0.05)
    assert enough["counts"]["flagged"] == 40
    assert enough["notes"] == []
