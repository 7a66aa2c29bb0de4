"""Finding a model: a run folder, a model folder, `zoo:NAME`, or `hf-hub:ORG/REPO[@REVISION]`.

Downloads go through `huggingface_hub`, so its cache and its environment variables (HF_HOME, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE) work as everywhere: a connection that is cut is resumed where it broke, a killed
download goes on with the files that are not yet there, and several processes may ask for the same model at
once. Only the files of a model folder, or those that the zoo's index lists, are ever fetched, and their
checksums are verified before anything reads them, each time.
"""

from __future__ import annotations

import errno
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pad.config import zoo_folder
from pad.errors import PadError, did_you_mean
from pad.store.index import ZooModel, is_inside, read_index, sha256
from pad.store.model_folder import CONFIG, FILES, WEIGHTS, present

KINDS = "a run folder, a model folder, zoo:NAME or hf-hub:ORG/REPO[@REVISION]"
_ATTEMPTS = 4  # at a download whose connection is cut
_CUT = ("ChunkedEncodingError", "IncompleteRead", "RemoteProtocolError")
_SPEC = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def list_models() -> list[str]:
    """The pretrained models, as `pad.load` takes them: `["zoo:fashion-mnist/ankle-boot", ...]`."""
    return [f"zoo:{name}" for name in zoo_names()]


def zoo_names(root: Path | None = None) -> list[str]:
    """The names in the zoo's index and of the model folders that lie in the zoo, sorted."""
    root = root or zoo_folder()
    folders = {path.parent.relative_to(root).as_posix() for path in root.glob(f"*/**/{WEIGHTS}")}
    local = {name for name in folders if not any(part.startswith(".") for part in name.split("/"))}
    return sorted(local | set(read_index(root)))


def resolve_model(spec: str | Path, root: Path | None = None) -> Path:
    """The model folder that `spec` means, downloaded if need be.

    Args:
        spec: a run folder (its `model/` is taken), a model folder, `zoo:NAME`, `hf-hub:ORG/REPO[@REVISION]`.
        root: the zoo's folder; the installed one by default.

    Raises PadError, one line, if there is no such model (the nearest name is suggested) or if it cannot be
    downloaded or does not have its checksums.
    """
    text = str(spec)
    if text.startswith("zoo:"):
        return _resolve_zoo(text.removeprefix("zoo:"), root or zoo_folder())
    if text.startswith("hf-hub:"):
        repo, revision = parse_hub_spec(text)
        return download(repo, revision)
    return _resolve_path(Path(spec), root)


def _resolve_path(path: Path, root: Path | None) -> Path:
    if present(path / "model"):
        return path / "model"
    if present(path):
        return path
    if path.is_file():
        hint = f": name its folder, {path.parent}" if path.name in FILES else f": a model is {KINDS}"
        raise PadError(f"{path} is a file, not a model{hint}")
    if path.is_dir():
        if (path / "checkpoints").exists() or (path / "log.jsonl").exists():
            raise PadError(
                f"{path} is a run that has not saved a model yet: let it finish, or finish it with --resume"
            )
        if (path / CONFIG).exists():
            return path  # read_model names what is missing
        raise PadError(f"{path} holds no model ({WEIGHTS}): a model is {KINDS}")
    raise PadError(f"there is no model '{path}'{_nearest(path, root)}: a model is {KINDS}")


def _nearest(path: Path, root: Path | None) -> str:
    """The nearest zoo name or neighbouring folder to a path that does not exist."""
    text = path.as_posix()
    names = {name: f"zoo:{name}" for name in zoo_names(root)}
    for prefix in ("zoo/", "zoo:", "zoo"):
        if text.startswith(prefix):
            text = text.removeprefix(prefix)
            break
    else:
        if path.parent.is_dir():
            names |= {p.as_posix(): p.as_posix() for p in path.parent.iterdir() if p.is_dir()}
    if text in names:
        return f"; did you mean '{names[text]}'?"
    hint = did_you_mean(text, names)
    for near, full in names.items():
        if hint == did_you_mean(near, [near]):
            return f"; did you mean '{full}'?"
    return hint


def _resolve_zoo(name: str, root: Path) -> Path:
    index = read_index(root)
    model = index.get(name)
    if model is not None:
        folder = root / model.folder
        if present(folder):
            return folder
        if model.remote is not None:
            return download_zoo_model(model)
        raise PadError(f"zoo:{name} is in the index but neither installed nor published: reinstall pad")
    if name and is_inside(name) and present(root / name):
        return root / name
    raise PadError(f"the zoo has no model '{name}'{suggest(name, root)}")


def suggest(name: str, root: Path | None = None) -> str:
    """`"; did you mean 'fashion-mnist/bag'?"`, or where to see the list."""
    names = zoo_names(root)
    short = [n for n in names if n.rsplit("/", 1)[-1] == name]
    return (
        did_you_mean(name, names) or did_you_mean(short[0] if short else "", names) or "; see `pad zoo list`"
    )


# ---------------------------------------------------------------------------------------------- the hub


def parse_hub_spec(spec: str) -> tuple[str, str | None]:
    """`hf-hub:ORG/REPO[@REVISION]` as ("ORG/REPO", revision or None). Raises PadError for another form."""
    match = _SPEC.fullmatch(spec.removeprefix("hf-hub:"))
    if match is None or ".." in spec or "--" in match["repo"]:
        raise PadError(f"'{spec}' is not of the form hf-hub:ORG/REPO[@REVISION]")
    return match["repo"], match["revision"]


def download_zoo_model(model: ZooModel) -> Path:
    """The folder of a model that the index says is remote, at its pinned revision and checksums."""
    if model.remote is None:
        raise PadError(f"zoo:{model.name} is not published anywhere")
    return download(model.remote["repo"], model.remote["revision"], model.files)


def download(repo: str, revision: str | None = None, checksums: Mapping[str, str] | None = None) -> Path:
    """Downloads a model folder into the hub client's cache, or takes it from there.

    Args:
        repo: "ORG/NAME".
        revision: branch, tag or commit; the main branch if None.
        checksums: sha256 by file, of every file that must be there; only these are fetched. By default the
            files of a model folder are, and compared with what the hub announces.

    Returns the folder in the cache.
    Raises PadError, one line, for no network, no such model or revision, no access, no space, wrong checksum.
    """
    names = list(checksums or FILES)
    folder = _snapshot(repo, revision, names)
    fault = _wrong_file(folder, names, checksums or {})
    if fault and not offline():  # a damaged cache is mended by downloading again, once
        folder = _snapshot(repo, revision, names, force=True)
        fault = _wrong_file(folder, names, checksums or {})
    if fault:
        raise PadError(f"hf-hub:{repo}: {fault}; refused. If it was damaged in the cache, delete {folder}")
    if not (folder / WEIGHTS).exists():
        raise PadError(
            f"hf-hub:{repo}{f'@{revision}' if revision else ''} holds no model: it has no {WEIGHTS}"
        )
    return folder


def _snapshot(repo: str, revision: str | None, names: list[str], force: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    from pad import __version__

    check_token()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Not enough free disk space")  # the error says it
                folder = snapshot_download(
                    repo,
                    revision=revision,
                    allow_patterns=names,
                    library_name="pad",
                    library_version=__version__,
                    force_download=force,
                )
        except Exception as error:
            # Newer clients resume a cut connection themselves, older ones on the next call.
            if attempt < _ATTEMPTS and any(type(cause).__name__ in _CUT for cause in _chain(error)):
                continue
            raise explain(error, repo, revision) from None
        break
    return Path(folder)


def _wrong_file(folder: Path, names: Sequence[str], checksums: Mapping[str, str]) -> str:
    """Which file is not what it should be, by the index and by the name of its blob in the cache; or ''."""
    for name, digest in checksums.items():
        if not (folder / name).is_file():
            return f"it has no {name}"
        found = sha256(folder / name)
        if found != digest:
            return f"{name} has sha256 {found[:12]}…, the index says {digest[:12]}…"
    for name in names:
        path = folder / name
        # The hub names a blob by its sha256 (large files) or its git object id (small ones).
        blob = path.readlink().name if path.is_symlink() else ""
        found = sha256(path) if len(blob) == 64 else _git_id(path) if len(blob) == 40 else blob
        if found != blob:
            return f"{name} is not the file that the hub announced ({blob[:12]}…)"
    return ""


def _git_id(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


# ----------------------------------------------------------------------------------------------- errors

# No space, quota used up, and a file above what the disk or the user's limits allow.
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
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
    return " ".join(re.sub(r"\bhf_[A-Za-z0-9]{20,}", "<token>", text).split())


def explain(error: Exception, repo: str, revision: str | None = None, action: str = "download") -> Exception:
    """What went wrong with the hub, as a PadError of one line; another error, without the token, if it is
    none of the known ones."""
    from huggingface_hub import constants, errors

    if isinstance(error, PadError):
        return error
    chain = list(_chain(error))
    at = f"{repo}@{revision}" if revision else repo
    host, cache = endpoint(), constants.HF_HUB_CACHE
    for cause in chain:
        response = getattr(cause, "response", None)
        status = getattr(response, "status_code", 0) or 0
        said = scrub(getattr(response, "headers", {}).get("X-Error-Message") or "")
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return PadError(f"no space left for {at} in {cache}: free some, or set HF_HOME to another disk")
        if isinstance(cause, errors.GatedRepoError):
            return PadError(f"{repo} is gated: ask for access at {host}/{repo}, then set HF_TOKEN")
        if isinstance(cause, errors.RevisionNotFoundError):
            return PadError(f"{repo} has no revision '{revision}' at {host}")
        if isinstance(cause, errors.RepositoryNotFoundError):
            return PadError(f"there is no model {repo} at {host} (if it is private, set HF_TOKEN)")
        if status in (401, 403):
            said = f" ({said})" if said else ""
            return PadError(
                f"{host} refuses to {action} {repo}{said}: check that HF_TOKEN is valid and may do this"
            )
        if status:
            return PadError(
                f"{host} answers with error {status} for {at}{f' ({said})' if said else ''}: try later"
            )
    if offline():
        return PadError(f"HF_HUB_OFFLINE is set and {at} is not in {cache}: unset it to {action}")
    for cause in chain:
        if isinstance(cause, ConnectionError) or type(cause).__module__.partition(".")[0] in _NETWORK:
            reason = scrub(str(cause)) or type(cause).__name__
            return PadError(f"cannot {action} {at}, the network or {host} fails: {reason:.150}")
        if isinstance(cause, errors.LocalEntryNotFoundError):
            return PadError(f"cannot reach {host} to {action} {at}, and it is not in {cache}")
    if isinstance(error, OSError):
        return PadError(f"cannot {action} {at} (cache {cache}): {scrub(error.strerror or str(error))}")
    return error if scrub(str(error)) == " ".join(str(error).split()) else RuntimeError(scrub(str(error)))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
