"""The Hugging Face hub as the user has set it up, and what its refusals mean, in one line each."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

from pad.errors import PadError, one_line

# No space, quota used up, and a file above what the disk or the user's limits allow.
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "ssl", "socket")


def offline() -> bool:
    """Whether the user has set HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def endpoint() -> str:
    """The hub's address (HF_ENDPOINT), without a password that may be in it."""
    from huggingface_hub import constants

    return re.sub(r"//[^/@]*@", "//", constants.ENDPOINT)


def check_token() -> bool:
    """Whether the user has a token (HF_TOKEN, or logged in). Raises PadError if it cannot be one."""
    from huggingface_hub import get_token

    token = get_token() or ""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise PadError("HF_TOKEN holds characters that no access token has: set it anew")
    return bool(token)


def scrub(text: str) -> str:
    """`text` in one line without the user's token, which must never reach output, files or errors."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        text = text.replace(token, "<token>")
    return one_line(re.sub(r"\bhf_[A-Za-z0-9]{20,}", "<token>", text))


def no_space(label: str, cache: Path | str) -> PadError:
    return PadError(f"no space left for {label} in {cache}: free some, or set HF_HOME to another disk")


def refusal(
    status: int, code: str, said: str, repo: str, revision: str | None = None, action: str = "download"
) -> PadError:
    """What an error status of the hub means, by its X-Error-Code, with what it says, its X-Error-Message."""
    host, said = endpoint(), f" ({scrub(said)})" if said else ""
    if code == "GatedRepo":
        return PadError(f"{repo} is gated: ask for access at {host}/{repo}, then set HF_TOKEN")
    if code == "RevisionNotFound":
        return PadError(f"{repo} has no revision '{revision}' at {host}")
    if code == "RepoNotFound":
        return PadError(f"there is no model {repo} at {host} (if it is private, set HF_TOKEN)")
    if status in (401, 403):
        return PadError(
            f"{host} refuses to {action} {repo}{said}: check that HF_TOKEN is valid and may do this"
        )
    at = f"{repo}@{revision}" if revision else repo
    return PadError(f"{host} answers with error {status} for {at}{said}: try later")


def explain_upload(error: Exception, repo: str) -> PadError:
    """What went wrong when the hub's client was publishing: one line, without the token."""
    from huggingface_hub import constants

    host = endpoint()
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, PadError):
            return cause
        if isinstance(cause, OSError) and cause.errno in FULL:
            return no_space(repo, constants.HF_HUB_CACHE)
        response = getattr(cause, "response", None)
        if status := getattr(response, "status_code", 0) or 0:
            said, code = (
                getattr(response, "headers", {}).get(f"X-Error-{key}") for key in ("Message", "Code")
            )
            return refusal(status, code or "", said or "", repo, action="publish")
    for cause in chain:
        if isinstance(cause, ConnectionError) or type(cause).__module__.partition(".")[0] in _NETWORK:
            reason = scrub(str(cause)) or type(cause).__name__
            return PadError(f"cannot publish {repo}, the network or {host} fails: {reason:.150}")
    what = f"{type(error).__name__}: {scrub(str(error))}"
    return PadError(f"cannot publish {repo}: {host} does not answer as a hub does ({what:.200})")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
