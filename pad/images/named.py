"""Named datasets for one-vs-rest experiments: `fashion-mnist:9`, `cifar10:cat,dog`, `celeba`, ...

The specification names the normal class (or classes, by index or name). Purpose "train" gives the normal
images of the training split; "evaluate" the whole test split, every other class being anomalous, its name the
kind. Nothing is downloaded: a dataset that is not there is an error that says which files go where.

- `mnist`, `fashion-mnist`: the IDX files, packed (.gz) or not.
- `cifar10`: the folder `cifar-10-batches-py`, read by torchvision, which checks the files before it unpickles
  them.
- `coil-100`: `obj<k>__<angle>.png`; class k from 1 to 100. It has no split of its own, so every fifth view of
  an object is for testing.
- `celeba`: normal are faces with none of the paper's five attributes (`CELEBA_KINDS`); each kind of anomaly
  is the faces with exactly one of them; faces with several are left out, as in the authors' code.
- `lsun`: bedrooms are normal, conference rooms anomalous; the validation split is the test set
  (arXiv:1909.05904).
"""

from __future__ import annotations

import functools
import gzip
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pad.errors import PadError, did_you_mean
from pad.images.imageset import Content, ImageSet, Purpose, Sample

FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CELEBA_KINDS = ("bald", "mustache", "bangs", "eyeglasses", "wearing-hat")
# Debian's package `dataset-fashion-mnist` installs here.
SYSTEM_ROOT = Path("/usr/share/datasets")


@dataclass(frozen=True)
class LabelledImage:
    """One image of a dataset: where it is in it, its class, and its content."""

    key: str  # "fashion-mnist/test/00042"
    label: int  # index into the dataset's classes
    content: Content


@dataclass(frozen=True)
class Dataset:
    """How a named dataset is read, and what to tell a user who lacks it."""

    classes: tuple[str, ...]
    read: Callable[
        [str, Purpose, Path | None], list[LabelledImage]
    ]  # the whole split; name, purpose, data root
    torch_name: str  # torchvision's class, which is also the folder that it makes
    origin: str  # where to get it
    normal: int | None = None  # the only class that can be normal, if there is such
    first: int = 0  # the index by which users call the first class


def canonical(name: str) -> str:
    """`"Fashion_MNIST"` as `"fashion-mnist"`, with the spellings `"cifar-10"` and `"coil100"` put right."""
    plain = re.sub(r"[\s_]+", "-", name.strip().lower())
    return {"cifar-10": "cifar10", "coil100": "coil-100", "fashionmnist": "fashion-mnist"}.get(plain, plain)


def load_dataset(spec: str, purpose: Purpose, data_root: Path | None = None) -> ImageSet:
    """The ImageSet of a specification `NAME:CLASS[,CLASS...]`, where CLASS is an index or a name.

    Raises PadError for an unknown name or class, and for a dataset that is not there or is damaged.
    """
    name, _, wanted = spec.partition(":")
    name = canonical(name)
    if name not in DATASETS:
        raise PadError(f"{spec}: no dataset named '{name}'{did_you_mean(name, DATASETS)}")
    dataset = DATASETS[name]
    normal = _normal_classes(spec, dataset, wanted)
    entries = dataset.read(name, purpose, data_root)
    if purpose == "train":
        entries = [entry for entry in entries if entry.label in normal]
    if not entries:
        raise PadError(f"{spec}: the dataset has no images of this class to {purpose} on")
    samples = [Sample(e.key, dataset.classes[e.label], e.label not in normal) for e in entries]
    source = f"{name}:{','.join(dataset.classes[label] for label in sorted(normal))}"
    return ImageSet(samples, [e.content for e in entries], [e.key for e in entries], source)


def _normal_classes(spec: str, dataset: Dataset, wanted: str) -> set[int]:
    words = [word for word in (canonical(word) for word in wanted.split(",")) if word]
    if not words and dataset.normal is not None:
        return {dataset.normal}
    if not words:
        example = f"{spec.rstrip(':')}:{dataset.classes[-1]}"
        raise PadError(f"{spec}: name the normal class, such as '{example}'; {_class_list(dataset)}")
    chosen = {_class_index(spec, dataset, word) for word in words}
    if dataset.normal is not None and chosen != {dataset.normal}:
        raise PadError(
            f"{spec}: only '{dataset.classes[dataset.normal]}' can be the normal class of this dataset"
        )
    if len(chosen) == len(dataset.classes):
        raise PadError(f"{spec}: with every class normal nothing is left to be anomalous")
    return chosen


def _class_index(spec: str, dataset: Dataset, word: str) -> int:
    if word in dataset.classes:
        return dataset.classes.index(word)
    if re.fullmatch(r"\d{1,6}", word) and 0 <= int(word) - dataset.first < len(dataset.classes):
        return int(word) - dataset.first
    hint = "" if word.isdigit() else did_you_mean(word, dataset.classes)
    raise PadError(f"{spec}: no class '{word}'{hint or '; ' + _class_list(dataset)}")


def _class_list(dataset: Dataset) -> str:
    last = dataset.first + len(dataset.classes) - 1
    if len(dataset.classes) > 12:
        return f"the classes are {dataset.first} to {last}"
    return f"the classes are {dataset.first} to {last} or {', '.join(dataset.classes)}"


def _missing(name: str, looked_for: str, places: Sequence[Path]) -> PadError:
    where = f"looked in {', '.join(str(place) for place in places)}" if places else "no --data-root was given"
    return PadError(
        f"{name}: dataset not found ({where}); it needs {looked_for}. Get it from {DATASETS[name].origin}, "
        f"and give the folder that it lies in with --data-root"
    )


def _places(name: str, data_root: Path | None, *below: str) -> list[Path]:
    """The folders in which a dataset may lie, the most specific first."""
    if data_root is None:
        system = SYSTEM_ROOT / name
        return [system] if system.is_dir() else []
    root = data_root.expanduser()
    if not root.is_dir():
        raise PadError(f"--data-root: {data_root} is not a folder")
    torch_name = DATASETS[name].torch_name
    return [root / part for part in dict.fromkeys([*below, name, torch_name, torch_name.lower(), "."])]


# MNIST and Fashion-MNIST --------------------------------------------------------------------------

_IDX_SPLITS = {"train": "train", "evaluate": "t10k"}


def _read_idx_dataset(name: str, purpose: Purpose, data_root: Path | None) -> list[LabelledImage]:
    places = _places(name, data_root, f"{DATASETS[name].torch_name}/raw")
    split = _IDX_SPLITS[purpose]
    names = (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte")
    for place in places:
        files = [_plain_or_packed(place / file) for file in names]
        if files[0] and files[1]:
            images, labels = read_idx(files[0]), read_idx(files[1])
            if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
                raise PadError(f"{files[0]}: does not fit its labels in {files[1].name}")
            part = "train" if purpose == "train" else "test"
            return [LabelledImage(f"{name}/{part}/{i:05d}", int(k), images[i]) for i, k in enumerate(labels)]
    raise _missing(name, f"{names[0]}[.gz] and {names[1]}[.gz]", places)


def _plain_or_packed(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file, packed by gzip or not.

    The format: two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a big-endian
    uint32, the values. Raises PadError for a file that is cut short or is something else.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise PadError(f"{path}: cannot be read ({error})") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise PadError(f"{path}: not an IDX file of bytes")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != int(np.prod(shape, dtype=object)):
        raise PadError(f"{path}: damaged; its header promises {shape}, and {values.size} values follow")
    return values.reshape(shape)


# CIFAR-10 -----------------------------------------------------------------------------------------


def _read_cifar10(name: str, purpose: Purpose, data_root: Path | None) -> list[LabelledImage]:
    places = _places(name, data_root, "cifar-10")
    inner = "cifar-10-batches-py"
    roots = [place for place in places if (place / inner).is_dir()]
    if data_root is not None and data_root.name == inner:
        roots.append(data_root.parent)
    if not roots:
        raise _missing(name, f"the folder {inner}", places)
    from torchvision.datasets import CIFAR10

    try:
        dataset = CIFAR10(str(roots[0]), train=purpose == "train", download=False)
    except (RuntimeError, OSError) as error:
        raise PadError(
            f"{roots[0] / inner}: damaged or incomplete ({error}); get it again from {DATASETS[name].origin}"
        ) from None
    part = "train" if purpose == "train" else "test"
    pairs = zip(dataset.data, dataset.targets, strict=True)
    return [LabelledImage(f"{name}/{part}/{i:05d}", int(k), image) for i, (image, k) in enumerate(pairs)]


# COIL-100 -----------------------------------------------------------------------------------------

_COIL_FILE = re.compile(r"obj(\d+)__(\d+)\.png", re.IGNORECASE)
_COIL_TEST_EVERY = 5  # views; they are 5 degrees apart


def _read_coil(name: str, purpose: Purpose, data_root: Path | None) -> list[LabelledImage]:
    places = _places(name, data_root, "coil100")
    for place in places:
        matches = [(m, p) for p in _listing(place) if (m := _COIL_FILE.fullmatch(p.name))]
        views = sorted((int(m[1]), int(m[2]), p) for m, p in matches if 1 <= int(m[1]) <= 100)
        if views:
            test = purpose == "evaluate"
            return [
                LabelledImage(f"{name}/{path.name}", number - 1, path)
                for number, angle, path in views
                if (angle // 5 % _COIL_TEST_EVERY == _COIL_TEST_EVERY - 1) == test
            ]
    raise _missing(name, "obj1__0.png and so on", places)


def _listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


# CelebA -------------------------------------------------------------------------------------------

_CELEBA_SPLITS = {"train": "0", "evaluate": "2"}  # in list_eval_partition.txt


def _read_celeba(name: str, purpose: Purpose, data_root: Path | None) -> list[LabelledImage]:
    # Not torchvision's class: it insists on four more annotation files that this does not need.
    places = _places(name, data_root)
    needed = ("list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba")
    for place in places:
        if all((place / file).exists() for file in needed):
            break
    else:
        raise _missing(name, f"{needed[0]}, {needed[1]} and the folder {needed[2]}", places)
    split = dict(line.split()[:2] for line in _lines(place / needed[1]) if len(line.split()) > 1)
    _, header, *rows = [*_lines(place / needed[0]), "", ""]
    names = [canonical(word) for word in header.split()]
    if not set(CELEBA_KINDS) <= set(names):
        raise PadError(f"{place / needed[0]}: the second line does not name {', '.join(CELEBA_KINDS)}")
    columns = [names.index(kind) + 1 for kind in CELEBA_KINDS]
    entries: list[LabelledImage] = []
    for row in filter(None, (line.split() for line in rows)):
        if len(row) != len(names) + 1:
            raise PadError(
                f"{place / needed[0]}: the line of '{row[0]}' has {len(row) - 1} values, not {len(names)}"
            )
        present = [label for label, column in enumerate(columns, start=1) if row[column] == "1"]
        if split.get(row[0]) == _CELEBA_SPLITS[purpose] and len(present) <= 1:
            label = present[0] if present else 0
            entries.append(LabelledImage(f"{name}/{row[0]}", label, place / needed[2] / row[0]))
    return entries


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PadError(f"{path}: cannot be read ({error})") from None


# LSUN ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LmdbImage:
    environment: Any  # lmdb.Environment
    key: bytes

    def read(self) -> bytes:
        with self.environment.begin(write=False) as transaction:
            return bytes(transaction.get(self.key))


def _read_lsun(name: str, purpose: Purpose, data_root: Path | None) -> list[LabelledImage]:
    # Not torchvision's class: it leaves a pickle in the working directory, and loads whatever lies there.
    split = "train" if purpose == "train" else "val"
    rooms = DATASETS[name].classes[:1] if purpose == "train" else DATASETS[name].classes
    folders = [f"{room.replace('-', '_')}_{split}_lmdb" for room in rooms]
    places = _places(name, data_root)
    for place in places:
        if all((place / folder).is_dir() for folder in folders):
            break
    else:
        raise _missing(name, " and ".join(folders), places)
    entries: list[LabelledImage] = []
    for label, folder in enumerate(folders):
        environment, keys = _open_lmdb(place / folder)
        entries += [
            LabelledImage(
                f"{name}/{folder}/{key.decode('ascii', 'replace')}", label, _LmdbImage(environment, key)
            )
            for key in keys
        ]
    return entries


@functools.cache  # LMDB does not open a database twice in one process
def _open_lmdb(folder: Path) -> tuple[Any, list[bytes]]:
    """An environment and its keys, in their own order."""
    try:
        import lmdb  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise PadError("lsun: its files are LMDB databases; install the reader: pip install lmdb") from None
    try:
        environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
        with environment.begin(write=False) as transaction:
            return environment, list(transaction.cursor().iternext(keys=True, values=False))
    except lmdb.Error as error:
        raise PadError(f"{folder}: not a readable LMDB database ({error})") from None


_TORCHVISION = "torchvision.datasets.{0}(FOLDER, download=True) in Python"

DATASETS: dict[str, Dataset] = {
    "mnist": Dataset(
        tuple(str(digit) for digit in range(10)), _read_idx_dataset, "MNIST", _TORCHVISION.format("MNIST")
    ),
    "fashion-mnist": Dataset(
        FASHION_CLASSES,
        _read_idx_dataset,
        "FashionMNIST",
        f"Debian's package dataset-fashion-mnist, or {_TORCHVISION.format('FashionMNIST')}",
    ),
    "cifar10": Dataset(CIFAR10_CLASSES, _read_cifar10, "CIFAR10", _TORCHVISION.format("CIFAR10")),
    "coil-100": Dataset(
        tuple(f"obj{number}" for number in range(1, 101)),
        _read_coil,
        "COIL100",
        "https://www.cs.columbia.edu/CAVE/software/softlib/coil-100.php",
        first=1,
    ),
    "celeba": Dataset(
        ("normal", *CELEBA_KINDS),
        _read_celeba,
        "CelebA",
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        normal=0,
    ),
    "lsun": Dataset(
        ("bedroom", "conference-room"), _read_lsun, "LSUN", "https://github.com/fyu/lsun", normal=0
    ),
}
