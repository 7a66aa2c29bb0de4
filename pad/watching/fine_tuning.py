"""The generator learns what was accepted, in a process beside the watcher: nice, and on one thread.

It is fine-tuned as `pad train --from` does it, images of the old normal replayed among the accepted ones, and
three times: without the one half of the pictures, without the other, and on all. The first two score what
they have not seen, by which the new normal is calibrated (pad/watching/new_normal.py); the third is kept. The
old normal goes on being judged by the generator that it has always been judged by.

A process that is killed leaves nothing, or the whole file; so it is begun again, or taken.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import Tensor

from pad.config import Config
from pad.detector import Detector
from pad.errors import PadError
from pad.learning.images import MemoryImages
from pad.learning.plan import fine_tuned_recipe
from pad.learning.replay import MixedImages, Replay, generator_of, make_replay
from pad.learning.run import start_from
from pad.learning.trainer import Trainer, check_losses, check_weights
from pad.store.hub import resolve_model
from pad.store.model_folder import fingerprint
from pad.views.generator import GeneratorView
from pad.watching.features import pictures, unpacked
from pad.watching.learnt import Learnt, read
from pad.watching.new_normal import NewNormal
from pad.watching.request import WatchRequest
from pad.watching.state import State

log = logging.getLogger(__name__)

FOLDS = 2
NICE = 19
_SECONDS = 5.0  # for a process to end


class Tuner:
    """Has the generator learn one proposal after the other. Of one thread.

    request: of the watch, by which the process loads the model.
    """

    def __init__(self, request: WatchRequest, device: str) -> None:
        self._request, self._device = request, device
        self._work: _Work | None = None
        self._given_up: set[int] = set()

    def follow(self, lacking: Sequence[int]) -> int | None:
        """Works on what is normal and not learnt yet, and on nothing else; a proposal that is learnt now."""
        if self._work is not None:
            if self._work.proposal not in lacking:  # it was taken back
                self.stop()
            elif self._work.process.exitcode is not None:
                return self._ended(self._work)
        todo = [proposal for proposal in lacking if proposal not in self._given_up]
        if self._work is None and todo:
            self._work = self._begin(todo[0])
        return None

    def _begin(self, proposal: int) -> _Work:
        context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=learn, args=(self._request, self._device, proposal, os.getpid(), theirs), daemon=True
        )
        with _without_interrupts():
            process.start()
        theirs.close()
        return _Work(proposal, process, ours, time.monotonic())

    def _ended(self, work: _Work) -> int | None:
        self._work = None
        try:
            reason = work.answer.recv()
        except EOFError:
            reason = "its process was killed"
        finally:
            work.answer.close()
        if reason:
            self.give_up(work.proposal)
            log.warning("the generator does not learn proposal %d: %s", work.proposal, reason)
            return None
        seconds = time.monotonic() - work.begun
        log.info("the generator has learnt proposal %d, after %.0f s", work.proposal, seconds)
        return work.proposal

    def give_up(self, proposal: int) -> None:
        """Not to be tried again."""
        self._given_up.add(proposal)

    def stop(self) -> None:
        """Ends what is at work; it will be begun again."""
        if self._work is not None:
            self._work.process.kill()
            self._work.process.join(_SECONDS)
            self._work.answer.close()
            self._work = None


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that begins within ignores the terminal's Ctrl-C from its first moment on: its watcher ends
    it. So do we, for as long as that takes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class _Work:
    proposal: int
    process: BaseProcess
    answer: Connection
    begun: float


# In the process beside it -------------------------------------------------------------------------


def learn(request: WatchRequest, device: str, proposal: int, parent: int, answer: Connection) -> None:
    """Has a generator learn a proposal, and writes it beside the state; says "", or why it cannot.

    parent: the process without which it ends.
    """
    if hasattr(os, "nice"):
        os.nice(NICE)
    torch.set_num_threads(1)

    def still_wanted() -> None:
        if os.getppid() != parent:
            raise SystemExit(1)

    try:
        state = State(request.state)
        folder = resolve_model(request.model)
        if fingerprint(folder) != state.fact("model"):
            raise PadError(f"{request.model} is another model than it was")
        start = Detector.load(
            folder, device, request.backbone_weights, request.allow_downloads, request.view_backbone_weights
        )
        still_wanted()
        kept = state.members(proposal)
        events, path = [member.event for member in kept], state.generator(proposal)
        if not _is_there(path, events, generator_of(start)):
            learnt = learnt_of(start, [member.features for member in kept], request.fpr, still_wanted)
            learnt.write(path, events)
        answer.send("")
    except PadError as error:
        answer.send(str(error))


def _is_there(path: Path, events: Sequence[int], like: GeneratorView) -> bool:
    """Whether it was learnt before, by a process whose watcher was killed, or before a rollback."""
    try:
        read(path, events, like)
    except PadError:
        return False
    return True


def learnt_of(
    start: Detector, features: Sequence[bytes], fpr: float, still_wanted: Callable[[], None] = lambda: None
) -> Learnt:
    """What the generator of `start` learns of accepted pictures, as the state keeps them.

    still_wanted: called between two steps; may raise. Raises PadError where the pictures are not kept.
    """
    assert start.quick is not None
    accepted = pictures(list(features))
    if accepted is None:
        raise PadError("its pictures are not kept: they were flagged by an older version of pad")
    alike = NewNormal(unpacked(list(features)), start.quick, fpr).alike
    accepted = accepted[torch.from_numpy(alike)]
    replay = make_replay(start, len(accepted))
    config = fine_tuned_recipe(start.config)

    def tuned(chosen: Tensor) -> GeneratorView:
        return _tuned(start, config, accepted[chosen], replay, still_wanted)

    fold = torch.arange(len(accepted)) % FOLDS
    held_out, own, other = torch.empty(len(accepted)), 0.0, 0.0
    for number in range(FOLDS):
        view, x = tuned(fold != number), accepted[fold == number]
        held_out[fold == number] = view.score(x)
        sums = view.explained(x)
        own, other = own + sums[0], other + sums[1]
    return Learnt(tuned(fold >= 0), held_out, min(max(1 - own / max(other, 1e-12), 0.0), 1.0))


def _tuned(
    start: Detector, config: Config, new: Tensor, replay: Replay, still_wanted: Callable[[], None]
) -> GeneratorView:
    """Encoder and generator of `start` after some steps on new images and the replay. What the score knows of
    errors on normal images stays."""
    similarity = generator_of(start).similarity
    images = MixedImages(MemoryImages(new), replay.training, config.size)
    trainer = Trainer(config, images, start.device, None, similarity)
    start_from(trainer, start)
    for step in range(config.steps):
        check_losses(trainer.step(step / config.steps), step)
        still_wanted()
    check_weights(trainer)
    return GeneratorView(start.config, trainer.averaged, similarity, start.device)
