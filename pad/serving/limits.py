"""How many bytes a request may have, counted as they come: a header may say anything, or nothing."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class TooLarge(Exception):
    """More bytes came than may."""


class BodyLimit:
    """Lets requests of at most `most` bytes through, and answers larger ones with status 413."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        total, begun, refused = 0, False, False

        async def counted() -> Message:
            nonlocal total, refused
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.most:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def sent(message: Message) -> None:
            nonlocal begun
            if refused and not begun:
                return
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, sent)
        except Exception:
            if not refused:
                raise
        if refused and not begun:
            body = b'{"detail":"the request has too many bytes"}'
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": body})
