"""Finding a model: a run folder, a model folder, `zoo:NAME`, or `hf-hub:ORG/REPO[@REVISION]`.

Downloads (pad/remote/) go into the cache of `huggingface_hub`, and its environment variables (HF_HOME,
HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE) work as everywhere. Only the files of a model folder, or those that the
zoo's index lists, are ever fetched, and their checksums are verified before anything reads them, each time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pad.config import zoo_folder
from pad.errors import PadError, did_you_mean
from pad.remote.download import download_files
from pad.store.index import ZooModel, is_inside, read_index
from pad.store.model_folder import CONFIG, FILES, LIMITS, MAX_OTHER, WEIGHTS, present

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
        return download_model(repo, revision)
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


def meant(name: str, root: Path | None = None) -> str:
    """The name in the zoo that `name` means: itself, or the only one that ends in it ("ankle-boot"). Raises
    PadError, one line, for one that is not there, and for one of several that it could be."""
    names = zoo_names(root)
    if name in names:
        return name
    ending = [known for known in names if known.endswith(f"/{name}")]
    if len(ending) > 1:
        raise PadError(f"the zoo has several models '{name}': {', '.join(ending)}")
    if not ending:
        raise PadError(f"the zoo has no model '{name}'{suggest(name, root)}")
    return ending[0]


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
    return download_model(model.remote["repo"], model.remote["revision"], model.files)


def download_model(
    repo: str, revision: str | None = None, checksums: Mapping[str, str] | None = None
) -> Path:
    """Downloads a model folder into the hub's cache, or takes it from there.

    Args:
        repo: "ORG/NAME".
        revision: branch, tag or commit; the main branch if None.
        checksums: sha256 by file, of every file that must be there; only these are fetched. By default the
            files of a model folder are, and compared with what the hub announces.

    Returns the folder in the cache. Raises PadError as `download_files` does.
    """
    limits = {name: LIMITS.get(name, MAX_OTHER) for name in checksums or FILES}
    return download_files(repo, revision, limits, WEIGHTS, checksums)
