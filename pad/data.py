"""Which images are meant, what is known about each, and a steady stream of them as tensors.

A specification is an image file, a folder, a glob, or a named dataset such as `fashion-mnist:9`
(pad/datasets.py).

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
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from PIL import Image

from pad.errors import PadError, did_you_mean

if TYPE_CHECKING:
    import torch

    from pad.config import Config

Result = TypeVar("Result")
Purpose = Literal["train", "evaluate"]

NORMAL_FOLDERS = ("normal", "good")
MASK_FOLDER = "ground_truth"
SMALL = 1 << 16  # pixels of a picture that waits to be resized together with others
PATIENCE = 0.05  # seconds that a lane waits for another to have read its images
SIDECARS = frozenset(
    {
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".md",
        ".rst",
        ".yaml",
        ".yml",
        ".toml",
        ".xml",
        ".html",
        ".log",
    }
    | {".ini", ".cfg", ".db", ".py", ".ipynb", ".npy", ".npz", ".pt", ".pth", ".pkl", ".safetensors"}
    | {".zip", ".gz", ".tar", ".pdf"}
)


@dataclass(frozen=True)
class Sample:
    """What is known about one image."""

    name: str  # as shown to the user, and in scores.csv
    kind: str | None = None  # the sub-folder or class it is from, also for normal images
    anomalous: bool | None = None  # None: unknown
    mask: Path | None = None  # where its defect is, white on black


class Packed(Protocol):
    """An image in a container (a database, say): the bytes of an image file, read when asked for."""

    def read(self) -> bytes: ...


# A file, a uint8 array (H, W[, 3 or 4]), a PIL image of any mode, or packed.
Content = Path | np.ndarray | Image.Image | Packed


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, each opened only when asked for.

    `keys` are names that are the same on every machine (relative to the folder that was given).
    """

    samples: list[Sample]
    contents: list[Content] = field(repr=False)
    keys: list[str] = field(repr=False)
    source: str  # what was asked for, without the path to it

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labelled(self) -> bool:
        """Whether it is known of any image if it is anomalous."""
        return any(sample.anomalous is not None for sample in self.samples)

    def open(self, index: int) -> Image.Image:
        """The image as stored, upright. Raises pad.images.ImageError if it cannot be read."""
        from pad.images import read_image

        content, name = self.contents[index], self.samples[index].name
        if isinstance(content, np.ndarray):
            return Image.fromarray(content)
        if isinstance(content, Image.Image):
            return content
        return read_image(content if isinstance(content, Path) else content.read(), name)

    def describe(self) -> str:
        """`"120 images in ankle-boot"`, for messages."""
        return f"{len(self)} image{'' if len(self) == 1 else 's'} in {self.source}"

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """Some of the images, in the order of `indices`."""
        chosen = list(indices)
        return ImageSet(
            [self.samples[i] for i in chosen],
            [self.contents[i] for i in chosen],
            [self.keys[i] for i in chosen],
            self.source,
        )

    def normal_only(self) -> ImageSet:
        """Without the images that are known to be anomalous."""
        return self.subset(i for i, sample in enumerate(self.samples) if not sample.anomalous)

    def fingerprint(self) -> dict[str, str | int]:
        """`source`, number of `images`, and a `sha256` of their keys and sizes (in memory: their pixels).

        Cheap, and the same on every machine: no path to the data enters, and files are not read.
        """
        digest = hashlib.sha256()
        for key, content in zip(self.keys, self.contents, strict=True):
            digest.update(key.encode("utf-8", "surrogateescape") + b"\0")
            if isinstance(content, np.ndarray):
                digest.update(np.ascontiguousarray(content).tobytes())
            elif isinstance(content, Image.Image):
                digest.update(content.tobytes())
            elif isinstance(content, Path):
                digest.update(str(_size(content)).encode() + b"\0")
        return {"source": self.source, "images": len(self), "sha256": digest.hexdigest()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


# Resolving ----------------------------------------------------------------------------------------


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
    path = Path(spec).expanduser()
    named = _looks_named(spec)
    # "celeba" with a data root is the dataset, also where a folder of that name is at hand
    if os.path.lexists(path) and not (named and data_root is not None):
        return _image_set(_from_path(path, purpose), path)
    if named:
        from pad import datasets

        return datasets.load(spec, purpose, Path(data_root) if data_root is not None else None)
    if glob.has_magic(spec):
        return _image_set(_from_glob(path, purpose), path)
    raise PadError(f"{spec}: no such file, folder or dataset{_suggestion(spec)}")


def _looks_named(spec: str) -> bool:
    from pad.datasets import DATASETS, canonical

    return canonical(spec.partition(":")[0]) in DATASETS


def _suggestion(spec: str) -> str:
    """The dataset or the neighbouring file that was probably meant."""
    from pad.datasets import DATASETS, canonical

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
            identity = _identity(content) if isinstance(content, Path) else f"dataset {key}"
            if identity not in seen:
                seen.add(identity)
                joined.samples.append(sample)
                joined.contents.append(content)
                joined.keys.append(key)
    return joined


def _identity(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - unlike Path.absolute() it takes "a/../b" for "b"


def _from_path(path: Path, purpose: Purpose) -> list[_Found]:
    return _from_folder(path, purpose) if path.is_dir() else [_Found(path, path.name)]


def _from_glob(pattern: Path, purpose: Purpose) -> list[_Found]:
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    found: list[_Found] = []
    for path in matches:
        if path.is_dir():
            # `**` matches the folders and also what is in them, so the folders themselves add nothing.
            if "**" not in pattern.parts and any(_files(path)):
                found += _from_folder(path, purpose)
        elif _counts(path.name):
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


def _counts(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return not name.startswith(".") and Path(name).suffix.lower() not in SIDECARS


def _files(folder: Path) -> Iterator[Path]:
    """All files below `folder` that count as images, sorted by folder and name."""

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
        yield from (Path(here) / name for name in sorted(files) if _counts(name))


# Streaming ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Some consecutive images of an ImageSet: those that could be read, and why others could not."""

    indices: list[int]  # of the rows of `tensor`, in the ImageSet
    tensor: torch.Tensor  # float32 (len(indices), channels, size, size) in [-1, 1]
    errors: list[tuple[int, str]]  # index in the ImageSet and the reason, without the name


def stream(images: ImageSet, config: Config, batch_size: int, workers: int = 2) -> Iterator[Batch]:
    """All images in order, `batch_size` at a time, decoded by `workers` threads ahead of the consumer.

    At most `workers` + 1 batches wait, so memory does not grow with the number of images. An unreadable image
    is in its batch's `errors`; a batch in which none was readable has an empty tensor.
    """
    pieces = _ranges(len(images), batch_size)
    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="decode")

    def ahead() -> None:
        chosen = next(pieces, None)
        if chosen is not None:
            waiting.append(pool.submit(_decode, images, chosen, config))

    try:
        for _ in range(max(1, workers) + 1):
            ahead()
        while waiting:
            batch = waiting.popleft().result()
            ahead()
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def each_batch(
    function: Callable[[Batch], Result],
    images: ImageSet,
    config: Config,
    device: torch.device,
    batch_size: int,
) -> Iterator[Result]:
    """`function` of all images in order, `batch_size` at a time or, on a CPU, a share of it in every lane."""
    from pad.devices import in_parallel, lanes

    if device.type != "cpu":
        return map(function, stream(images, config, batch_size))

    turn = threading.Lock()

    def read(chosen: range) -> Result:
        # To read small files is mostly Python, which two lanes at once would only snatch from each other: one
        # waits, and then reads while the other computes. Large files are decoded outside Python's lock.
        waited_for = turn.acquire(timeout=PATIENCE)
        try:
            batch = _decode(images, chosen, config)
        finally:
            if waited_for:
                turn.release()
        return function(batch)

    # A lane reads its own images: more threads than processors would be in each other's way.
    workers = lanes(device, batch_size)
    return in_parallel(read, _ranges(len(images), batch_size // workers), workers)


def _ranges(n: int, size: int) -> Iterator[range]:
    """0 .. n - 1 in pieces of `size`."""
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def _decode(images: ImageSet, chosen: range, config: Config) -> Batch:
    from pad.images import ImageError, planes

    indices: list[int] = []
    pixels: list[tuple[torch.Tensor, float]] = []
    errors: list[tuple[int, str]] = []
    for index in chosen:
        try:
            pixels.append(_shrunk(*planes(images.open(index), config), config))
            indices.append(index)
        except ImageError as error:
            errors.append((index, error.reason))
        except (
            OSError,
            ValueError,
            MemoryError,
        ) as error:  # a mode that Pillow cannot convert, a lost container
            errors.append((index, f"cannot be decoded ({error})"))
    return Batch(indices, _together(pixels, config), errors)


def _shrunk(pixels: torch.Tensor, white: float, config: Config) -> tuple[torch.Tensor, float]:
    """A large picture as `scaled` gives it, at once: a batch of large ones might not fit into memory."""
    from pad.images import scaled

    if pixels.shape[-1] * pixels.shape[-2] <= SMALL:
        return pixels, white
    return scaled(pixels, white, config), 0.0  # no white: it is done


def _together(pixels: list[tuple[torch.Tensor, float]], config: Config) -> torch.Tensor:
    """Float32 (n, channels, size, size) in [-1, 1]; pictures of one shape and type are resized in one go,
    which is much quicker for small ones."""
    import torch

    from pad.images import scaled

    tensor = torch.empty(len(pixels), config.channels, config.size, config.size)
    groups: dict[Any, list[int]] = {}
    for row, (p, white) in enumerate(pixels):
        groups.setdefault((p.shape, p.dtype, white), []).append(row)
    for (_, _, white), rows in groups.items():
        stacked = torch.stack([pixels[row][0] for row in rows])
        tensor[rows] = scaled(stacked, white, config) if white else stacked
    return tensor


def load_all(
    images: ImageSet,
    config: Config,
    workers: int = 2,
    half: bool = False,
    progress: Callable[[int], object] | None = None,
) -> tuple[torch.Tensor, list[int], list[tuple[int, str]]]:
    """All readable images in memory, decoded by `workers` threads; `progress` is told of so many more.

    Returns float32 (or, to save memory, float16) (n, channels, size, size) in [-1, 1], the indices of its
    rows in `images`, and the errors as in Batch.
    """
    import torch

    shape = (len(images), config.channels, config.size, config.size)
    pixels = torch.empty(shape, dtype=torch.float16 if half else torch.float32)
    kept: list[int] = []
    errors: list[tuple[int, str]] = []
    for batch in stream(images, config, 64, workers):
        pixels[len(kept) : len(kept) + len(batch.indices)] = batch.tensor
        kept += batch.indices
        errors += batch.errors
        if progress is not None:
            progress(len(batch.indices) + len(batch.errors))
    return pixels[: len(kept)], kept, errors


def as_image_set(images: Any) -> ImageSet:
    """What `pad.fit` takes as an ImageSet: one already, paths (as `resolve` reads them), or images in memory.

    Images in memory are PIL images, uint8 arrays (n, H, W[, C]), or float tensors (n, C, H, W) in [-1, 1],
    which are rounded to 8 bits. Raises PadError, naming the index, for anything else.
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


def _pixels(image: Any, index: int) -> np.ndarray | Image.Image:
    if isinstance(image, Image.Image):
        return image
    if hasattr(image, "is_floating_point") and image.is_floating_point() and image.dim() == 3:
        image = ((image.detach().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).numpy()
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise PadError(
            f"image {index}: takes a path, a PIL image, a uint8 array (H, W[, C]) or a float tensor (C, H, "
            f"W), not {array.dtype} of shape {array.shape}"
        )
    return array
