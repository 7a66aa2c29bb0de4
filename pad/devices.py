"""The one place that knows of devices and number formats."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from typing import Any, TypeVar

import torch

from pad.errors import PadError

Item = TypeVar("Item")
Result = TypeVar("Result")

LEAST_IN_LANE = 16  # in a part of a batch: fewer leave a convolution too little to do
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h; 32 MiB is the largest threshold for the latter


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name: auto (CUDA, then MPS, then CPU), cpu, cuda[:i] or mps. Raises PadError if it is
    not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.split(":")[0]
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in present:
        raise PadError(f"--device takes auto, cpu, cuda or mps, not '{name}'")
    if not present[kind]:
        raise PadError(f"--device {name}: this machine has none that torch can use; try --device auto")
    if kind == "cpu":
        keep_freed_memory()
    return torch.device(name)


@functools.cache
def keep_freed_memory() -> None:
    """Lets the C library keep the memory of freed activations for the next ones.

    By default glibc returns every large buffer to the system when it is freed, and the next layer pays for
    the same pages again: about a quarter of a training step or of scoring on a CPU. Elsewhere a no-op.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for parameter, value in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 512 << 20)):
            mallopt(parameter, value)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 or float32; "auto" is bfloat16 where the hardware multiplies in it."""
    if name == "bfloat16":
        return torch.bfloat16
    if name == "float32":
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
        return torch.bfloat16 if native else torch.float32
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Computes in this number format within, whatever is set outside; in a program that torch traces, which
    is of single precision (pad/export/graph.py), nothing is set: torch cannot save that."""
    if torch.compiler.is_compiling():
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def to_device(networks: torch.nn.ModuleDict, device: torch.device) -> torch.nn.ModuleDict:
    """The networks there, in the memory layout in which convolutions are quickest."""
    return networks.to(device).to(memory_format=torch.channels_last)


def lanes(device: torch.device, batch_size: int) -> int:
    """Into how many parts, worked on at the same time, a batch is best divided: one on a GPU; on a CPU, where
    small convolutions gain little from a second thread, up to one a thread."""
    return max(1, min(torch.get_num_threads(), batch_size // LEAST_IN_LANE)) if device.type == "cpu" else 1


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`function` of every item, in order, by so many threads among which torch's own are shared out.

    At most `workers` + 1 results wait to be taken. A single item is left to the calling thread and all of
    torch's; what is set for that thread (autocast, no_grad) does not reach the others.
    """
    iterator = iter(items)
    first = list(islice(iterator, 2))
    if workers == 1 or len(first) < 2:
        yield from map(function, chain(first, iterator))
        return
    threads = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, "lane", torch.set_num_threads, (max(1, threads // workers),))
    try:
        for item in chain(first, iterator):
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # new threads take the number that was set last
