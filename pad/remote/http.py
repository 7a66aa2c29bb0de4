"""Asking a server that may lie, hang or never end: HTTP answers bounded in bytes, in time, and in where they
lead.

Python's own client does the talking: it decompresses nothing, and stops at 64 kB of one header line and at a
hundred lines. What is added here: one time limit over everything, counted from the beginning, which also ends
an answer that comes a byte a second; redirects by our own rules; and no more bytes than were asked for.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from pad.errors import one_line

BLOCK = 1 << 16  # bytes read at a time
REDIRECTS = 5
SECONDS = "PAD_HUB_SECONDS"  # environment: how long the hub may take, besides what the files' sizes allow
SILENCE = 20.0  # seconds without a byte after which a connection counts as dead


class ServerError(Exception):
    """A server that cannot be reached, answers nonsense, or fails; its text is one line."""


class Unreachable(ServerError):
    """No connection, no answer, or not in time."""


class Cut(ServerError):
    """The connection broke in the middle of an answer: worth another attempt."""


class Refused(ServerError):
    """An answer with an error status; `code` and `said` are the hub's X-Error-Code and X-Error-Message."""

    def __init__(self, status: int, code: str, said: str) -> None:
        super().__init__(f"answers with error {status}{f' ({said})' if said else ''}")
        self.status, self.code, self.said = status, code, said


class Deadline:
    """When an exchange of several questions and answers must be over; `seconds` counts from the beginning."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begun = time.monotonic()

    def extend(self, seconds: float) -> None:
        """Allows so much more."""
        self.seconds += seconds

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._begun + self.seconds - time.monotonic())


@dataclass
class Answer:
    """The answer of a server, its body not yet read. Among its `headers`, in lower case, are the X-... ones
    of the answers on the way to this one that came from the host that was asked."""

    status: int
    headers: dict[str, str]
    _response: Any
    _expired: Callable[[], bool]
    _deadline: Deadline

    def blocks(self, limit: int) -> Iterator[bytes]:
        """The body. Raises ServerError if it is longer than `limit` bytes, Cut if it breaks off."""
        total = 0
        while True:
            try:
                block = self._response.read1(BLOCK)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise _network_error(error, self._expired(), self._deadline, Cut) from None
            if not block:
                break
            total += len(block)
            if total > limit:
                raise ServerError(f"sends more than the {limit:,} bytes that are due")
            yield block
        if self._expired():
            raise _network_error(None, True, self._deadline, Cut)


@contextlib.contextmanager
def ask(
    url: str, headers: Mapping[str, str], deadline: Deadline, method: str = "GET", follow: bool = True
) -> Iterator[Answer]:
    """The answer to a question.

    Args:
        url: http or https; a user and a password in it are sent as such.
        headers: sent along; `Authorization` only to this host.
        deadline: ends the exchange wherever it is.
        method: GET or HEAD.
        follow: whether a redirect to another host is followed; one inside the host always is.

    Raises Refused for an error status, Unreachable or another ServerError where there is no good answer.
    """
    url, password = _without_password(url)
    first = _address(url)
    origin, marks = _origin(first), dict[str, str]()
    sent = {**password, **headers, "Accept-Encoding": "identity"}
    for _ in range(REDIRECTS + 1):
        with _exchange(url, sent, method, deadline) as answer:
            if _origin(_address(url)) == origin:
                marks |= {key: value for key, value in answer.headers.items() if key.startswith("x-")}
                answer.headers = marks | answer.headers
            location = answer.headers.get("location")
            if not (300 <= answer.status < 400 and location):
                _check(answer)
                yield answer
                return
            target, _ = _without_password(_joined(url, location))
            there = _address(target)
            if first.scheme == "https" and there.scheme != "https":
                raise ServerError("redirects from https to a connection that anybody can read")
            if _origin(there) != origin:
                if not follow:
                    yield answer
                    return
                sent = {key: value for key, value in sent.items() if key.lower() != "authorization"}
            url = target
    raise ServerError(f"redirects more than {REDIRECTS} times")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return location  # _address says what is wrong with it


def _address(url: str) -> SplitResult:
    """The parts of an address. Raises ServerError for one that is not http or https, or none at all."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isascii()
        _ = parts.port  # ValueError if it is no number
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise ServerError(f"leads to an address that is none: {one_line(url, 80)}")
    return parts


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def _check(answer: Answer) -> None:
    """Raises ServerError unless it is a good answer as it stands."""
    if answer.status not in (200, 206):
        said, code = (answer.headers.get(key, "") for key in ("x-error-message", "x-error-code"))
        raise Refused(answer.status, one_line(code, 80), one_line(said))
    if (encoding := answer.headers.get("content-encoding", "identity")) != "identity":
        raise ServerError(f"sends packed content ({one_line(encoding, 40)}), which was not asked for")


@contextlib.contextmanager
def _exchange(url: str, headers: Mapping[str, str], method: str, deadline: Deadline) -> Iterator[Answer]:
    """One question and one answer, whatever its status."""
    with _watch(deadline) as (register, expired):
        try:
            request = urllib.request.Request(url, headers=dict(headers), method=method)
            response = _opener(register).open(request, timeout=min(SILENCE, deadline.left + 1))
            known = {key.lower(): value for key, value in response.headers.items()}
            answer = Answer(int(response.status), known, response, expired, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _network_error(error, expired(), deadline, Unreachable) from None
        with contextlib.closing(response):
            if expired():  # then the end of the headers may have been the end of the connection
                raise _network_error(None, True, deadline, Unreachable)
            yield answer


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """An address such as http://user:password@host without the first two, and the header that says them."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    if not at:
        return url, {}
    said = base64.b64encode(unquote(user).encode()).decode()
    return f"{scheme}://{host}{slash}{path}", {"authorization": f"Basic {said}"}


def _network_error(
    error: Exception | None, expired: bool, deadline: Deadline, kind: type[ServerError]
) -> ServerError:
    if expired:
        return Unreachable(
            f"does not answer whole within {deadline.seconds:.0f} s ({SECONDS} sets the limit)"
        )
    reason = getattr(error, "reason", error)  # of urllib's URLError, what lies below
    if isinstance(reason, TimeoutError):
        return Unreachable(f"says nothing for {SILENCE:.0f} s")
    text = one_line(str(getattr(reason, "strerror", None) or reason), 150)
    nonsense = isinstance(error, http.client.HTTPException | ValueError)
    broken = isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead)
    if nonsense and not broken:
        return ServerError(f"does not speak HTTP ({type(error).__name__}: {text})")
    return kind(text or type(reason).__name__)


@contextlib.contextmanager
def _watch(deadline: Deadline) -> Iterator[tuple[Callable[[socket.socket], None], Callable[[], bool]]]:
    """Shuts the connections that are registered when the deadline is over: whoever reads them sees an end."""
    over = threading.Event()
    connections: list[socket.socket] = []

    def shut(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # the bare one, below any encryption

    def end() -> None:
        over.set()
        for connection in connections:
            shut(connection)

    def register(connection: socket.socket) -> None:
        connections.append(connection)
        if over.is_set():
            shut(connection)

    timer = threading.Timer(deadline.left, end)
    timer.daemon = True
    timer.start()
    try:
        yield register, over.is_set
    finally:
        timer.cancel()


def _opener(register: Callable[[socket.socket], None]) -> urllib.request.OpenerDirector:
    """Python's client with the proxies of the environment, without redirects, errors as plain answers, and
    each connection registered."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            register(self.sock)

    class Encrypted(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            register(self.sock)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Plain, request)

    class EncryptedHandler(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Encrypted, request, context=_trust())

    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), PlainHandler(), EncryptedHandler()):
        opener.add_handler(handler)
    return opener


def _trust() -> ssl.SSLContext:
    """The certificates that are trusted: the system's (or SSL_CERT_FILE's), and those that come with the
    hub's client, for systems that have none."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
