"""`pad evaluate --ray`: the rows of a single process, whatever happens to the workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pad_process import ROOT, run

from pad.cluster.journal import Journal
from pad.judging.rows import Row
from pad.store.files import CannotWrite

MODEL = "zoo:fashion-mnist/ankle-boot"
SMALL = ("--batch-size", "4", "-q")
WATCHED = 0.02  # seconds between two looks


@pytest.fixture(scope="module")
def pictures(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 pictures with labels, and a broken one."""
    folder = tmp_path_factory.mktemp("many")
    for path in sorted((fashion / "test").glob("*/*.png")):
        (folder / path.parent.name).mkdir(exist_ok=True)
        for copy in range(5):
            os.link(shutil.copy(path, folder / "one"), folder / path.parent.name / f"{path.stem}-{copy}.png")
            (folder / "one").unlink()
    (folder / "normal" / "broken.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def plain(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    run("evaluate", MODEL, pictures, "--out", out, *SMALL)
    return out


def begin(*words: object) -> subprocess.Popen[str]:
    """`pad evaluate MODEL ... --ray`; with two threads it has two workers."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | {
        "OMP_NUM_THREADS": "2"
    }
    command = [sys.executable, "-m", "pad", "evaluate", MODEL, *map(str, words), "--ray", *SMALL]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def once_begun(
    process: subprocess.Popen[str], out: Path, act: Callable[[], None], before: int = 1
) -> tuple[str, str]:
    """Acts when there are more lines in the journal, but not all of them."""
    while process.poll() is None:
        time.sleep(WATCHED)
        journal = out / "scores.journal"
        if journal.is_file() and journal.read_bytes().count(b"\n") > before:
            act()
            return process.communicate(timeout=120)
    pytest.fail(f"ended too soon: {process.communicate()}")


def worker_of(process: int) -> int:
    """A process below another that scores."""
    below, parents = {process}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    while new := {child for child, parent in parents.items() if parent in below} - below:
        below |= new
    return next(
        found for found in below if Path(f"/proc/{found}/cmdline").read_text().startswith("ray::MapWorker")
    )


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_stopped_and_gone_on_with_and_a_worker_killed_the_rows_are_those_of_one_process(
    pictures: Path, plain: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra pad-anomaly[ray]")
    process = begin(pictures, "--out", tmp_path)
    _, error = once_begun(process, tmp_path, lambda: process.send_signal(signal.SIGTERM))
    assert process.returncode == 128 + signal.SIGTERM, error
    assert "Traceback" not in error
    before = (tmp_path / "scores.journal").read_bytes().count(b"\n")
    again = begin(pictures, "--out", tmp_path)
    kill = lambda: os.kill(worker_of(again.pid), signal.SIGKILL)  # noqa: E731
    _, error = once_begun(again, tmp_path, kill, before)
    assert again.returncode == 0, error
    assert error.startswith(f"{tmp_path}/scores.journal: {4 * (before - 1)} images are scored already\n")
    assert "broken.png" in error
    assert len(error.splitlines()) == 2
    for name in ("scores.csv", "summary.json"):
        assert (tmp_path / name).read_bytes() == (plain / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv", "summary.json"]


def test_what_a_cluster_cannot_do_is_said(pictures: Path, tmp_path: Path) -> None:
    assert "--report does not go with --ray" in run(
        "evaluate", MODEL, pictures, "--out", tmp_path, "--report", "--ray", status=2
    ).stderr  # fmt: skip
    assert "--ray 127.0.0.1:9: Connection refused" in run(
        "evaluate", MODEL, pictures, "--ray", "127.0.0.1:9", status=2
    ).stderr.replace("[Errno 111] ", "")
    assert "takes the model itself" in run("evaluate", "graph.onnx", pictures, "--ray", status=2).stderr


# The journal ---------------------------------------------------------------------------------------

ROWS = [
    Row("a.png", 0.1 + 0.2, 1 / 3, "normal", "", True, "kind", {"whole": 1 / 7}),
    Row("\udce9.png", error="is empty", anomalous=None),
]


def test_a_journal_gives_back_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j"
    with Journal(path, {"model": "x"}) as journal:
        assert journal.done == {}
        journal.add(3, ROWS)
        journal.add(0, [])
    with Journal(path, {"model": "x"}) as journal:
        assert journal.done == {3: ROWS, 0: []}
    with Journal(path, {"model": "y"}) as other:
        assert other.done == {}
        other.add(1, ROWS)
    with Journal(path, {"model": "x"}) as journal:
        assert journal.done == {}
        journal.remove()
    assert list(path.parent.iterdir()) == []


def test_a_kill_while_a_journal_is_written_loses_the_last_piece_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, {}) as journal:
        journal.add(0, ROWS)
        kept = len(path.read_bytes())
        journal.add(1, ROWS[:1])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with Journal(path, {}) as journal:
            assert journal.done == ({0: ROWS} if length >= kept else {})
            journal.add(1, ROWS[:1])
        with Journal(path, {}) as journal:
            assert journal.done == ({0: ROWS, 1: ROWS[:1]} if length >= kept else {1: ROWS[:1]})
    path.write_bytes(whole[:kept] + bytes(40) + b"\n" + whole[kept:])  # after a loss of power
    with Journal(path, {}) as journal:
        assert journal.done == {0: ROWS}


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match="cannot write"):
        Journal(tmp_path / "file" / "j", {})
