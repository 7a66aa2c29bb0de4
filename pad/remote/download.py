"""Files of a repository on the hub, from its cache or the network, checked before anything reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pad.errors import PadError
from pad.remote.cache import DIGEST, Cache, digest_of, fetch, sha256
from pad.remote.http import Refused, ServerError, Unreachable
from pad.remote.hub import FULL, check_token, endpoint, no_space, offline, refusal, scrub


def download_files(
    repo: str,
    revision: str | None,
    limits: Mapping[str, int],
    required: str,
    checksums: Mapping[str, str] | None = None,
) -> Path:
    """Downloads files of a repository into the hub's cache, or takes them from there.

    Args:
        repo: "ORG/NAME".
        revision: branch, tag or commit; the main branch if None.
        limits: the files that are fetched as far as they are there, and the most bytes that each may have.
        required: the file without which it is no model.
        checksums: sha256 by file, of every file that must be there. The others are compared with what the hub
            announces.

    Returns the folder in the cache.
    Raises PadError, one line, for no network, no such model or revision, no access, no space, wrong checksum,
    and whatever a hub may answer that is not as it should be.
    """
    check_token()
    cache, checksums = Cache(repo, revision), checksums or {}
    needed = list(checksums) or [required]
    folder = cache.find(needed) if offline() or cache.commit else None
    if folder is None and offline():
        raise PadError(
            f"HF_HUB_OFFLINE is set and {cache.label} is not in {cache.root}: unset it to download"
        )
    if folder is None:
        folder = _fetch(cache, limits, needed, required)
    fault = _wrong_file(folder, limits, checksums)
    if fault and not offline():  # a damaged cache is mended by downloading again, once
        folder = _fetch(cache, limits, needed, required, anew=True)
        fault = _wrong_file(folder, limits, checksums)
    if fault:
        raise PadError(f"hf-hub:{repo}: {fault}; refused. If it was damaged in the cache, delete {folder}")
    return folder


def cached(repo: str, name: str) -> Path | None:
    """A file of the main branch that is in the hub's cache; no network is used."""
    folder = Cache(repo, None).find([name])
    return folder / name if folder else None


def _fetch(
    cache: Cache, limits: Mapping[str, int], needed: Sequence[str], required: str, anew: bool = False
) -> Path:
    """The folder in the cache with what the hub has of these files; without a network, what the cache has."""
    try:
        return fetch(cache, limits, required, anew)
    except Unreachable as error:
        if (folder := cache.find(needed)) is not None:
            return folder
        raise PadError(
            f"cannot reach {endpoint()} to download {cache.label}, and it is not in {cache.root}: "
            f"the server {scrub(str(error))}"
        ) from None
    except Refused as error:
        raise refusal(error.status, error.code, error.said, cache.repo, cache.revision) from None
    except ServerError as error:
        raise PadError(f"cannot download {cache.label}: {endpoint()} {scrub(str(error))}; refused") from None
    except OSError as error:
        if error.errno in FULL:
            raise no_space(cache.label, cache.root) from None
        text = error.strerror or str(error)
        raise PadError(f"cannot download {cache.label} (cache {cache.root}): {text}") from None


def _wrong_file(folder: Path, names: Iterable[str], checksums: Mapping[str, str]) -> str:
    """Which file is not what it should be, by the index and by the name of its blob in the cache; or ''."""
    for name, digest in checksums.items():
        if not (folder / name).is_file():
            return f"it has no {name}"
        found = sha256(folder / name)
        if found != digest:
            return f"{name} has sha256 {found[:12]}…, the index says {digest[:12]}…"
    for name in names:
        path = folder / name
        blob = path.readlink().name if path.is_symlink() else ""
        if DIGEST.fullmatch(blob) and digest_of(path, blob) != blob:
            return f"{name} is not the file that the hub announced ({blob[:12]}…)"
    return ""
