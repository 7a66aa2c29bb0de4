"""Runs `pad ...` in a process of its own, as the console command does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import forked

ROOT = Path(__file__).parent.parent


def run(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """`pad WORDS`; with status 2 it says why in one line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = forked.run(["-m", "pad", *map(str, words)], env=environment)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if status == 2:
        assert len(done.stderr.strip().splitlines()) == 1
    return done
