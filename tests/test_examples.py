"""The scripts in examples/, each run as it stands on the pictures of the tests."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from PIL import Image

import pad
from pad.watching.state import State

ROOT = Path(__file__).parent.parent
KINDS = (".py", ".sh", ".ipynb")
EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.suffix in KINDS)


def run(name: str, *words: object) -> str:
    """Its standard output. `python` is the one that runs the tests."""
    program = [sys.executable] if name.endswith(".py") else ["sh"]
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [*program, str(ROOT / "examples" / name), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def verdicts(folder: Path) -> dict[str, str]:
    with (folder / "scores.csv").open() as file:
        return {row["path"]: row["verdict"] for row in csv.DictReader(file)}


def test_own_folder(fashion: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = run("own_folder.sh", fashion / "train" / "ankle-boot", fashion / "test", out)
    assert "dry run: nothing was written\nfitting the views whole, middle, parts on 120 images" in told
    found = verdicts(out / "results")
    assert len(found) == 140
    others = [verdict for path, verdict in found.items() if "/normal/" not in path]
    assert others.count("anomaly") > len(others) / 2
    assert (out / "results" / "report.html").is_file()
    assert (out / "results" / "summary.json").is_file()


def test_from_python(fashion: Path, tmp_path: Path) -> None:
    bags = fashion / "test" / "bag"
    told = run("from_python.py", fashion / "train" / "ankle-boot", bags, tmp_path / "model")
    lines = told.splitlines()
    assert len(lines) == 20
    assert sum("anomaly" in line for line in lines) > 10
    images = sorted(bags.glob("*.png"))
    scores = pad.load(tmp_path / "model").score(images)
    for line, path, score in zip(lines, images, scores, strict=True):
        assert line.startswith(f"{path.name}  score {score:7.3f}")


def test_fine_tuning(fashion: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = run("fine_tuning.sh", fashion / "test" / "sneaker", "zoo:fashion-mnist/ankle-boot", out)
    assert "old normal, held out" in told
    assert len(verdicts(out / "results")) == 60


def test_explanations(fashion: Path, tmp_path: Path) -> None:
    told = run("explanations.py", "zoo:fashion-mnist/ankle-boot", fashion / "test" / "bag", tmp_path / "why")
    assert len(told.splitlines()) == 5
    assert "p-value" in told
    pictures = sorted((tmp_path / "why").iterdir())
    assert len(pictures) == 5
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width > 3 * 28


def test_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    done = nbclient.NotebookClient(notebook, timeout=250, kernel_name="python3").execute(
        cwd=str(ROOT / "examples")
    )
    shown = [output.get("data", {}) for cell in done.cells for output in cell.get("outputs", ())]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert "whole+middle+parts" in pages[0]  # the detector
    assert "<th>p_value</th>" in pages[1]  # the table
    assert 'src="data:image/png;base64,' in pages[2]  # the explanation
    assert shown[-1]["text/plain"].startswith("array([")


def test_stream(fashion: Path, tmp_path: Path) -> None:
    pad.fit(fashion / "train" / "ankle-boot", steps=0).save(tmp_path / "model")
    told = run("stream.py", tmp_path / "model", fashion / "test" / "trouser", tmp_path / "state", 0)
    lines = told.splitlines()
    assert len(lines) == 20
    assert sum("anomaly" in line for line in lines) >= 18
    assert sum("like proposal 1" in line for line in lines) >= 3
    state = State(tmp_path / "state")
    assert [(p.id, p.status) for p in state.proposals()] == [(1, "open")]


def test_onnx_without_pad(fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (ROOT / "examples" / "onnx_without_pad.py").read_text()
    assert "import pad" not in source
    assert "torch" not in source
    graph = tmp_path / "boot.onnx"
    words = [sys.executable, "-m", "pad", "export", "zoo:fashion-mnist/ankle-boot", "--out", graph]
    subprocess.run(words, check=True, capture_output=True, timeout=250, cwd=ROOT)
    paths = [*sorted((fashion / "test" / "normal").glob("*.png"))[:5],
             *sorted((fashion / "test" / "bag").glob("*.png"))[:5]]  # fmt: skip
    script = ROOT / "examples" / "onnx_without_pad.py"
    done = subprocess.run(
        [sys.executable, script, graph, *paths], capture_output=True, text=True, cwd=tmp_path, timeout=100
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 11
    p_values = pad.load("zoo:fashion-mnist/ankle-boot", device="cpu", precision="float32").p_values(paths)
    for line, path, p_value in zip(lines, paths, p_values, strict=False):
        assert line.startswith(f"{path}: {'anomaly' if p_value <= 0.05 else 'normal'}")
        assert line.endswith(f"p-value {p_value:.4f}")
    with Image.open(tmp_path / "anomaly.png") as picture:
        assert picture.size == (256, 256)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_a_test(name: str) -> None:
    assert f"test_{name.partition('.')[0]}" in globals()
