"""Runs `pad ...` in a process of its own, as the console command does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """`pad WORDS`; with status 2 it says why in one line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pad", *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if status == 2:
        assert len(done.stderr.strip().splitlines()) == 1
    return done
