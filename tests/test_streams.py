"""Standard output and error that are closed, full, or read no further: one line, the right exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest

ROOT = Path(__file__).parent.parent
MODEL = "zoo:fashion-mnist/ankle-boot"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of trousers, which are no boots."""
    folder = tmp_path_factory.mktemp("images")
    for path in sorted((ROOT / "tests" / "data" / "fashion" / "test" / "trouser").iterdir())[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which `pad` is the command."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    prelude = f'pad() {{ "{sys.executable}" -m pad "$@"; }}; '
    return subprocess.run(["bash", "-c", prelude + line], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("out", ["", "--out - --format json"])
def test_the_verdict_counts_when_nobody_reads_on(images: Path, out: str, unbuffered: str) -> None:
    line = f"pad evaluate {MODEL} {images} --fail-on-anomaly {out} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = shell(line, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", ["evaluate MODEL IMAGES", "evaluate MODEL IMAGES --out -", "zoo list", "--help"]
)
def test_a_full_disk_under_the_output(images: Path, words: str, unbuffered: str) -> None:
    words = words.replace("MODEL", MODEL).replace("IMAGES", str(images))
    done = shell(f"pad {words} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("pad: ")]
    assert lines == ["pad: cannot write to standard output: No space left on device"]
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_closed_output_is_told_before_any_work(images: Path) -> None:
    done = shell(f"pad evaluate {MODEL} {images} >&-")
    assert done.returncode == 2
    assert done.stderr == (
        "pad: standard output is closed; to see nothing of it, redirect it to the null device\n"
    )


def test_errors_that_cannot_be_told_keep_their_status(images: Path) -> None:
    done = shell(f"pad evaluate {MODEL} {images} --fail-on-anomaly 2>&-")
    assert done.returncode == 3
    assert "2 flagged as anomalous" in done.stdout
    for stream in ("2>&-", "2>/dev/full", ">&- 2>&-"):
        assert shell(f"pad evaluate {MODEL} {images}/none {stream}").returncode == 2


def test_no_file_takes_the_place_of_a_closed_stream(images: Path, tmp_path: Path) -> None:
    done = shell(f"pad evaluate {MODEL} {images} --out {tmp_path} <&- 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3


def test_a_terminal_without_the_letter_is_given_its_number(tmp_path: Path, images: Path) -> None:
    done = shell(f"pad evaluate {MODEL} {images} no{chr(0xEB)}l", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 2
    assert "no\\xebl: no such file" in done.stderr


CONTROL = "a\x1b[2J\n\x07\u202eb"
ESCAPED = r"a\x1b[2J\n\x07\u202eb"


def test_control_characters_of_names_do_not_reach_the_terminal(images: Path, tmp_path: Path) -> None:
    first = next(images.iterdir())
    folder = tmp_path / CONTROL
    folder.mkdir()
    (folder / f"{CONTROL}.png").write_bytes(first.read_bytes())
    (folder / f"{CONTROL}2.png").write_bytes(b"no picture")

    def run(*words: Any, status: int = 0) -> str:
        done = forked.run(["-m", "pad", *map(str, words)])
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        assert all(line.isprintable() for line in said.split("\n")), said
        assert ESCAPED in said
        return said

    assert "skipped" in run("evaluate", MODEL, folder)
    assert "skipped" in run("calibrate", MODEL, folder, "--out", tmp_path / "model")
    run("evaluate", MODEL, tmp_path / f"{CONTROL}none", status=2)
    run("evaluate", tmp_path / f"{CONTROL}none", folder, status=2)
    run("train", "--data", folder, "--out", tmp_path / "run", "--set", f"{CONTROL}=3", status=2)
    run("train", "--data", folder, "--out", tmp_path / "run", "--set", f'fit="{CONTROL}"', status=2)
    run("zoo", "show", CONTROL, status=2)
    run(CONTROL, status=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seed -1", "'seed' cannot be -1; it takes a whole number from 0"),
        (f"--seed {2**70}", f"'seed' cannot be {2**70}"),
        ("--set augment_shift=10000000 size=28", "'augment_shift' cannot be 10000000"),
        ("--set batch_size=1000000000", "'batch_size' cannot be 1000000000"),
        (f"--set learning_rate=1{'0' * 400}", "'learning_rate' cannot be 1000"),
        (f"--set latent_dim=0x{'f' * 5000}", "'latent_dim' cannot be <int that is too large to show>"),
        ("--set drift=.inf", "'drift' cannot be inf"),
        ("--set refine_steps=2000000", "'refine_steps' cannot be 2000000"),
        ("--set backbone_scale=8 size=256", "'backbone_scale' cannot be 8.0"),
        ("--set fit=[crop]", "'fit' cannot be ['crop']"),
        ("--set crop=2001-99-99", "'2001-99-99' is not a value"),
    ],
)
def test_settings_out_of_all_bounds(words: str, message: str, boots: Path, tmp_path: Path) -> None:
    done = shell(f"pad train --data {boots} --out {tmp_path}/run --device cpu {words}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_batch_size_out_of_all_bounds(images: Path) -> None:
    done = shell(f"pad evaluate {MODEL} {images} --batch-size 1000000000")
    assert done.returncode == 2
    assert "--batch-size: takes a whole number of at least 1, at most 16,384" in done.stderr
