"""Finding a model: a run folder, a model folder, `zoo:NAME`, or `hf-hub:ORG/REPO[@REVISION]`.

Downloads (pad/store/cache.py) go into the cache of `huggingface_hub`, and its environment variables (HF_HOME,
HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE) work as everywhere. Only the files of a model folder, or those that the
zoo's index lists, are ever fetched, and their checksums are verified before anything reads them, each time.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pad.config import zoo_folder
from pad.errors import PadError, did_you_mean, one_line
from pad.store.cache import DIGEST, Cache, digest_of, fetch
from pad.store.http import Refused, ServerError, Unreachable
from pad.store.index import ZooModel, is_inside, read_index, sha256
from pad.store.model_folder import CONFIG, FILES, WEIGHTS, present

KINDS = "a run folder, a model folder, zoo:NAME or hf-hub:ORG/REPO[@REVISION]"
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
    revision = match and match["revision"]
    if match is None or "--" in match["repo"] or ".." in spec or (revision and not is_inside(revision)):
        raise PadError(f"'{spec}' is not of the form hf-hub:ORG/REPO[@REVISION]")
    return match["repo"], revision


def download_zoo_model(model: ZooModel) -> Path:
    """The folder of a model that the index says is remote, at its pinned revision and checksums."""
    if model.remote is None:
        raise PadError(f"zoo:{model.name} is not published anywhere")
    return download(model.remote["repo"], model.remote["revision"], model.files)


def download(repo: str, revision: str | None = None, checksums: Mapping[str, str] | None = None) -> Path:
    """Downloads a model folder into the hub's cache, or takes it from there.

    Args:
        repo: "ORG/NAME".
        revision: branch, tag or commit; the main branch if None.
        checksums: sha256 by file, of every file that must be there; only these are fetched. By default the
            files of a model folder are, and compared with what the hub announces.

    Returns the folder in the cache.
    Raises PadError, one line, for no network, no such model or revision, no access, no space, wrong checksum,
    and whatever a hub may answer that is not as it should be.
    """
    names = list(checksums or FILES)
    check_token()
    cache = Cache(repo, revision)
    folder = cache.find(names) if offline() or cache.commit else None
    if folder is None and offline():
        raise PadError(
            f"HF_HUB_OFFLINE is set and {cache.label} is not in {cache.root}: unset it to download"
        )
    if folder is None:
        folder = _fetch(cache, names)
    fault = _wrong_file(folder, names, checksums or {})
    if fault and not offline():  # a damaged cache is mended by downloading again, once
        folder = _fetch(cache, names, anew=True)
        fault = _wrong_file(folder, names, checksums or {})
    if fault:
        raise PadError(f"hf-hub:{repo}: {fault}; refused. If it was damaged in the cache, delete {folder}")
    if not (folder / WEIGHTS).exists():
        raise PadError(f"hf-hub:{cache.label} holds no model: it has no {WEIGHTS}")
    return folder


def _fetch(cache: Cache, names: Sequence[str], anew: bool = False) -> Path:
    """The folder in the cache with what the hub has of these files; without a network, what the cache has."""
    try:
        return fetch(cache, names, anew)
    except Unreachable as error:
        if (folder := cache.find(names)) is not None:
            return folder
        raise PadError(
            f"cannot reach {endpoint()} to download {cache.label}, and it is not in {cache.root}: "
            f"the server {scrub(str(error))}"
        ) from None
    except Refused as error:
        raise _refusal(error.status, error.code, error.said, cache.repo, cache.revision) from None
    except ServerError as error:
        raise PadError(f"cannot download {cache.label}: {endpoint()} {scrub(str(error))}; refused") from None
    except OSError as error:
        if error.errno in _FULL:
            raise _no_space(cache.label, cache.root) from None
        text = error.strerror or str(error)
        raise PadError(f"cannot download {cache.label} (cache {cache.root}): {text}") from None


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
        blob = path.readlink().name if path.is_symlink() else ""
        if DIGEST.fullmatch(blob) and digest_of(path, blob) != blob:
            return f"{name} is not the file that the hub announced ({blob[:12]}…)"
    return ""


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
    return one_line(re.sub(r"\bhf_[A-Za-z0-9]{20,}", "<token>", text))


def _no_space(label: str, cache: Path | str) -> PadError:
    return PadError(f"no space left for {label} in {cache}: free some, or set HF_HOME to another disk")


def _refusal(
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
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return _no_space(repo, constants.HF_HUB_CACHE)
        response = getattr(cause, "response", None)
        if status := getattr(response, "status_code", 0) or 0:
            said, code = (
                getattr(response, "headers", {}).get(f"X-Error-{key}") for key in ("Message", "Code")
            )
            return _refusal(status, code or "", said or "", repo, action="publish")
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
