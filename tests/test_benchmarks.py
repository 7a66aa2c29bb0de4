"""The benchmarks run, on real images, as a user starts them. What they measure here means nothing."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from PIL import Image

import pad
from pad.images.named import FASHION_CLASSES

ROOT = Path(__file__).parent.parent
SMALL = [
    "latent_dim=8", "generator_channels=[8,8,8]", "encoder_channels=[8,8,8]", "critic_channels=[8,8,8]",
    "latent_critic_channels=[16]", "layers=relu2_2", "batch_size=8", "warm_up=0.2", "sample_every=0",
]  # fmt: skip


def bench(script: str, *arguments: object, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    words = [str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = forked.run(words, env=environment, cwd=cwd, timeout=280)
    logs = "".join(path.read_text(encoding="utf-8") for path in cwd.rglob("*.log")) if status == 0 else ""
    assert done.returncode == status, done.stderr + logs
    return done


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture(scope="module")
def data_root(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' Fashion-MNIST images as a small dataset."""
    root = tmp_path_factory.mktemp("data")
    kinds = {path.name: sorted(path.glob("*.png")) for path in (fashion / "test").iterdir()}
    kinds["ankle-boot"] = kinds.pop("normal")
    boots = sorted((fashion / "train" / "ankle-boot").glob("*.png"))
    for split, found in (("train", {**kinds, "ankle-boot": boots}), ("t10k", kinds)):
        pairs = [(file, FASHION_CLASSES.index(kind)) for kind, files in found.items() for file in files]
        write_idx(
            root / f"{split}-images-idx3-ubyte.gz", np.stack([np.asarray(Image.open(f)) for f, _ in pairs])
        )
        write_idx(root / f"{split}-labels-idx1-ubyte.gz", np.array([k for _, k in pairs], np.uint8))
    return root


def test_quality_of_a_dataset_resumes_and_reports(data_root: Path, tmp_path: Path) -> None:
    words = ["--data-root", data_root, "--classes", 9, "--seeds", 0, 1, "--methods", "pad", "knn", "pca",
             "--steps", 3, "--jobs", 2, "--device", "cpu", "--set", *SMALL, "--out", "out"]  # fmt: skip
    done = bench("quality.py", *words, "--markdown", "table.md", "--figure", "figure.svg", cwd=tmp_path)
    assert "ankle-boot" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {"command", "hardware", "versions", "seeds", "roc_auc", "results"} <= results.keys()
    found = results["roc_auc"]["pad"]["classes"]["9"]
    assert found["seeds"] == 2
    assert 0 <= found["value"] <= 1
    assert found["deviation"] >= 0
    assert results["roc_auc"]["knn"]["classes"]["9"]["value"] > 0.8
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "python benchmarks/quality.py" in table
    assert str(tmp_path) not in table
    assert str(data_root) not in table
    for name in ("figure.svg", "figure-dark.svg"):
        assert "ROC AUC" in (tmp_path / name).read_text(encoding="utf-8")

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "finished").iterdir()}
    assert len(stamps) == 4
    bench("quality.py", *words, cwd=tmp_path)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "finished").iterdir()}

    # A model that is trained to the end is judged again, not trained again.
    path = tmp_path / "out" / "finished" / "pad-class9-seed1.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    bench("quality.py", *words, cwd=tmp_path)
    after = json.loads(path.read_text(encoding="utf-8"))
    assert [after[key] for key in ("roc_auc", "training")] == [before[key] for key in ("roc_auc", "training")]
    changed = bench("quality.py", *words, "--set", "latent_dim=4", cwd=tmp_path, status=2)
    assert "other settings" in changed.stderr


def test_quality_of_a_labelled_folder_holds_normal_images_out(fashion: Path, tmp_path: Path) -> None:
    words = ["--folder", fashion / "test", "--methods", "knn", "isolation-forest", "one-class-svm",
             "mahalanobis", "feature-pca", "hsv-isolation-forest", "--out", "out"]  # fmt: skip
    bench("quality.py", *words, cwd=tmp_path)
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    assert len(results) == 6
    for result in results:
        assert result["train_images"] == 32  # of 40 normal ones; the other 8 are judged beside 100 anomalies
        assert result["test_images"] == 108
        assert 0 <= result["roc_auc"]["value"] <= 1


def test_ablation_never_opens_the_test_split(data_root: Path, tmp_path: Path) -> None:
    for name in ("images-idx3", "labels-idx1"):
        source = data_root / f"train-{name}-ubyte.gz"
        (tmp_path / source.name).write_bytes(source.read_bytes())  # and no t10k files
    done = bench(
        "ablation.py", "--out", "out", "--data-root", ".", "--classes", 9, "--rows", "default", "no critics",
        "--anomalies", 10, "--steps", 3, "--device", "cpu", "--set", *SMALL, "--markdown", "table.md",
        cwd=tmp_path,
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [r["row"] for r in results] == ["default", "no critics"]
    assert [r["recipe"]["image_critic"] for r in results] == [True, False]
    assert results[0]["test_images"] == 24 + 5 * 10
    assert "no critics" in done.stdout
    assert "| no critics |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    channels = bench(
        "channels.py", "--ablation", "out", "--data-root", ".", "--classes", 9, "--anomalies", 10,
        "--device", "cpu", "--markdown", "channels.md", cwd=tmp_path,
    )  # fmt: skip
    rows = [line.split() for line in channels.stdout.splitlines()]
    assert float(rows[1][1]) == pytest.approx(results[0]["roc_auc"]["value"], abs=1e-4)  # the score alone
    assert {"score + 1 D_x", "D_x", "ρ as in the paper"} <= {
        line.split("  ")[0] for line in channels.stdout.splitlines()
    }
    assert "| D_x |" in (tmp_path / "channels.md").read_text(encoding="utf-8")
    samples = bench(
        "samples.py", "--ablation", "out", "--data-root", ".", "--classes", 9, "--anomalies", 10,
        "--rows", "default", "no-critics", "--device", "cpu", "--markdown", "samples.md", cwd=tmp_path,
    )  # fmt: skip
    lines = [line.split() for line in samples.stdout.splitlines()]
    assert [line[0] for line in lines[2:]] == ["default", "no-critics"]
    assert all(float(number) > float(lines[1][-1]) > 0 for line in lines[2:] for number in line[-2:])
    assert "| no-critics |" in (tmp_path / "samples.md").read_text(encoding="utf-8")


def test_a_row_of_other_scoring_takes_the_networks_of_another(data_root: Path, tmp_path: Path) -> None:
    """And scores as if it had been trained by itself."""
    row = "none of the three, as in the paper"

    def ablation(out: str, *rows: str) -> dict[str, dict[str, Any]]:
        bench(
            "ablation.py", "--out", out, "--data-root", data_root, "--classes", 9, "--rows", *rows,
            "--jobs", 2, "--anomalies", 10, "--steps", 3, "--device", "cpu", "--set", *SMALL, cwd=tmp_path,
        )  # fmt: skip
        results = json.loads((tmp_path / out / "results.json").read_text(encoding="utf-8"))["results"]
        return {result["row"]: result for result in results}

    both, alone = ablation("both", "default", row), ablation("alone", row)
    assert both[row]["roc_auc"] == alone[row]["roc_auc"]
    assert both[row]["training"]["seconds"] == both["default"]["training"]["seconds"]  # it is one training
    folders = (name + "-class9-seed0" for name in ("default", "none-of-the-three-as-in-the-paper"))
    default, other = (pad.load(tmp_path / "both" / "runs" / name, "cpu") for name in folders)
    assert (default.config.residual_components, other.config.residual_components) == (128, 0)
    for key, weight in default.generator.networks.state_dict().items():
        assert torch.equal(weight, other.generator.networks.state_dict()[key])


def test_frechet_distance_of_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of N(0, diag a^2) and N(m, diag b^2) it is |m|^2 + |a - b|^2; and it does not know about turns."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from samples import frechet_distance

    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    first = random.normal(size=(200_000, 3)) * [1, 2, 3] @ turn
    second = (random.normal(size=(200_000, 3)) * [2, 2, 1] + [1, 0, 0]) @ turn
    assert frechet_distance(first, second) == pytest.approx(1 + 1 + 0 + 4, rel=0.02)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_ablation_names_an_unknown_row(tmp_path: Path) -> None:
    done = bench("ablation.py", "--out", "out", "--rows", "no critic", cwd=tmp_path, status=2)
    assert "no critics" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(900)  # a dozen processes
def test_speed_measures_both_sides(fashion: Path, tmp_path: Path) -> None:
    bench(
        "speed.py", "--data", fashion, "--steps", 2, "--images", 8, "--device", "cpu", "--set", *SMALL,
        "--published-set", "generator_channels=[8,8,8,8]", "encoder_channels=[8,8,8,8]", "batch_size=4",
        "--out", "speed.json", "--markdown", "speed.md", "--curve", 0.002, "--starts", 1,
        "--rounds", 2, cwd=tmp_path,
    )  # fmt: skip
    content = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    for side in ("pad", "published"):
        measured = content["devices"]["cpu"][side]
        assert measured["seconds_a_step"] > 0
        assert len(measured["rounds"]["train"]) == len(measured["rounds"]["score"]) == 2
        rates = [found["scoring_images_per_second"] for found in measured["rounds"]["score"]]
        assert min(rates) <= measured["scoring_images_per_second"] <= max(rates)
        assert measured["scoring_images_per_second"] > 0
        assert 50 < measured["training_memory_mb"] < 10_000
        assert 0 <= measured["curve"][-1]["roc_auc"] <= 1
    assert content["devices"]["cpu"]["published"]["precision"] == "float32"
    assert 0 < content["start"]["own_import_seconds"] < content["start"]["import_seconds"]
    assert content["rank_correlation"] > 0.99
    rounds = [content["devices"]["cpu"][side]["rounds"]["score"] for side in ("pad", "published")]
    rates = np.array([[found["scoring_images_per_second"] for found in side] for side in rounds])
    lines = (tmp_path / "speed.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith("| scoring PNG files"))
    assert row.endswith(f"| {np.median(rates[0] / rates[1]):.1f}× |")


def test_contrast_compares_similarities(photographs: Path, tmp_path: Path) -> None:
    done = bench("contrast.py", photographs, "--out", "contrast.json", "--markdown", "table.md", cwd=tmp_path)
    (result,) = json.loads((tmp_path / "contrast.json").read_text(encoding="utf-8"))["results"]
    assert result["folder"] == "tests/data/photographs"
    shares = result["shares"]
    assert len(shares) == 10
    # L1 of a scaled image is linear in what was taken away.
    assert shares["intensities × 0.5"]["L1"] == pytest.approx(
        shares["intensities × 0.7"]["L1"] * 0.5 / 0.3, rel=1e-3
    )
    assert all(0 < share < 3 for row in shares.values() for share in row.values())
    assert "LPIPS" in done.stdout
    assert "`python benchmarks/contrast.py" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_contrast_needs_two_images(boots: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    first = next(boots.iterdir())
    (tmp_path / "one" / first.name).write_bytes(first.read_bytes())
    done = bench("contrast.py", "one", cwd=tmp_path, status=2)
    assert "at least two" in done.stderr


def test_exported_graphs_are_compared_and_timed(fashion: Path, photographs: Path, tmp_path: Path) -> None:
    bench(
        "export.py", "--models", "zoo:digits/three", "--data", fashion / "test", photographs, "--images", 8,
        "--repeats", 2, "--out", "export.json", "--markdown", "export.md", "--compile-seconds", 1,
        cwd=tmp_path,
    )  # fmt: skip
    [entry] = json.loads((tmp_path / "export.json").read_text())["models"]
    assert entry["parity"]["images"] == entry["parity"]["equal_p_values"] == 8
    assert entry["parity"]["median_difference"] < 1e-5
    assert entry["parity"]["sizes"] >= 5
    assert all(
        entry[name]["images_per_second"] > 0 for name in ("onnx", "onnx_explained", "pad", "pad_float32")
    )
    assert entry["compiled"] == {"failed": "not done after 1 seconds"}
    page = (tmp_path / "export.md").read_text()
    assert "| zoo:digits/three | generator |" in page
    assert "zoo:digits/three, `torch.compile`, float32: not done after 1 seconds." in page
    assert f"{entry['parity']['largest_difference']:.1e}" in page


def test_promise_from_scores(tmp_path: Path) -> None:
    """Of exchangeable scores what is found is what is expected; of ones that drift it is too many."""
    random = np.random.default_rng(0)
    lines = ["path,score,p_value,verdict,error"]
    lines += [f"good/{i}.png,{score:.9g},,," for i, score in enumerate(random.gamma(5, 1, 300))]
    lines += ["good/broken.png,,,,truncated", "hole/1.png,99,0.01,anomaly,"]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    more = ("--only", "good/", "--calibration", 100, "--splits", 300)
    done = bench("promise.py", "scores.csv", *more, cwd=tmp_path)
    head, _, *rows = done.stdout.splitlines()
    assert head == "100 scores calibrate, 200 are judged; 300 splits"
    assert len(rows) == 6
    for line, fpr in zip(rows, (5, 10, 20) * 2, strict=True):
        mean, error, expected, above, expected_above = (
            float(word.rstrip("%")) for word in line.split()[3:] if word != "+-"
        )
        assert mean == pytest.approx(expected, abs=6 * error)
        assert expected <= fpr
        assert above == pytest.approx(expected_above, abs=10)
        if "sure" in line:
            assert expected_above < 20
    bench("promise.py", "scores.csv", "--calibration", 301, cwd=tmp_path, status=2)


def test_mutated_images_cost_no_row_and_no_traceback(tmp_path: Path) -> None:
    """A few of the ten thousand; and what the benchmark counts is counted, where there is something."""
    results = tmp_path / "mutants.json"
    done = bench(
        "mutate_images.py", "--images", 60, "--chunk", 30, "--seed", 1, "--json", results, cwd=tmp_path
    )
    assert "60 images: 0 tracebacks, 0 deaths, 0 lost rows, 0 lost pictures, 0 wrong statuses" in done.stdout
    found = json.loads(results.read_text())
    assert sum(sum(fates.values()) for fates in found["formats"].values()) == 60
    assert sum(fates.get("unreadable", 0) for fates in found["mutations"].values()) > 5
    assert sum(fates.get("scored", 0) for fates in found["mutations"].values()) > 20
    assert found["broken_chunks"] == []


def test_mutated_images_are_the_same_each_time_and_faults_are_seen(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import mutate_images

    for number in range(40):
        first, second = (mutate_images.mutant(3, number) for _ in range(2))
        assert first == second
    files, out = [tmp_path / f"{i}.png" for i in range(3)], tmp_path / "out"
    (out / "explanations").mkdir(parents=True)
    lines = ["path,score,p_value,verdict,error", f"{files[0]},1.5,0.1,normal,", f"{files[1]},,,,is empty",
             f"{files[2]},2,0.1,normal,"]  # fmt: skip
    for row in ("000001", "000003"):
        (out / "explanations" / f"{row}-x.montage.png").touch()
    (out / "report.html").touch()

    def faults(status: int | None = 0, errors: str = "") -> dict[str, int]:
        (out / "scores.csv").write_text("\n".join(lines) + "\n")
        return dict(+mutate_images.checked(files, out, status, errors)[0])

    assert faults() == {}
    assert faults(-9) == faults(None) == {"deaths": 1}
    assert faults(1, "Traceback (most recent call last):\n") == {"tracebacks": 1}
    assert faults(2, "evaluate: some message") == {"wrong statuses": 1}
    (out / "explanations" / "000003-x.montage.png").unlink()
    assert faults() == {"lost pictures": 1}
    assert faults(errors=f"no picture of {files[2]}: cannot be drawn") == {}
    del lines[3]
    assert faults() == {"lost rows": 1}
    (out / "scores.csv").unlink()
    lines[1] = f"{files[0]},,,,"
    assert faults() == {"lost rows": 2}


def test_a_stream_is_shown_and_told(fashion: Path, tmp_path: Path) -> None:
    normal = [fashion / "train" / "ankle-boot", fashion / "test" / "normal"]
    others = [fashion / "test" / "bag", fashion / "test" / "sandal"]
    words = ["--normal", *normal, "--new", fashion / "test" / "trouser", "--strangers", *others, "--fit", 100]
    done = bench("stream.py", *words, "--streams", 8, "--out", "s.json", "--markdown", "s.md", cwd=tmp_path)
    assert "new kind shown until proposed" in done.stdout
    results = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["results"]
    assert results["adoption"]["new kind flagged before"] >= 0.8
    assert results["adoption"]["of them of the new kind"] >= 10
    assert results["adoption"]["new kind after"] > 0
    assert results["never"] == {**results["never"], "versions": 1, "proposals": 0}
    assert results["drift"]["streams without drift"] == 8
    assert str(tmp_path) not in (tmp_path / "s.md").read_text(encoding="utf-8")


def test_many_acceptances_of_a_new_normal(fashion: Path, tmp_path: Path) -> None:
    test = fashion / "test"
    words = ["--normal", fashion / "train" / "ankle-boot", "--new", test / "trouser"]
    words += ["--strangers", test / "bag", "--fit", 60, "--pictures", 20, "--seeds", 5, "--draws", 2]
    words += ["--out", "n.json", "--markdown", "n.md"]
    done = bench("new_normal.py", *words, cwd=tmp_path)
    assert "twice as many" in done.stdout
    rows = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))["acceptances"]
    assert {row["draw"] for row in rows} == {0, 1}
    of = {(row["draw"], row["accepted"], row["sure"]): row for row in rows}
    for (draw, accepted, sure), row in of.items():
        assert 12 <= row["pictures"] <= 20
        if sure == 0.9:  # the surer, the more is normal
            assert (
                of[draw, accepted, 0.975]["flagged"] <= row["flagged"] <= of[draw, accepted, 0.8]["flagged"]
            )
            assert of[draw, accepted, 0.975]["found"] <= row["found"]
    assert str(tmp_path) not in (tmp_path / "n.md").read_text(encoding="utf-8")


def test_a_service_under_load_and_nonsense(tmp_path: Path) -> None:
    words = ["--clients", 4, "--seconds", 1, "--mutated", 30, "--rounds", 1, "--out", "s.json"]
    bench("serve.py", *words, "--markdown", "s.md", cwd=tmp_path)
    results = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["results"]
    assert set(results["load"]["answers"]) == {"right"}
    assert results["nonsense"]["500 and above"] == 0
    assert results["throughput"]["share"] > 0
    assert results["token"]["wrong tokens"] == {"401": 4}
    assert results["token"]["bytes of log"] > 0
    assert results["token"]["token in them"] == 0
    assert "| of these not right | 0 |" in (tmp_path / "s.md").read_text(encoding="utf-8")


def test_a_watcher_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    done = bench("kill_watching.py", "--kills", 3, "--pictures", 30, "--out", "k.json", cwd=tmp_path)
    results = json.loads((tmp_path / "k.json").read_text(encoding="utf-8"))["results"]
    assert results["kills"] == 3
    assert results["pictures"] == 30
    assert "events lost: 0" in done.stdout


def test_a_dirty_training_is_measured_and_its_strangers_counted(data_root: Path, tmp_path: Path) -> None:
    task = f"fashion-mnist:{FASHION_CLASSES.index('ankle-boot')}:{FASHION_CLASSES.index('trouser')}"
    done = bench("contamination.py", "--data-root", data_root, "--tasks", task, "--shares", 0, 0.1,
                 "--images", 120, "--draws", 1, "--device", "cpu", "--out", "c.json", "--markdown", "c.md",
                 cwd=tmp_path)  # fmt: skip
    results = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["results"]
    dirty = {row["contamination"]: row for row in results if row["share"] and "contamination" in row}
    assert set(dirty) == {None, 0.0, 0.1}
    assert [dirty[s]["left_out"] for s in (0.0, 0.1)] == [0, 12]
    assert dirty[None]["left_out"] == dirty[None]["strangers_left_out"] == 12
    assert min(dirty[None]["roc_auc"], dirty[0.1]["roc_auc"]) > dirty[0.0]["roc_auc"]
    assert next(row["ranked"] for row in results if "ranked" in row) == 1
    assert "strangers among the first of the ranking" in done.stdout
    assert (tmp_path / "c.md").read_text(encoding="utf-8").count("\n| fashion-mnist") == 2


def test_all_evidence_is_made_once_and_goes_on(tmp_path: Path) -> None:
    words = ["--quick", "--out", "out", "--only", "contrast"]
    said = bench("run_all.py", *words, "--dry-run", cwd=tmp_path).stdout
    assert said == "contrast       a minute\n"
    assert not (tmp_path / "out").exists()
    # What a benchmark that was stopped has left is no result.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "contrast.json").write_text('{"results": [')
    bench("run_all.py", *words, cwd=tmp_path)
    result = tmp_path / "out" / "contrast.json"
    content = json.loads(result.read_text(encoding="utf-8"))
    assert content["command"] == "python benchmarks/contrast.py photographs --out contrast.json"
    before = result.stat().st_mtime_ns
    assert bench("run_all.py", *words, cwd=tmp_path).stdout.startswith("contrast       done at ")
    assert result.stat().st_mtime_ns == before
    # Made by other words it is made again.
    stamp = tmp_path / "out" / ".run_all" / "contrast.done"
    stamp.write_text(stamp.read_text().replace("photographs", "fashion"))
    assert bench("run_all.py", *words, "--dry-run", cwd=tmp_path).stdout == said


def test_a_job_that_fails_is_told_and_hours_are_said_before(tmp_path: Path) -> None:
    words = ["--data-root", ".", "--out", "out", "--only", "localize", "cifar10"]
    done = bench("run_all.py", *words, cwd=tmp_path, status=1)
    lines = done.stdout.splitlines()
    assert lines[2] == "together about 2.1 h"
    assert re.match(r"localize: failed with status \d, see .*localize\.log", lines[3])
    assert lines[4].startswith("cifar10: failed")
    assert not list((tmp_path / "out").glob("*.json"))
    for wrong, told in (
        (["--only", "photograph", "--data-root", "."], "--only photograph: there is no such result"),
        (["--only", "cifar10"], "--data-root DIR: where the data sets lie"),
        (["--quick"], "--quick takes --out DIR"),
    ):
        assert told in bench("run_all.py", *wrong, cwd=tmp_path, status=2).stderr
