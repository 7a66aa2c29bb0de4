"""What a hub may answer that is not so: lies of a server, for tests of the real command against them.

A lie is a function of the handler of one request for a file of the repository (tests/hub_server.py); it
answers, or returns False where it leaves the answer to the honest server.
"""

from __future__ import annotations

import contextlib
import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass

from hub_server import Handler, git_id

WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
Answer = Callable[[Handler], object]


@dataclass(frozen=True)
class Lie:
    """What is answered (and, where it is not every request for a file, to which: method, name), and words
    that the one line of the command must hold; `harmless` where the model may come through all the same."""

    answer: Answer
    words: str
    method: str = "HEAD"
    name: str = ""
    harmless: bool = False

    def __call__(self, handler: Handler, name: str) -> bool:
        if handler.command != self.method or self.name not in ("", name):
            return False
        with contextlib.suppress(ConnectionError):  # the client has turned away
            return self.answer(handler) is not False
        return True


# What the honest server says of a file, with some of it changed.


def head(**changed: str | None) -> Answer:
    """A HEAD answer whose headers are changed, or left out where None."""

    def answer(handler: Handler) -> None:
        content = content_of(handler)
        commit = next(iter(handler.hub.repositories["org/boots"].commits))
        said: dict[str, str | None] = {
            "X_Repo_Commit": commit,
            "ETag": f'"{git_id(content)}"',
            "Content_Length": str(len(content)),
        }
        handler.send_response(200)
        for key, value in (said | changed).items():
            if value is not None:
                handler.send_header(key.replace("_", "-"), value.replace("OUTSIDE", handler.hub.outside))
        handler.end_headers()

    return answer


def redirect(location: str) -> Answer:
    return lambda handler: handler.answer(b"", 302, Location=location)


def raw(content: bytes, pause: float = 0.0, end: bool = True) -> Answer:
    """Bytes as they are; with a pause, one by one; at the end the connection is closed or left open."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        for piece in [content] if not pause else (content[i : i + 1] for i in range(len(content))):
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)
        if not end:
            time.sleep(30)

    return answer


def endless(start: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    """A piece again and again, until the client turns away."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(start)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def content_of(handler: Handler) -> bytes:
    """The file that was asked for, whatever it is served from."""
    last = handler.path.rsplit("/", 1)[-1]
    return handler.hub.storage.get(last) or next(
        files[last] for files in handler.hub.repositories["org/boots"].commits.values()
    )


def sent(change: Callable[[bytes], bytes], status: int = 200, **headers: str) -> Answer:
    """The file, changed."""

    def answer(handler: Handler) -> None:
        said = {key: value.replace("OUTSIDE", handler.hub.outside) for key, value in headers.items()}
        handler.answer(change(content_of(handler)), status, **said)

    return answer


def long_then_wrong_range(handler: Handler) -> object:
    """Half a file; and when the rest is asked for, another part of it."""
    content = content_of(handler)
    if handler.headers.get("Range"):
        return handler.answer(content[:10], 206, Content_Range=f"bytes 0-9/{len(content)}")
    handler.close_connection = True
    return handler.answer(content[: len(content) // 2], Content_Length=str(len(content)))


def hops(handler: Handler) -> object:
    """A redirect to ever new addresses."""
    path, _, count = handler.path.partition("?n=")
    return handler.answer(b"", 307, Location=f"{path}?n={int(count or 0) + 1}")


OK = b"HTTP/1.1 200 OK\r\n"
GOOD = "0123456789abcdef" * 4
SECRET = "\x1b[2J\x1b]0;owned\x07"

LIES = {
    # names that would become paths
    "an ETag that is an absolute path": Lie(head(ETag='"OUTSIDE/precious"'), "ETag that is no digest"),
    "an ETag that leads upwards": Lie(head(ETag='"../../../../outside/precious"'), "ETag that is no digest"),
    "a linked ETag that is a path": Lie(head(X_Linked_Etag='"OUTSIDE/precious"'), "ETag that is no digest"),
    "an ETag of 41 digits": Lie(head(ETag='"' + "a" * 41 + '"'), "ETag that is no digest"),
    "an ETag in capitals": Lie(head(ETag='"' + "A" * 40 + '"'), "ETag that is no digest"),
    "an ETag with a path behind": Lie(head(ETag='"' + "a" * 40 + '/../x"'), "ETag that is no digest"),
    "no ETag": Lie(head(ETag=None), "ETag that is no digest"),
    "an ETag of control characters": Lie(head(ETag=f'"{SECRET}"'), "ETag that is no digest"),
    "a commit that is an absolute path": Lie(head(X_Repo_Commit="OUTSIDE/x"), "commit"),
    "a commit that leads upwards": Lie(head(X_Repo_Commit="../../../../outside/x"), "commit"),
    "a commit of 39 digits": Lie(head(X_Repo_Commit="b" * 39), "commit"),
    "no commit": Lie(head(X_Repo_Commit=None), "commit"),
    "another commit for one of the files": Lie(head(X_Repo_Commit="c" * 40), "commit", name=CONFIG),
    "an honest HEAD, and a path for an ETag when it is fetched": Lie(
        sent(lambda content: content, ETag='"OUTSIDE/precious"', X_Repo_Commit="../../x"),
        "",
        method="GET",
        name=CONFIG,
        harmless=True,
    ),
    # sizes
    "no size": Lie(head(Content_Length=None), "without its size"),
    "a size below zero": Lie(head(X_Linked_Size="-5"), "without its size"),
    "a size that is no number": Lie(head(X_Linked_Size="1e9"), "without its size"),
    "a size of 4,000 digits": Lie(head(X_Linked_Size="9" * 4000), "without its size"),
    "weights of 5 GB": Lie(head(X_Linked_Size="5000000000"), "announces 5,000,000,000 bytes", name=WEIGHTS),
    "a config of 2 MB": Lie(head(Content_Length="2000000"), "announces 2,000,000 bytes", name=CONFIG),
    "weights of no bytes": Lie(head(X_Linked_Size="0"), "more than the 0 bytes", name=WEIGHTS),
    # where it leads
    "a redirect to itself": Lie(lambda h: h.answer(b"", 302, Location=h.path), "redirects more than 5 times"),
    "a redirect without end": Lie(hops, "redirects more than 5 times"),
    "a redirect to a file": Lie(redirect("file:///etc/passwd"), "address that is none"),
    "a redirect to ftp": Lie(redirect("ftp://127.0.0.1/x"), "address that is none"),
    "a redirect to half an address": Lie(redirect("http://[::1"), "address that is none"),
    "a redirect to a port that is none": Lie(redirect("http://h:99999999/"), "address that is none"),
    "a redirect that moves the cursor": Lie(redirect(f"http://h/{SECRET}"), "address that is none"),
    "a redirect when it is fetched": Lie(
        redirect("file:///etc/passwd"), "address that is none", "GET", CONFIG
    ),
    # contents
    "packed zeros": Lie(
        sent(lambda content: gzip.compress(bytes(1 << 20)) * 1024, Content_Encoding="gzip"),
        "packed content",
        "GET",
        CONFIG,
    ),
    "an endless body": Lie(
        endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(0x10000) + b"\r\n"),
        "sends more than the",
        "GET",
        CONFIG,
    ),
    "a body longer than announced": Lie(sent(lambda c: c + b"x"), "sends more than the", "GET", CONFIG),
    "a body that always breaks off": Lie(sent(lambda c: c[:9]), "breaks off", "GET", CONFIG),
    "other bytes": Lie(
        sent(lambda c: bytes(len(c))), "is not the file that the hub announced", "GET", CONFIG
    ),
    "a part where all was asked for": Lie(sent(lambda c: c, 206), "sends a part of the file", "GET", CONFIG),
    "another part than was asked for": Lie(long_then_wrong_range, "sends another part", "GET", CONFIG),
    "a page instead of the file": Lie(sent(lambda c: b"<html>"), "breaks off", "GET", CONFIG),
    "a chunk of no length": Lie(
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc"), "cannot download", "GET", CONFIG
    ),
    "a chunk below zero": Lie(
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc"), "cannot download", "GET", CONFIG
    ),
    # time
    "silence": Lie(raw(b"", end=False), "within 2 s"),
    "a byte at a time": Lie(raw(OK + b"ETag: x\r\n" * 50, pause=0.05), "within 2 s"),
    "headers without end": Lie(endless(OK + b"X-A: ", b"a", 0.1), "within 2 s"),
    "continue without end": Lie(endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), "within 2 s"),
    "a body of a byte at a time": Lie(
        endless(OK + b"Content-Length: 1500\r\n\r\n", b"a", 0.1), "within 2 s", "GET", CONFIG
    ),
    "silence in the middle of a body": Lie(
        raw(OK + b"Content-Length: 1500\r\n\r\nabc", end=False), "within 2 s", "GET", CONFIG
    ),
    # what is no HTTP
    "a line of 1 MB": Lie(raw(OK + b"X-A: " + b"a" * 1_000_000 + b"\r\n\r\n"), "does not speak HTTP"),
    "ten thousand headers": Lie(raw(OK + b"X-A: a\r\n" * 10_000 + b"\r\n"), "does not speak HTTP"),
    "no HTTP at all": Lie(raw(b"SSH-2.0-x\r\n" + b"\x00" * 100), "does not speak HTTP"),
    "a status that is no number": Lie(raw(b"HTTP/1.1 abc OK\r\n\r\n"), "does not speak HTTP"),
    "nothing": Lie(raw(b""), "cannot reach"),
    # statuses
    "a status of its own": Lie(lambda h: h.answer(b"", 599, X_Error_Message=SECRET), "error 599"),
    "a refusal with the token in it": Lie(
        lambda h: h.answer(b"", 403, X_Error_Message=f"{h.token()} {SECRET}"), "refuses to download"
    ),
    "a code of control characters": Lie(lambda h: h.refuse(404, SECRET, SECRET), "error 404"),
    "the files are not there": Lie(lambda h: h.refuse(404, "EntryNotFound", ""), "holds no model"),
}
