"""The zoo's index: the single list of pretrained models, `zoo/index.yaml`.

    format: 1
    models:
    - name: fashion-mnist/ankle-boot      # what follows zoo:
      folder: fashion-mnist/ankle-boot    # inside the zoo
      title: Fashion-MNIST ankle boots
      dataset: fashion-mnist:9
      size: 32                            # pixels
      channels: 1
      images: 4800                        # normal images trained on
      roc_auc: {value: 0.978, low: 0.974, high: 0.981}   # or null
      licence: mit
      files: {model.safetensors: <sha256>, config.yaml: <sha256>, ...}
      remote: {repo: org/name, revision: <commit>}       # optional: where it is downloaded from

It is written by `add_entry` from measured results, never by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from pad.config import zoo_folder
from pad.errors import PadError, one_line, shown
from pad.remote.cache import sha256
from pad.store.files import atomic
from pad.store.model_folder import check_inside, read_model

INDEX_FORMAT = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAFE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it can be: it is read at each start


@dataclass(frozen=True)
class ZooModel:
    """One line of the index; see the module's text for the meaning and unit of each field."""

    name: str
    folder: str
    title: str
    dataset: str
    size: int
    channels: int
    images: int
    roc_auc: Mapping[str, float] | None
    licence: str
    files: Mapping[str, str]
    remote: Mapping[str, str] | None = None


def read_index(root: Path | None = None) -> dict[str, ZooModel]:
    """The zoo's models by name, in the order of the file; empty where there is no index yet.

    Args:
        root: the zoo's folder; the installed one by default.

    Raises PadError if the index is not as the module's text says, naming the entry.
    """
    path = (root or zoo_folder()) / "index.yaml"
    if not path.exists():
        return {}
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_SAFE) or {}
    except Exception as error:  # YAML's library raises far more than its own
        raise PadError(f"cannot read {path}: {one_line(str(error))}") from None
    if not isinstance(content, dict) or not isinstance(content.get("models", []), list):
        raise PadError(f"{path} must hold 'format' and a list of 'models'")
    if (found := content.get("format", INDEX_FORMAT)) != INDEX_FORMAT:
        raise PadError(f"{path} is of format {found}, this pad reads {INDEX_FORMAT}: upgrade pad")
    models = [_entry(values, path) for values in content.get("models", [])]
    return {model.name: model for model in models}


def _entry(values: Any, path: Path) -> ZooModel:
    name = values.get("name") if isinstance(values, dict) else None
    label = f"{path}: entry {shown(name)}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PadError(f"{label} needs a name such as 'fashion-mnist/bag'")
    try:
        model = ZooModel(**values)
    except TypeError as error:
        raise PadError(f"{label}: {str(error).removeprefix('ZooModel.__init__() ')}") from None
    try:
        msgspec.convert(values, ZooModel)  # the types
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise PadError(f"{label}: {one_line(str(error))}") from None
    files = model.files
    if not isinstance(files, dict) or not all(_SHA256.fullmatch(str(h)) for h in files.values()):
        raise PadError(f"{label}: 'files' must be a mapping of file to sha256")
    for inside in (model.folder, *files):
        if not isinstance(inside, str) or not inside or not is_inside(inside):
            raise PadError(f"{label}: {shown(inside)} leaves the zoo")
    remote = model.remote
    if remote is not None and not (
        isinstance(remote, dict)
        and _REPO.fullmatch(str(remote.get("repo")))
        and _COMMIT.fullmatch(str(remote.get("revision")))
    ):
        raise PadError(f"{label}: 'remote' takes a repo (org/name) and a revision (a commit of 40 digits)")
    return model


def is_inside(relative: str) -> bool:
    """Whether a relative path stays below where it starts, on every system."""
    parts = relative.replace("\\", "/").split("/")
    return not (Path(relative).is_absolute() or ":" in relative or parts[0] == "" or ".." in parts)


def add_entry(
    name: str,
    folder: Path,
    summary: Mapping[str, Any],
    root: Path | None = None,
    remote: Mapping[str, str] | None = None,
) -> ZooModel:
    """Adds a model to the index, or replaces its line, and records the sha256 of every file of its folder.

    Args:
        name: such as 'fashion-mnist/bag'.
        folder: the model's folder, inside the zoo.
        summary: measured results: `title`, `dataset`, `images`, `roc_auc` ({"value", "low", "high"} or None)
            and `licence`; `size` and `channels` (pixels) are read from the model where not given.
        root: the zoo's folder; by default the installed one.
        remote: {"repo": "org/name", "revision": commit}; by default what the index had.

    Raises PadError if the model cannot be read, or lies outside the zoo, or a result is missing.
    """
    root = root or zoo_folder()
    try:
        inside = folder.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise PadError(f"{folder} is not inside the zoo {root}") from None
    recipe = read_model(folder).recipe
    index = read_index(root)
    known = index[name].remote if name in index else None
    values = {
        "name": name,
        "folder": inside,
        "title": summary.get("title"),
        "dataset": summary.get("dataset"),
        "size": summary.get("size", recipe.size),
        "channels": summary.get("channels", recipe.channels),
        "images": summary.get("images"),
        "roc_auc": summary.get("roc_auc"),
        "licence": summary.get("licence"),
        "files": checksums(folder),
        "remote": dict(remote) if remote is not None else known,
    }
    missing = [key for key in ("title", "dataset", "images", "licence") if values[key] is None]
    if missing:
        raise PadError(f"zoo entry '{name}': the summary lacks {', '.join(missing)}")
    model = _entry(values, root / "index.yaml")
    _write(root, {**index, name: model})
    return model


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, by its path with '/', sorted; hidden files are left out. Raises
    PadError for a link out of it."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in paths:
        check_inside(folder, path)
    names = [(p.relative_to(folder), p) for p in paths]
    return {n.as_posix(): sha256(p) for n, p in names if not any(part.startswith(".") for part in n.parts)}


def _write(root: Path, index: Mapping[str, ZooModel]) -> None:
    models = []
    for _, model in sorted(index.items()):
        values = {key: dict(v) if isinstance(v, Mapping) else v for key, v in asdict(model).items()}
        models.append({key: v for key, v in values.items() if key != "remote" or v is not None})
    text = "# Written by pad.store.index.add_entry from measured results: do not edit.\n"
    text += yaml.safe_dump({"format": INDEX_FORMAT, "models": models}, sort_keys=False, allow_unicode=True)
    with atomic(root / "index.yaml") as file:
        file.write(text.encode())
