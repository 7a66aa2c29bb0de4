"""`pad watch MODEL SOURCE --state DIR`: a stream is judged as it comes."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from pad.commands.extras import from_extra
from pad.commands.loading import load_detector
from pad.commands.requests import request_of
from pad.errors import PadError
from pad.store.hub import resolve_model
from pad.store.model_folder import fingerprint
from pad.watching.output import open_output
from pad.watching.request import WatchRequest
from pad.watching.source import open_source
from pad.watching.state import State
from pad.watching.watcher import Watcher
from pad.watching.webhook import Webhook


def watch(arguments: argparse.Namespace) -> int:
    """Until the source ends, or a signal comes."""
    if arguments.source is None:
        raise PadError("name a SOURCE after the MODEL: a folder, or - for standard input")
    if arguments.name is not None:
        raise PadError("--name goes with `pad watch reject ID`")
    request = request_of(WatchRequest, arguments)
    model = fingerprint(resolve_model(request.model))
    detector = load_detector(request)
    state = State(request.state, create=True)
    with state.locked():
        _same_model(state, model, request)
        source = open_source(request.source, state.is_seen)
        output = open_output(request.out_file, state)
        watcher = Watcher(detector, state, source, output, request)
        hook = Webhook(request.webhook, state.folder) if request.webhook else nullcontext()
        with _stopped_by_signals(watcher) as received, hook, _page(request, state):
            print(f"watching {request.source}; Ctrl-C stops it", file=sys.stderr, flush=True)
            watcher.run()
        source.close()
    return 128 + received[0] if received else 0


@contextmanager
def _page(request: WatchRequest, state: State) -> Iterator[None]:
    """The page that --port asks for, while the watcher runs."""
    if request.port is None:
        yield
        return
    with from_extra("pad.serving.page", "serve").served(state.folder, request.port) as url:
        print(f"page: {url}", file=sys.stderr, flush=True)
        yield


def _same_model(state: State, model: str, request: WatchRequest) -> None:
    """Raises PadError if the state is that of another model."""
    known = state.fact("model")
    if known is not None and known != model:
        raise PadError(
            f"{request.state} is the state of another model than {request.model}: name another --state"
        )
    with state.transaction():
        state.set_fact("model", model)


@contextmanager
def _stopped_by_signals(watcher: Watcher) -> Iterator[list[int]]:
    """Within, the first signal lets the watcher finish what it has begun; a second one ends it at once."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        watcher.stopping.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            print(
                f"stopped by {signal.Signals(received[0]).name}; all that was judged is kept", file=sys.stderr
            )
