"""Telling another program: what was found is posted to one address, signed, until it is taken.

Each message is kept in the state in the transaction of what it tells, and goes from there when the receiver
has answered with a status of 200 to 299: it arrives at least once, whatever is killed when; its `id` says
which it is. `X-Pad-Signature` is `sha256=` and the HMAC-SHA256, in hexadecimal, of `X-Pad-Timestamp`, a full
stop, and the body, under the secret in PAD_WEBHOOK_SECRET. No redirect is followed and no proxy asked.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from pad.errors import PadError, one_line
from pad.watching.state import State

log = logging.getLogger(__name__)

SECRET = "PAD_WEBHOOK_SECRET"  # environment
LEAST_SECRET = 16  # characters
TIMEOUT = 10.0  # seconds for an answer
LONGEST_WAIT = 600.0  # seconds between attempts; they begin with one and double
_POLL = 0.2  # seconds


class Webhook:
    """Sends what the state holds, in a thread of its own.

    Raises PadError for an address that is not http(s), or without a secret.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._secret = secret()
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or port == -1:
            raise PadError(f"--webhook takes an address like https://host/path, not '{url:.80}'")
        self._https, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._folder = folder
        self._stopping = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def __enter__(self) -> Webhook:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What is due is tried once more; the rest stays for the next time."""
        self._stopping.set()
        self._thread.join(TIMEOUT + 1)

    def _run(self) -> None:
        state = State(self._folder)
        try:
            while True:
                last = self._stopping.is_set()
                try:
                    sent = self._send_next(state)
                except sqlite3.Error as error:
                    log.warning("webhook: %s", error)
                    sent = False
                if not sent:
                    if last:
                        return
                    self._stopping.wait(_POLL)
        finally:
            state.close()

    def _send_next(self, state: State) -> bool:
        """Whether something was sent, and taken."""
        due = state.due_delivery(time.time())
        if due is None:
            return False
        identity, body, tries = due
        reason = self._post(body.encode())
        if reason:
            state.postpone(identity, time.time() + min(2.0 ** min(tries, 20), LONGEST_WAIT))
            if not self._failing:
                log.warning("webhook: %s; trying again", reason)
            self._failing = True
            return False
        state.delivered(identity)
        self._failing = False
        return True

    def _post(self, body: bytes) -> str:
        """Why it was not taken, or ""."""
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=TIMEOUT)
        try:
            connection.request("POST", self._path, body, self._headers(body))
            status = connection.getresponse().status
            return "" if 200 <= status < 300 else f"it answers with status {status}"
        except (OSError, http.client.HTTPException) as error:
            return one_line(str(error) or type(error).__name__)
        finally:
            connection.close()

    def _headers(self, body: bytes) -> dict[str, str]:
        now = str(int(time.time()))
        return {
            "Content-Type": "application/json",
            "User-Agent": "pad",
            "X-Pad-Timestamp": now,
            "X-Pad-Signature": f"sha256={signature(self._secret, now, body)}",
        }


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 of timestamp, full stop, body; in hexadecimal."""
    return hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def secret() -> bytes:
    """What messages are signed with. Raises PadError without one."""
    given = os.environ.get(SECRET, "")
    if len(given) < LEAST_SECRET:
        raise PadError(f"--webhook signs what it sends: set {SECRET} to at least {LEAST_SECRET} characters")
    return given.encode("utf-8", "surrogateescape")
