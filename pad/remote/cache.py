"""Fetching files of a repository on the hub into the hub's own cache, from a server that is not trusted.

The cache is the one of `huggingface_hub`, laid out as it does it, so that other programs find what is here:

    models--ORG--NAME/refs/BRANCH                     the commit that a branch was at
    models--ORG--NAME/snapshots/COMMIT/FILE           a link to the blob
    models--ORG--NAME/blobs/DIGEST                    sha256 of a large file, git object id of a small one

Nothing that a server says becomes part of a path before it has been held against the form that it must have:
a commit is 40 hexadecimal digits, a digest 40 or 64. Sizes are looked at before anything is fetched, contents
are held against their digests before they get their names, and one time limit ends it all. A download that
was cut or killed goes on where it broke; several processes may ask for the same model at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import filelock
from tqdm import tqdm

from pad import __version__
from pad.errors import PadError, shown
from pad.remote.http import SECONDS, Cut, Deadline, Refused, ServerError, ask

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SECONDS = 60.0
SLOWEST = 1 << 16  # bytes a second
_ATTEMPTS = 4  # at a file whose connection is cut
_MOST_BYTES = 4 << 30  # of all files together
_SHOWN = 1 << 20  # bytes of a file from which on there is a progress bar


@dataclass(frozen=True)
class Remote:
    """A file as the hub announces it."""

    name: str
    size: int  # bytes
    digest: str  # sha256, or git object id


class Cache:
    """Where a repository lies in the hub's cache.

    Attributes: repo ("ORG/NAME"), revision (as asked for, or None), label (both, for messages), root (of the
    cache), commit (of the revision if it is one, or "").
    """

    def __init__(self, repo: str, revision: str | None) -> None:
        from huggingface_hub import constants

        self.repo, self.revision = repo, revision
        self.label = f"{repo}@{revision}" if revision else repo
        self.root = Path(constants.HF_HUB_CACHE)
        self.folder = self.root / ("models--" + repo.replace("/", "--"))
        self.commit = revision if revision and COMMIT.fullmatch(revision) else ""

    @property
    def reference(self) -> Path:
        """The file that says at which commit the branch was."""
        return self.folder / "refs" / (self.revision or "main")

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest

    def find(self, needed: Sequence[str]) -> Path | None:
        """The folder of the revision, if these files lie there."""
        commit = self.commit
        if not commit:
            with contextlib.suppress(OSError, ValueError):
                commit = self.reference.read_text(encoding="ascii").strip()
        folder = self.snapshot(commit)
        if COMMIT.fullmatch(commit) and all((folder / name).is_file() for name in needed):
            return folder
        return None


def time_limit() -> float:
    """Seconds that the hub may take to answer. Raises PadError if the environment's are no number."""
    given = os.environ.get(SECONDS, "")
    try:
        seconds = float(given or _SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise PadError(f"the environment variable {SECONDS} takes a number of seconds, not {shown(given)}")
    return seconds


def fetch(cache: Cache, limits: Mapping[str, int], required: str, anew: bool = False) -> Path:
    """Fetches those of the files that the repository has, the small ones first; returns their folder.

    Args:
        cache: where to, and of which repository.
        limits: the files, and the most bytes that each may have.
        required: the one that must be there.
        anew: also those that are in the cache already.

    Raises PadError for a repository without the required file, a file that is too large, or that is not the
    one announced; ServerError for a server that cannot be reached or does not answer as it should; OSError
    where the disk refuses.
    """
    deadline = Deadline(time_limit())
    commit, files = _announced(cache, limits, required, deadline)
    wanted = [file for file in files if anew or not _is_there(cache, file)]
    deadline.extend(sum(file.size for file in wanted) / SLOWEST)
    for file in sorted(files, key=lambda file: file.size):
        if file in wanted:
            _fetch_blob(cache, commit, file, deadline, anew)
        _link(cache.snapshot(commit) / file.name, cache.blob(file.digest))
    if not cache.commit:
        cache.reference.parent.mkdir(parents=True, exist_ok=True)
        _replace(cache.reference, commit)
    return cache.snapshot(commit)


def _announced(
    cache: Cache, limits: Mapping[str, int], required: str, deadline: Deadline
) -> tuple[str, list[Remote]]:
    """The commit, and the files that there are at it. Raises PadError for a file that is too large,
    ServerError for an announcement that cannot be one."""
    commit, files = cache.commit, []
    for name in [required, *(name for name in limits if name != required)]:
        try:
            with ask(_url(cache.repo, commit or cache.revision or "main", name), _headers(), deadline, "HEAD",
                     follow=False) as answer:  # fmt: skip
                said = answer.headers
        except Refused as error:
            if error.code == "EntryNotFound":
                if name == required:
                    raise PadError(f"hf-hub:{cache.label} holds no model: it has no {required}") from None
                continue
            raise
        found = said.get("x-repo-commit", "")
        if not COMMIT.fullmatch(found) or (commit and found != commit):
            raise ServerError(f"names the commit {shown(found)}, which is none or another one")
        commit = found
        files.append(_remote(name, said, limits[name]))
    if sum(file.size for file in files) > _MOST_BYTES:
        raise PadError(f"hf-hub:{cache.label} is too large: more than {_MOST_BYTES:,} bytes in all; refused")
    return commit, files


def _remote(name: str, said: dict[str, str], limit: int) -> Remote:
    digest = said.get("x-linked-etag") or said.get("etag", "")
    digest = digest.removeprefix("W/").strip('"')
    if not DIGEST.fullmatch(digest):
        raise ServerError(f"announces {name} with an ETag that is no digest: {shown(digest)}")
    size = said.get("x-linked-size") or said.get("content-length", "")
    if not (size.isascii() and size.isdecimal() and len(size) < 16):
        raise ServerError(f"announces {name} without its size: {shown(size)}")
    if int(size) > limit:
        raise PadError(
            f"{name} is too large: the hub announces {int(size):,} bytes, at most {limit:,}; refused"
        )
    return Remote(name, int(size), digest)


def _url(repo: str, revision: str, name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT.rstrip('/')}/{repo}/resolve/{quote(revision, safe='')}/{quote(name)}"


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(library_name="pad", library_version=__version__)


def _is_there(cache: Cache, file: Remote) -> bool:
    blob = cache.blob(file.digest)
    return blob.is_file() and blob.stat().st_size == file.size


def _fetch_blob(cache: Cache, commit: str, file: Remote, deadline: Deadline, anew: bool) -> None:
    """Brings one file into the cache under its digest."""
    blob = cache.blob(file.digest)
    part = blob.with_name(f"{file.digest}.incomplete")
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _lock(cache, file, deadline):
        if not anew and _is_there(cache, file):  # another process has been quicker
            return
        for _ in range(2):  # the second time from the beginning: what was there of it may have been damaged
            _receive_all(_url(cache.repo, commit, file.name), file, part, deadline)
            if digest_of(part, file.digest) == file.digest:
                part.replace(blob)
                return
            part.unlink()
    raise PadError(
        f"hf-hub:{cache.repo}: {file.name} is not the file that the hub announced "
        f"({file.digest[:12]}…); refused"
    )


def _receive_all(url: str, file: Remote, part: Path, deadline: Deadline) -> None:
    """A whole file, taken up where the connection was cut."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(Cut):
            return _receive(url, file, part, deadline)
    return _receive(url, file, part, deadline)


@contextlib.contextmanager
def _lock(cache: Cache, file: Remote, deadline: Deadline) -> Iterator[None]:
    """The lock that the hub's client takes as well. Raises ServerError if others keep it too long."""
    path = cache.root / ".locks" / cache.folder.name / f"{file.digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=deadline.left):
            yield
    except filelock.Timeout:
        raise ServerError(
            f"is being asked for {file.name} by another process, for {deadline.seconds:.0f} s"
        ) from None


def _receive(url: str, file: Remote, part: Path, deadline: Deadline) -> None:
    """The rest of a file, behind what `part` holds of it. Raises Cut if it breaks off."""
    done = part.stat().st_size if part.exists() else 0
    if done > file.size:
        done = 0
    headers = _headers() | ({"Range": f"bytes={done}-"} if done else {})
    if done == file.size and file.size:
        return
    with ask(url, headers, deadline) as answer, part.open("r+b" if part.exists() else "wb") as target:
        if done and not (answer.status == 206 and _begins_at(answer.headers, done)):
            if answer.status == 206:
                raise ServerError("sends another part of the file than was asked for")
            done = 0  # it sends the whole
        elif not done and answer.status != 200:
            raise ServerError("sends a part of the file where all of it was asked for")
        target.seek(done)
        target.truncate()
        with tqdm(total=file.size, initial=done, desc=file.name, unit="B", unit_scale=True, leave=False,
                  disable=True if file.size < _SHOWN or _no_bars() else None) as bar:  # fmt: skip
            for block in answer.blocks(file.size - done):
                target.write(block)
                bar.update(len(block))
        if target.tell() < file.size:
            raise Cut(f"breaks off after {target.tell():,} of {file.size:,} bytes of {file.name}")


def _begins_at(headers: dict[str, str], start: int) -> bool:
    return headers.get("content-range", "").startswith(f"bytes {start}-")


def _no_bars() -> bool:
    from huggingface_hub.utils import are_progress_bars_disabled

    return are_progress_bars_disabled()


def sha256(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    return digest_of(path, "0" * 64)


def digest_of(path: Path, like: str) -> str:
    """The digest of a file, of the kind of `like`: the sha256 (64 digits), or git's object id (40)."""
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(usedforsecurity=False)
    if len(like) == 40:
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _link(name: Path, blob: Path) -> None:
    """Makes `name` a link to the blob or, where a system has none, a copy."""
    name.parent.mkdir(parents=True, exist_ok=True)
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(blob, name.parent))
    except (OSError, NotImplementedError):
        shutil.copyfile(blob, temporary)
    temporary.replace(name)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="ascii")
    temporary.replace(path)
