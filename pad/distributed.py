"""Training on several processes, as `torchrun --nproc-per-node N train.py ...` starts them: the same model.

All processes draw the same random numbers, for the whole batch; each computes its share of it, and what a
step takes from a batch (gradients, means, deviations) is reduced over all of them. So each holds the same
weights, and what is saved does not depend on how many there were, but for rounding. The first one writes and
speaks. With a single process nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pad.errors import PadError


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


@contextmanager
def processes() -> Iterator[None]:
    """Within, those that torchrun has started know each other; GPUs are handed out in order."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Until all are here."""
    if world() > 1:
        _together(dist.barrier)


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch (n, ...); n is divided by the number of processes without a rest."""
    return batch.chunk(world())[dist.get_rank()] if world() > 1 else batch


def gathered(part: Tensor) -> Tensor:
    """The whole batch of everybody's part, without gradients."""
    if world() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world())]
    _together(dist.all_gather, parts, part.contiguous())
    return torch.cat(parts)


def mean(part: Tensor) -> Tensor:
    """The mean over the processes, with gradients of every order."""
    return _Sum.apply(part) / world() if world() > 1 else part


def average(tensors: Sequence[Tensor | None]) -> None:
    """Sets gradients, in place, to their means over the processes: in one message."""
    there = [tensor for tensor in tensors if tensor is not None]
    if world() == 1 or not there:
        return
    flat = torch.cat([tensor.detach().flatten().float() for tensor in there])
    _together(dist.all_reduce, flat)
    for tensor, values in zip(there, (flat / world()).split([t.numel() for t in there]), strict=True):
        tensor.copy_(values.view_as(tensor))


def from_first(value: Any) -> Any:
    """What the first process has."""
    if world() == 1:
        return value
    values = [value]
    _together(dist.broadcast_object_list, values)
    return values[0]


def largest(value: int) -> int:
    """The largest of all."""
    if world() == 1:
        return value
    number = torch.tensor(value)
    _together(dist.all_reduce, number, dist.ReduceOp.MAX)
    return int(number)


class _Sum(torch.autograd.Function):
    """The sum over all processes. What everybody makes of it counts for everybody's gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.detach().clone().contiguous()
        _together(dist.all_reduce, total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def _together(operation: Any, *arguments: Any) -> None:
    try:
        operation(*arguments)
    except RuntimeError:  # of the backend: a connection that is closed
        raise PadError("another process of this training has ended; go on with --resume") from None
