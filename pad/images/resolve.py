"""Which images are meant: files, folders, globs and named datasets become an ImageSet.

A specification is an image file, a folder, a glob, a named dataset such as `fashion-mnist:9`
(pad/images/named.py), a shard, or any of these in a store: `s3://bucket/folder` (pad/images/stored.py).

- Folders are searched recursively, in sorted order, through symbolic links (a loop is entered once). Hidden
  files and folders, `ground_truth` folders and files that accompany images (`SIDECARS`) are passed over.
  Every other file counts as an image: if it is not one, it is reported by name as unreadable, rather than
  missed in silence.
- A folder with `normal/` or `good/` beside other sub-folders is labelled: the others are kinds of anomaly.
- A folder with `test/` that is labelled, and `train/` or `ground_truth/` beside it, has the MVTec layout:
  `train/good` is for training, `test` for evaluation, `ground_truth/<kind>/<stem>_mask.png` are the masks.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pad.errors import PadError, did_you_mean
from pad.images.conventions import MASK_FOLDER, NORMAL_FOLDERS, counts_as_image
from pad.images.imageset import Content, ImageSet, Purpose, Sample
from pad.images.named import DATASETS, canonical, load_dataset
from pad.images.read import read_image
from pad.images.shards import is_shard
from pad.images.stored import from_shards, from_url
from pad.images.urls import RemoteFile, is_url


@dataclass(frozen=True)
class _Found:
    """One file of a specification, on the way to becoming a Sample."""

    path: Path
    key: str
    kind: str | None = None
    anomalous: bool | None = None
    mask: Path | None = None


def resolve(
    specs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    purpose: Purpose,
    data_root: str | os.PathLike[str] | None = None,
) -> ImageSet:
    """The images that `specs` name, once each, in the order given.

    `purpose` "train" leaves out images known to be anomalous and takes the training part of a dataset;
    "evaluate" takes the test part. `data_root` is where named datasets lie; without it, a path that exists is
    that path, whatever else it looks like. Raises PadError, naming the specification, for a path that is
    missing, a folder without images, a glob without match, an unknown dataset or class, or a dataset that is
    not there.
    """
    if isinstance(specs, str | os.PathLike):
        specs = [specs]
    if not specs:
        raise PadError("no images were named; give a file, a folder, a glob or a dataset")
    parts = [_resolve_one(os.fspath(spec), purpose, data_root) for spec in specs]
    return _without_repeats(parts)


def _resolve_one(spec: str, purpose: Purpose, data_root: str | os.PathLike[str] | None) -> ImageSet:
    if not spec.strip():
        raise PadError("an empty name was given where a file, a folder, a glob or a dataset is expected")
    if is_url(spec):
        return from_url(spec, purpose)
    path = Path(spec).expanduser()
    named = _looks_named(spec)
    # "celeba" with a data root is the dataset, also where a folder of that name is at hand
    if os.path.lexists(path) and not (named and data_root is not None):
        if shards := _only_shards([path]):
            return _shards(shards, path)
        return _image_set(_from_path(path, purpose), path)
    if named:
        return load_dataset(spec, purpose, Path(data_root) if data_root is not None else None)
    if glob.has_magic(spec):
        if shards := _only_shards(_matches(path)):
            return _shards(shards, path)
        return _image_set(_from_glob(path, purpose), path)
    raise PadError(f"{spec}: no such file, folder or dataset{_suggestion(spec)}")


def _looks_named(spec: str) -> bool:
    return canonical(spec.partition(":")[0]) in DATASETS


def _suggestion(spec: str) -> str:
    """The dataset or the neighbouring file that was probably meant."""
    name, colon, _ = spec.partition(":")
    if colon and len(name) > 1:
        return did_you_mean(canonical(name), DATASETS) or f"; the datasets are {', '.join(DATASETS)}"
    path = Path(spec).expanduser()
    try:
        neighbours = [p.name for p in path.parent.iterdir()]
    except OSError:
        neighbours = []
    return did_you_mean(path.name, [*neighbours, *DATASETS])


def _image_set(found: list[_Found], source: Path) -> ImageSet:
    return ImageSet(
        [Sample(_printable(f.path), f.kind, f.anomalous, f.mask) for f in found],
        [f.path for f in found],
        [f.key for f in found],
        _printable(Path(_base_name(source))),
    )


def _printable(path: Path) -> str:
    # A file name need not be text; what cannot be decoded is shown as the replacement character.
    return os.fsencode(path).decode("utf-8", "replace")


def _base_name(path: Path) -> str:
    return path.name or path.resolve().name or "root"


def _without_repeats(parts: list[ImageSet]) -> ImageSet:
    seen: set[str] = set()
    sources = [part.source for part in parts]
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    joined = ImageSet([], [], [], ", ".join(sources[:3]) + more)
    for part in parts:
        for sample, content, key in zip(part.samples, part.contents, part.keys, strict=True):
            identity = _identity(content, key)
            if identity not in seen:
                seen.add(identity)
                joined.samples.append(sample)
                joined.contents.append(content)
                joined.keys.append(key)
    return joined


def _identity(content: Content, key: str) -> str:
    if isinstance(content, Path):
        return os.path.abspath(content)  # noqa: PTH100 - unlike Path.absolute() it takes "a/../b" for "b"
    return getattr(content, "identity", f"dataset {key}")


def _from_path(path: Path, purpose: Purpose) -> list[_Found]:
    return _from_folder(path, purpose) if path.is_dir() else [_Found(path, path.name)]


def _matches(pattern: Path) -> list[Path]:
    return [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207


def _only_shards(paths: list[Path]) -> list[Path]:
    """The shards among files and in folders, if there are no images; else none."""
    inside = [file for path in paths for file in (_walk(path) if path.is_dir() else [path])]
    shards = [file for file in inside if is_shard(file.name)]
    return [] if any(counts_as_image(file.name) for file in inside) else shards


def _shards(paths: list[Path], source: Path) -> ImageSet:
    files = [(_printable(path), RemoteFile("file", str(path.absolute()))) for path in paths]
    return from_shards(files, _base_name(source))


def _from_glob(pattern: Path, purpose: Purpose) -> list[_Found]:
    found: list[_Found] = []
    for path in _matches(pattern):
        if path.is_dir():
            # `**` matches the folders and also what is in them, so the folders themselves add nothing.
            if "**" not in pattern.parts and any(_files(path)):
                found += _from_folder(path, purpose)
        elif counts_as_image(path.name):
            found.append(_Found(path, path.name))
    if not found:
        raise PadError(f"{pattern}: no image matches")
    return found


def _from_folder(folder: Path, purpose: Purpose) -> list[_Found]:
    test = folder / "test"
    if _normal_folders(test) and ((folder / "train").is_dir() or (folder / MASK_FOLDER).is_dir()):
        return _from_mvtec(folder, purpose)
    if _normal_folders(folder):
        return _from_labelled(folder, purpose, folder.parent / MASK_FOLDER)
    files = list(_files(folder))
    if not files:
        raise PadError(f"{folder}: no images in this folder")
    return [_Found(path, _key(folder, path)) for path in files]


def _from_mvtec(folder: Path, purpose: Purpose) -> list[_Found]:
    if purpose == "evaluate":
        return _from_labelled(folder / "test", purpose, folder / MASK_FOLDER)
    train = folder / "train"
    inside = [train / name for name in _subfolders(train) if name.lower() in NORMAL_FOLDERS]
    files = [path for place in inside or [train] if place.is_dir() for path in _files(place)]
    if not files:
        raise PadError(f"{train}: no normal images in this folder to train on")
    return [_Found(path, _key(folder, path), path.parent.name, False) for path in files]


def _from_labelled(folder: Path, purpose: Purpose, masks: Path) -> list[_Found]:
    """A folder whose sub-folders are the normal images and the kinds of anomaly.

    Files beside the sub-folders have no label: training leaves them out, evaluation scores them."""
    normal = _normal_folders(folder)
    found: list[_Found] = []
    for path in _files(folder):
        inside = path.relative_to(folder).parts
        kind = inside[0] if len(inside) > 1 else None
        anomalous = None if kind is None else kind not in normal
        if purpose == "train" and anomalous is not False:
            continue
        mask = _mask(masks, path.relative_to(folder)) if anomalous else None
        found.append(_Found(path, _key(folder, path), kind, anomalous, mask))
    if not found:
        raise PadError(f"{folder / normal[0] if purpose == 'train' else folder}: no images in this folder")
    return found


def _mask(masks: Path, relative: Path) -> Path | None:
    if not masks.is_dir():
        return None
    for name in (f"{relative.stem}_mask.png", f"{relative.stem}.png"):
        mask = masks / relative.with_name(name)
        if mask.is_file():
            return mask
    return None


def _key(folder: Path, path: Path) -> str:
    return (Path(_base_name(folder)) / path.relative_to(folder)).as_posix()


def _normal_folders(folder: Path) -> list[str]:
    """The names of the sub-folders with normal images, if others lie beside them; else nothing."""
    inside = [name for name in _subfolders(folder) if name.lower() != MASK_FOLDER]
    normal = [name for name in inside if name.lower() in NORMAL_FOLDERS]
    return normal if len(inside) > len(normal) else []


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def _files(folder: Path) -> Iterator[Path]:
    """All files below `folder` that count as images, sorted by folder and name."""
    return (file for file in _walk(folder) if counts_as_image(file.name))


def _walk(folder: Path) -> Iterator[Path]:
    """All files below `folder` that are not hidden, sorted by folder and name."""

    def refuse(error: OSError) -> None:
        raise PadError(f"{error.filename}: cannot read this folder ({error.strerror})")

    entered: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(here)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f.lower() != MASK_FOLDER)
        yield from (Path(here) / name for name in sorted(files) if not name.startswith("."))


def named_images(images: Any, normal: bool = False) -> Any:
    """What all functions that take images do first: what names several (a folder, a glob, a dataset, or a
    list of paths with one of these) becomes an ImageSet, as `pad evaluate` reads it. All else stays as it is:
    images in memory, and files, of which each counts, also one that is named twice.

    normal: without those that are known to be anomalous. Raises PadError as `resolve` does.
    """
    specs = [images] if isinstance(images, str | os.PathLike) else images
    if not isinstance(specs, list | tuple) or not all(isinstance(s, str | os.PathLike) for s in specs):
        return images
    if not any(_names_several(os.fspath(spec)) for spec in specs):
        return images
    found = resolve(specs, "evaluate")
    return found.normal_only() if normal else found


def _names_several(spec: str) -> bool:
    if is_url(spec):
        return True
    path = Path(spec).expanduser()
    if os.path.lexists(path):
        return path.is_dir() or is_shard(path.name)
    return _looks_named(spec) or glob.has_magic(spec)


def as_image_set(images: Any) -> ImageSet:
    """What `pad.fit` takes as an ImageSet: one already, paths (as `resolve` reads them), or images in memory.

    Images in memory are PIL images, uint8 arrays (n, H, W[, C]), or float tensors or arrays (n, C, H, W) in
    [-1, 1], which are rounded to 8 bits. Raises PadError, naming the index, for anything else.
    """
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, str | os.PathLike):
        return resolve([images], "train")
    items = list(images)
    if items and all(isinstance(item, str | os.PathLike) for item in items):
        return resolve(items, "train")
    contents: list[Content] = [_pixels(item, index) for index, item in enumerate(items)]
    names = [f"image {index}" for index in range(len(items))]
    return ImageSet([Sample(name) for name in names], contents, names, "memory")


def files_or_pictures(images: Any) -> ImageSet:
    """Single files and images in memory, each of them once for every time that it is given, none of them
    opened: as `as_image_set`, but that a file which is not there is an image that cannot be read."""
    items = [images] if isinstance(images, str | os.PathLike | Image.Image) else list(images)
    contents: list[Content] = []
    names: list[str] = []
    for index, item in enumerate(items):
        path = Path(item) if isinstance(item, str | os.PathLike) else None
        contents.append(path or _pixels(item, index))
        names.append(_printable(path) if path else f"image {index}")
    return ImageSet([Sample(name) for name in names], contents, list(names), "memory")


def _pixels(image: Any, index: int) -> np.ndarray | Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        return read_image(image, os.fspath(image))
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.dtype.kind == "f" and array.ndim == 3 and array.shape[0] in (1, 3):
        array = _at_8_bits(array, index)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise PadError(
            f"image {index}: takes a path, a PIL image, a uint8 array (H, W[, C]) or a float tensor (C, H, "
            f"W), not {array.dtype} of shape {array.shape}"
        )
    return array


def _at_8_bits(array: np.ndarray, index: int) -> np.ndarray:
    """Floats (C, H, W) in [-1, 1] as uint8 (H, W, C)."""
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    if not max(-low, high) <= 1.001:
        raise PadError(f"image {index}: values from {low:g} to {high:g}; floats must lie in [-1, 1]")
    return np.moveaxis((np.clip(array, -1, 1) + 1) * 127.5, 0, -1).round().astype(np.uint8)
