"""Publishing a model folder on the hub: first the plan, without network, then the upload of just that."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad import __version__
from pad.config import Config
from pad.errors import PadError, printable, shown
from pad.remote.cache import COMMIT, SLOWEST, time_limit
from pad.remote.hub import check_token, endpoint, explain_upload, offline
from pad.store.hub import parse_hub_spec
from pad.store.model_folder import (
    CALIBRATION,
    CARD,
    CONFIG,
    FILES,
    LIMITS,
    MAX_OTHER,
    dump_config,
    read_inside,
    read_model,
)

# What may go along with the four files of a model: pictures of the card, and what `pad zoo verify` scores.
_EXTRAS = ("*.png", "*.jpg", "samples/**/*.png", "samples/**/*.jpg", "verify.json", "summary.json")
_TEXTS = (CARD, CALIBRATION, "verify.json", "summary.json")

# The folders of an absolute path (also ~/, C:\, file://) at the start of a word; addresses do not match.
_LOCAL = re.compile(
    r"""(?:(?<=[\s'"=(\[`,:])|^)(?:file://)?(?:~|[A-Za-z]:)?[/\\](?:[\w.@+-]+[/\\])+(?=[\w.@+-])"""
)
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")


@dataclass(frozen=True)
class Publication:
    """What would be published: the repository, and every file with its exact content."""

    repo: str  # "ORG/NAME"
    private: bool
    files: dict[str, bytes]
    notes: tuple[str, ...]  # what differs from the folder, for the user to read

    def describe(self) -> str:
        """The plan as text, one thing a line."""
        kind = "private" if self.private else "public"
        total = sum(len(content) for content in self.files.values())
        lines = [
            f"repository  {endpoint()}/{self.repo} ({kind}, created if it is not there)",
            *(f"note        {note}" for note in self.notes),
            *(
                f"file        {printable(name)}  {len(content):,} bytes"
                for name, content in self.files.items()
            ),
            f"total       {len(self.files)} files, {total:,} bytes",
        ]
        return "\n".join(lines)


def plan(folder: Path, repo: str, private: bool = False) -> Publication:
    """Reads and checks a model folder for publishing; no network is used.

    Folders of this machine in the config and the card are shortened to their last part.

    Raises PadError if the model is unsafe or has no card, if `repo` is not ORG/NAME, if the model needs
    backbone weights of this machine, or if a file holds an access token.
    """
    name, revision = parse_hub_spec(repo)
    if revision is not None:
        raise PadError(f"'{repo}': publish to ORG/NAME, without a revision")
    model = read_model(folder)
    for key, public in (
        ("backbone", "vgg16-st, or take the name out there if they are torchvision's own"),
        ("view_backbone", f"{Config.view_backbone}, or take the name out there if they are the hub's own"),
    ):
        backbone = model.config.get(key)
        file = backbone.get("file") if isinstance(backbone, dict) else None
        if weights := file or model.config["recipe"].get(f"{key}_weights"):
            raise PadError(
                f"{folder / CONFIG} needs the backbone weights {weights}, which nobody else has: train with "
                f"the {key} {public}"
            )
    files = _collect(folder)
    notes = []
    shortened = _shorten(model.config)
    if shortened != model.config:
        files[CONFIG] = dump_config(shortened)
        notes.append(f"{CONFIG}: local folders shortened")
    for text in _TEXTS:
        if text not in files:
            continue
        short = _shorten(files[text].decode("utf-8", errors="surrogateescape"))
        if short.encode("utf-8", errors="surrogateescape") != files[text]:
            files[text] = short.encode("utf-8", errors="surrogateescape")
            notes.append(f"{text}: local folders shortened")
    _refuse_tokens(files, folder)
    return Publication(name, private, files, tuple(notes))


def upload(publication: Publication) -> str:
    """Creates the repository if need be and uploads the files in one commit, whose id is returned.

    Raises PadError, one line, for no network, no or a refused token.
    """
    repo = publication.repo
    if offline():
        raise PadError(f"HF_HUB_OFFLINE is set: unset it to publish {repo}")
    if not check_token():
        raise PadError(
            f"publishing {repo} needs an access token: set HF_TOKEN, or log in with `hf auth login`"
        )
    limit = time_limit() + sum(map(len, publication.files.values())) / SLOWEST
    outcome: list[str | Exception] = []

    def work() -> None:
        try:
            outcome.append(_send(publication))
        except Exception as error:
            outcome.append(explain_upload(error, repo))

    # The hub's client waits for every byte anew; a thread can be left behind.
    thread = threading.Thread(target=work, name="upload", daemon=True)
    thread.start()
    thread.join(limit)
    if not outcome:
        raise PadError(
            f"{endpoint()} has not taken {repo} within {limit:.0f} s: look there whether it has arrived"
        )
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _send(publication: Publication) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="pad", library_version=__version__)
    api.create_repo(publication.repo, private=publication.private, exist_ok=True)
    commit = api.create_commit(
        publication.repo,
        [CommitOperationAdd(name, content) for name, content in publication.files.items()],
        commit_message=f"Model published by pad {__version__}",
    )
    if not COMMIT.fullmatch(str(commit.oid)):
        raise PadError(f"{endpoint()} names the commit {shown(commit.oid)}, which is none")
    return str(commit.oid)


def _collect(folder: Path) -> dict[str, bytes]:
    """The files to publish, the model's own first; other links and everything unknown are left out.

    Raises PadError if a file of the model is a link out of its folder: what it points to is nobody's to
    publish.
    """
    files = {
        name: read_inside(folder, name, LIMITS[name]) for name in FILES if os.path.lexists(folder / name)
    }
    for path in sorted({path for pattern in _EXTRAS for path in folder.glob(pattern)}):
        name = path.relative_to(folder).as_posix()
        if name not in FILES and path.is_file() and path.resolve() == folder.resolve() / name:
            files[name] = read_inside(folder, name, MAX_OTHER)
    if CARD not in files:
        raise PadError(f"{folder} has no {CARD}: a model is published with its card")
    return files


def _shorten(value: Any) -> Any:
    """`value` with the leading folders of every absolute path in its strings taken away."""
    if isinstance(value, str):
        return _LOCAL.sub("", value)
    if isinstance(value, dict):
        return {key: _shorten(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten(item) for item in value]
    return value


def _refuse_tokens(files: dict[str, bytes], folder: Path) -> None:
    from huggingface_hub import get_token

    token = (get_token() or "").encode()
    for name, content in files.items():
        if (token and token in content) or _TOKEN.search(content):
            raise PadError(f"{folder / name} holds an access token: take it out before publishing")
