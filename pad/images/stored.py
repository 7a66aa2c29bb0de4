"""ImageSets of what lies in stores (pad/images/urls.py) and in shards (pad/images/shards.py)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from pad.errors import PadError
from pad.images.conventions import MASK_FOLDER, NORMAL_FOLDERS, counts_as_image
from pad.images.imageset import Content, ImageSet, Purpose, Sample
from pad.images.shards import is_shard, members
from pad.images.urls import RemoteFile, is_glob, listed

_Inside = tuple[tuple[str, ...], RemoteFile]  # where a file lies in its folder


def from_url(url: str, purpose: Purpose) -> ImageSet:
    """The images that a URL means: a file, a glob, a shard, or a folder, which is searched and labelled as
    one on a disk, but that there are no masks. Raises PadError if there are none."""
    base, files = listed(url)
    inside = [(_parts(base, file.path), file) for file in files]
    kept = [(parts, file) for parts, file in inside if _counts(parts)]
    if not kept and (shards := [file for parts, file in inside if _is_shard(parts)]):
        return from_shards([(file.identity, file) for file in shards], PurePosixPath(base).name)
    normal_folders: set[str] = set()
    if not is_glob(url):  # as on a disk, files that a pattern names have no labels
        kept = _part_of_mvtec(kept, inside, purpose)
        normal_folders = _normal_folders(kept)
    chosen: list[tuple[RemoteFile, str | None, bool | None]] = []
    for parts, file in kept:
        kind = parts[0] if normal_folders and len(parts) > 1 else None
        anomalous = None if kind is None else kind not in normal_folders
        if purpose == "train" and normal_folders and anomalous is not False:
            continue
        chosen.append((file, kind, anomalous))
    if not chosen:
        raise PadError(f"{url}: no images there")
    source = PurePosixPath(base).name or "root"
    return ImageSet(
        [Sample(file.identity, kind, anomalous) for file, kind, anomalous in chosen],
        [file for file, _, _ in chosen],
        ["/".join((source, *_parts(base, file.path))) for file, _, _ in chosen],
        source,
    )


def _part_of_mvtec(kept: list[_Inside], inside: list[_Inside], purpose: Purpose) -> list[_Inside]:
    """Of a folder in the layout of MVTec the part for a purpose; of any other all."""
    folders = {parts[0] for parts, _ in kept if len(parts) > 1}
    if "test" not in folders or not ("train" in folders or _beside_masks(inside)):
        return kept
    tests = [(parts[1:], file) for parts, file in kept if parts[0] == "test" and len(parts) > 1]
    if not _normal_folders(tests):
        return kept
    normal = [(p[1:], f) for p, f in kept if p[0] == "train" and len(p) > 2 and _is_normal(p[1])]
    return tests if purpose == "evaluate" else normal


def from_shards(shards: Iterable[tuple[str, RemoteFile]], source: str) -> ImageSet:
    """All images of shards, each of which is given with the name that is shown."""
    samples: list[Sample] = []
    contents: list[Content] = []
    keys: list[str] = []
    for shown, shard in shards:
        own = PurePosixPath(shard.path).name
        for name, content in members(shard):
            samples.append(Sample(f"{shown}/{name}"))
            contents.append(content)
            keys.append(f"{own}/{name}")
    return ImageSet(samples, contents, keys, source)


def _parts(base: str, path: str) -> tuple[str, ...]:
    return PurePosixPath(path.removeprefix(base).lstrip("/")).parts


def _counts(parts: tuple[str, ...]) -> bool:
    *folders, name = parts
    return not any(
        part.startswith(".") or part.lower() == MASK_FOLDER for part in folders
    ) and counts_as_image(name)


def _is_shard(parts: tuple[str, ...]) -> bool:
    return not any(part.startswith(".") for part in parts) and is_shard(parts[-1])


def _beside_masks(inside: list[_Inside]) -> bool:
    return any(parts[0].lower() == MASK_FOLDER for parts, _ in inside)


def _is_normal(folder: str) -> bool:
    return folder.lower() in NORMAL_FOLDERS


def _normal_folders(kept: list[_Inside]) -> set[str]:
    """The folders of normal images, if others lie beside them; else none."""
    folders = {parts[0] for parts, _ in kept if len(parts) > 1}
    normal = {folder for folder in folders if _is_normal(folder)}
    return normal if len(folders) > len(normal) else set()
