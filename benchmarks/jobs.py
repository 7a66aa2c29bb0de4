"""Benchmarks as programs: how one ends, and processes side by side, each with its share of the processor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pad.errors import PadError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def exit_status(run: Callable[[], int | None]) -> int:
    """What `run` returns, 0 for None; 2 and one line on standard error for a PadError."""
    try:
        return run() or 0
    except PadError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2


def side_by_side(commands: Mapping[str, Sequence[str]], jobs: int, logs: Path) -> list[str]:
    """Runs every command (the arguments of Python), at most `jobs` at a time; output goes to `logs`/NAME.log.

    Returns the names of those that failed. A thread count already set in the environment is the total that
    is shared; else the cores are.
    """
    total = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    share = str(max(1, total // max(1, min(jobs, len(commands)))))
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, share)}
    logs.mkdir(parents=True, exist_ok=True)

    def run(name: str) -> tuple[int, float]:
        begun = time.perf_counter()
        with (logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *commands[name]], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            return process.wait(), time.perf_counter() - begun

    failed = []
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        running = {pool.submit(run, name): name for name in commands}
        try:
            for count, future in enumerate(as_completed(running), 1):
                name, (status, seconds) = running[future], future.result()
                outcome = f"{seconds:.0f} s" if status == 0 else f"failed, see {logs / name}.log"
                print(f"[{count}/{len(commands)}] {name}: {outcome}", file=sys.stderr, flush=True)
                if status:
                    failed.append(name)
        except KeyboardInterrupt:  # the processes have had the signal too, and save themselves
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def use_share_of_processor() -> None:
    """Holds torch to the number of threads that `side_by_side` gave this process."""
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
