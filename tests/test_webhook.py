"""The webhook: signed, tried until it is taken, kept across restarts, to one address alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pad.errors import PadError
from pad.watching.state import MOST_DELIVERIES, State
from pad.watching.webhook import SECRET, Webhook

KEY = "a secret of the tests, not short"


class Receiver:
    """A server that takes what comes, after it has refused what `statuses` say."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, dict(self.headers.items()), body))
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setenv(SECRET, KEY)
    return State(tmp_path, create=True)


def tell(state: State, identity: str) -> None:
    with state.transaction():
        state.add_delivery(identity, json.dumps({"id": identity}), time.time())


def wait_for(what: Callable[[], Any]) -> None:
    limit = time.monotonic() + 30
    while not what():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.02)


def test_messages_are_signed(state: State, receiver: Receiver) -> None:
    with Webhook(f"{receiver.url}/hook?a=1", state.folder):
        tell(state, "one")
        wait_for(lambda: receiver.got)
    path, headers, body = receiver.got[0]
    assert path == "/hook?a=1"
    assert json.loads(body) == {"id": "one"}
    signed = headers["X-Pad-Timestamp"].encode() + b"." + body
    expected = hmac.new(KEY.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-Pad-Signature"] == f"sha256={expected}"
    assert abs(int(headers["X-Pad-Timestamp"]) - time.time()) < 30
    assert state.deliveries() == 0


def test_they_are_tried_until_they_are_taken(
    state: State, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500, 302]
    with Webhook(receiver.url, state.folder):
        tell(state, "one")
        wait_for(lambda: len(receiver.got) == 3)
        wait_for(lambda: state.deliveries() == 0)
    assert {path for path, _, _ in receiver.got} == {"/"}  # no redirect is followed
    assert {json.loads(body)["id"] for _, _, body in receiver.got} == {"one"}
    assert caplog.text.count("trying again") == 1


def test_they_are_kept_while_nobody_listens(state: State, receiver: Receiver) -> None:
    with Webhook("http://127.0.0.1:9/", state.folder):
        tell(state, "one")
        tell(state, "two")
        wait_for(lambda: state.due_delivery(0.0) is None and state.due_delivery(time.time() + 100)[2] > 0)
    assert state.deliveries() == 2
    with Webhook(receiver.url, state.folder):  # a new start
        wait_for(lambda: state.deliveries() == 0)
    assert sorted(json.loads(body)["id"] for _, _, body in receiver.got) == ["one", "two"]


def test_what_waits_is_bounded(state: State) -> None:
    with state.transaction():
        for number in range(MOST_DELIVERIES + 5):
            state.add_delivery(f"{number:06d}", "{}", float(number))
    assert state.deliveries() == MOST_DELIVERIES
    assert state.due_delivery(1e9) == ("000005", "{}", 0)


@pytest.mark.parametrize(
    "url", ["ftp://host/", "host/path", "http://", "http://user:word@host/", "http://host:port/"]
)
def test_senseless_addresses(url: str, state: State) -> None:
    with pytest.raises(PadError, match="--webhook takes an address"):
        Webhook(url, state.folder)


def test_without_a_secret(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "short")
    with pytest.raises(PadError, match=SECRET):
        Webhook("http://127.0.0.1/", state.folder)
