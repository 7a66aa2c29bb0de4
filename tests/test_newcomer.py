"""What README.md says to type is typed: its blocks of code, in order, in a folder as a newcomer has it.

A comment `<!-- newcomer: ... -->` before a block says what is different here: `not run, REASON`, or
`with ARGUMENTS` that end a program which else would go on. Installing is left out: the tests run installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
BLOCK = re.compile(r"(?:<!-- newcomer: ([^>]*) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
INSTALLING = re.compile(r"^python -m pip install \S+( && |$)", re.M)


def blocks() -> list[tuple[str, str, str]]:
    """(what is different, language, code) of each block of README.md."""
    return BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tree, and folders of the names that README.md uses, filled from tests/data and the zoo."""
    for name in ("train.py", "evaluate.py", "zoo"):
        (tmp_path / name).symlink_to(ROOT / name)
    boots = sorted((DATA / "fashion" / "train" / "ankle-boot").iterdir())
    for folder, images in {
        "my_normal_images": boots[:24],
        "new_images": sorted((DATA / "fashion" / "test").glob("*/*"))[::20],
        "camera": sorted((DATA / "fashion" / "test" / "bag").iterdir())[:3],
        "incoming": boots[:4],  # of those learnt from, so that none is flagged
    }.items():
        (tmp_path / folder).mkdir()
        for image in images:
            shutil.copy(image, tmp_path / folder)
    for name, sample in {"a.png": "normal/003.png", "b.png": "pasted/002.png"}.items():
        shutil.copy(ROOT / "zoo" / "surfaces" / "gravel" / "samples" / sample, tmp_path / name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return tmp_path


def run(different: str, language: str, code: str, place: Path) -> None:
    """One block; fails with what it printed."""
    if language == "python":
        command = [sys.executable, "-W", "error::UserWarning:__main__", "-c", code]
    else:
        code = INSTALLING.sub("", code)
        if different.startswith("with "):
            code = code.rstrip() + different.removeprefix("with") + "\n"
        command = ["bash", "-euo", "pipefail", "-c", f'pad() {{ python -m pad "$@"; }}\n{code}']
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_what_the_readme_says_to_type_works(place: Path) -> None:
    for different, language, code in blocks():
        if not different.startswith("not run, "):
            run(different, language, code, place)
    for made in (
        "results/report.html",
        "cleaning/report.html",
        "runs/mine/model/model.safetensors",
        "runs/camera.jsonl",
        "model.onnx",
        "models/mine/model.safetensors",
    ):
        assert (place / made).is_file(), made
    assert len((place / "runs" / "camera.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_hardly_a_block_is_left_out() -> None:
    found = blocks()
    assert len(found) > 6
    assert [different for different, _, _ in found if different.startswith("not run, ")] == [
        "not run, it is the tests themselves"
    ]


def test_what_installs_is_what_ci_runs() -> None:
    ci = " ".join((ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("\\\n", " ").split())
    for line in (line for _, _, code in blocks() for line in code.splitlines() if "pip install" in line):
        ran = line.replace("pip install", "pip install --quiet").replace(
            "results ", '"$environment/results" '
        )
        assert ran in ci, line
