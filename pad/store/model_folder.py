"""A model folder on disk: what is in it, how it is replaced whole, and what is refused on reading.

    model.safetensors   all weights that scoring and fine-tuning need
    config.yaml         {format: 1, recipe: {...}, versions: {...}, data: {...}, training: {...}}
    calibration.json    {"scores": [sorted scores of held-out normal images], ...}; may be absent
    README.md           the card

**Replacing.** A new model is written to `.NAME.new` beside the old one and synced, then takes its place
(pad/store/files.py, `replace_folder`). A kill at any moment leaves the old or the new model whole: between
two renames only `.NAME.old` is there, and `read_model` (and `present`) then read that one. One writer at a
time.

**Reading.** A model may come from a stranger, so nothing in it is executed, and every file is checked
before anything is built from it. Paths inside `config.yaml` (`backbone_weights`, `statistics`) are those of
the machine that trained the model: `read_model` hands them on as text and opens none of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml

from pad.config import Config
from pad.errors import PadError, one_line
from pad.store.files import CannotWrite, replace_folder, restore_folder, sibling, sync_folder, write_synced
from pad.store.plain_json import parse_json
from pad.store.schema import FORMAT, MOST_TEXT, check_calibration, check_config
from pad.store.weights import TensorSpec, check_finite, check_tensors, parse_weights, read_header

if TYPE_CHECKING:
    import torch

    Expected = Callable[[Config, Mapping[str, TensorSpec]], Mapping[str, torch.Tensor]]

WEIGHTS, CONFIG, CALIBRATION, CARD = "model.safetensors", "config.yaml", "calibration.json", "README.md"
FILES = (WEIGHTS, CONFIG, CALIBRATION, CARD)

MAX_WEIGHTS = 2 << 30  # bytes
MAX_CONFIG = 1_000_000  # bytes
MAX_CARD = 4_000_000  # bytes
MAX_NODES = 20_000  # values, lists and mappings of config.yaml
MAX_CALIBRATION = 64_000_000  # bytes

LIMITS = {WEIGHTS: MAX_WEIGHTS, CONFIG: MAX_CONFIG, CALIBRATION: MAX_CALIBRATION, CARD: MAX_CARD}
MAX_OTHER = 64_000_000  # bytes of any other file of a model: a picture of its card, a sample image
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class ModelFiles:
    """What `read_model` found: checked tensors, and plain mappings for the rest."""

    tensors: dict[str, torch.Tensor]
    recipe: Config
    config: dict[str, Any]  # the whole of config.yaml, as pad/store/schema.py takes it
    calibration: dict[str, Any] | None  # calibration.json, or None where the model has none


# ---------------------------------------------------------------------------------------------- writing


def write_model(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config_yaml: Mapping[str, Any],
    calibration: Mapping[str, Any] | None,
    readme: str,
) -> None:
    """Writes a model folder, replacing an older one whole (see the module's text).

    Other files that lie in the older model's folder (pictures of its card) are kept. `config_yaml` gets
    `format: 1` if it names none.

    Raises PadError if a tensor is not finite, if `folder` holds something other than a model, or if the
    disk refuses.
    """
    import safetensors.torch

    folder = Path(folder)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    check_finite(plain, folder / WEIGHTS)
    config_yaml = {"format": FORMAT, **config_yaml}
    contents = {
        WEIGHTS: safetensors.torch.save(plain),
        CONFIG: dump_config(config_yaml),
        CARD: readme.encode(),
    }
    if calibration is not None:
        contents[CALIBRATION] = _calibration_json(calibration, folder / CALIBRATION)

    folder = _absolute(folder)
    new = sibling(folder, "new")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(_current(folder))
        restore_folder(folder)  # a writer may have been killed between its two renames
        try:
            new.mkdir()
            _copy_others(folder, new)
            for name, content in contents.items():
                write_synced(new / name, content)
            sync_folder(new)
            replace_folder(new, folder)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise
    except OSError as error:
        raise CannotWrite(f"the model to {folder}", error) from None


def _calibration_json(calibration: Mapping[str, Any], path: Path) -> bytes:
    try:
        return (json.dumps(calibration, allow_nan=False) + "\n").encode()
    except ValueError:
        raise PadError(f"cannot write {path}: the model makes numbers that are not finite") from None


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors and aliases, which the reading side refuses."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_config(config: Mapping[str, Any]) -> bytes:
    """The content of config.yaml, in plain YAML."""
    return yaml.dump(dict(config), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True).encode()


def _refuse_foreign(folder: Path) -> None:
    """A folder that holds files but no model is somebody's data: never replace it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PadError(f"cannot write the model to {folder}: it is a file, not a folder")
    if any(folder.iterdir()) and not (folder / WEIGHTS).is_file():
        raise PadError(
            f"cannot write the model to {folder}: it holds other files; name a new or empty folder"
        )


def _copy_others(folder: Path, new: Path) -> None:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name in FILES:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def fingerprint(folder: Path) -> str:
    """A digest of all that reading a model folder takes from it: two models of one digest are the same.

    Raises PadError as `read_model` does."""
    digest = hashlib.sha256()
    place = _current(folder)
    _require_files(place)
    for name, limit in ((WEIGHTS, MAX_WEIGHTS), (CONFIG, MAX_CONFIG), (CALIBRATION, MAX_CALIBRATION)):
        if name == CALIBRATION and not os.path.lexists(place / name):
            continue
        with open_inside(place, name, limit) as (file, size):
            digest.update(f"{name} {size}\n".encode())
            while block := file.read(1 << 20):  # whatever is in it: nothing is checked yet
                digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- reading


def present(folder: Path) -> bool:
    """Whether a model folder lies there, also one whose writer was killed while replacing it."""
    return any((place / WEIGHTS).exists() for place in (folder, sibling(_absolute(folder), "old")))


def read_model(folder: Path, expected: Expected | None = None) -> ModelFiles:
    """Reads and checks a model folder; see the module's text.

    Args:
        folder: the model folder.
        expected: of a recipe and of what the header of the weights names, the tensors that the networks of
            that recipe need. It is asked, and compared with the header, before any tensor is read.

    Raises PadError, one line naming the file, for: a missing file; a pickle in any guise; a file that is a
    link out of the folder or no regular file; an oversized header or file; tensors that do not lie inside
    the file, are of an unknown type, not finite, or not those expected; a config that is no YAML mapping, of
    a newer format, or with anything in it that pad/store/schema.py does not take; a malformed calibration.
    """
    folder = Path(folder)
    for _ in range(500):  # a writer may replace the folder under us: then read again
        place = _current(folder)
        before = _identity(place)
        try:
            model = _read_files(place, expected)
        except PadError:
            now = _current(folder)  # in the middle of a replacement it lies under another name
            if now == place and before == _identity(now):
                raise
            time.sleep(0.01)
            continue
        if before == _identity(_current(folder)):
            return model
        time.sleep(0.01)
    raise PadError(f"{folder} keeps changing while it is read: wait for its writer")


def _absolute(folder: Path) -> Path:
    return Path(os.path.normpath(Path.cwd() / folder))  # links stay links


def _current(folder: Path) -> Path:
    """The folder, or what is left of it when its writer was killed between two renames."""
    left = sibling(_absolute(folder), "old")
    return left if not folder.exists() and left.is_dir() else folder


def _identity(folder: Path) -> tuple[int, int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns  # inode numbers are used again


def _read_files(folder: Path, expected: Expected | None) -> ModelFiles:
    _require_files(folder)
    config = _parse_config(read_inside(folder, CONFIG, MAX_CONFIG), folder / CONFIG)
    recipe = check_config(config, f"{folder / CONFIG}")

    def check(file: BinaryIO, size: int, path: Path) -> None:
        found = read_header(file, size, path)
        if expected is not None:
            check_tensors(found, expected(recipe, found), path)

    tensors = parse_weights(read_inside(folder, WEIGHTS, MAX_WEIGHTS, check), folder / WEIGHTS)
    calibration = None
    if os.path.lexists(folder / CALIBRATION):
        calibration = parse_json(read_inside(folder, CALIBRATION, MAX_CALIBRATION), folder / CALIBRATION)
        check_calibration(calibration, recipe, f"{folder / CALIBRATION}")
    return ModelFiles(tensors, recipe, config, calibration)


def _require_files(folder: Path) -> None:
    if not folder.exists():
        raise PadError(f"{folder}: there is no such model folder")
    if not folder.is_dir():
        kind = " (a pickle is never loaded)" if folder.suffix in _PICKLES else ""
        raise PadError(f"{folder} is a file{kind}: name the model folder, with {WEIGHTS} and {CONFIG} in it")
    missing = [name for name in (WEIGHTS, CONFIG) if not os.path.lexists(folder / name)]
    if WEIGHTS in missing:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        if pickles:
            raise PadError(f"{folder} holds {pickles[0]} but no {WEIGHTS}: a pickle is never loaded")
    if missing:
        raise PadError(f"{folder} is not a model folder: it has no {' and no '.join(missing)}")


def read_inside(
    folder: Path, name: str, limit: int, check: Callable[[BinaryIO, int, Path], None] | None = None
) -> bytes:
    """The bytes of one file of a model folder.

    Args:
        folder, name: where it lies.
        limit: the most bytes that it may have.
        check: `check(file, size, path)` may look at the open file before it is read whole.

    Raises PadError, naming the file, if it cannot be read, is a link out of the folder, no regular file, or
    too large.
    """
    with open_inside(folder, name, limit) as (file, size):
        if check is not None:
            check(file, size, folder / name)
            file.seek(0)
        return file.read(limit + 1)


@contextlib.contextmanager
def open_inside(folder: Path, name: str, limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """One file of a model folder, opened, and its size in bytes. Raises PadError as `read_inside` does."""
    path = folder / name
    try:
        check_inside(folder, path)
        # Not blocking: a pipe in a file's place must not hang the reader.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise PadError(f"{path} is not a regular file: refused")
            if status.st_size > limit:
                raise PadError(f"{path} is too large: {status.st_size:,} bytes, at most {limit:,}")
            yield file, status.st_size
    except OSError as error:
        raise PadError(f"cannot read {path}: {error.strerror or error}") from None


def check_inside(folder: Path, path: Path) -> None:
    """Raises PadError if `path` is a link that leaves the model folder; the links of the hub's own cache stay
    in it."""
    real, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    allowed = [real]
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--"):
        # <cache>/models--ORG--NAME/snapshots/<commit>/FILE links to ../../blobs, or to <cache>/blobs
        allowed += [real.parent.parent / "blobs", real.parent.parent.parent / "blobs"]
    if not any(target.is_relative_to(root) for root in allowed):
        raise PadError(f"{path} is a link out of the model folder: refused")


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML only, and not much of it: an alias may make a small file expand without bound, and to
    compose many values, or a whole number of many digits, takes long."""

    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias (*name), which is refused")
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise yaml.YAMLError(f"it holds more than {MAX_NODES:,} values")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MOST_TEXT:
            raise yaml.YAMLError(f"it holds a value of {len(node.value):,} characters, at most {MOST_TEXT:,}")
        return node


def _parse_config(content: bytes, path: Path) -> Any:
    try:
        return yaml.load(content.decode("utf-8"), Loader=_StrictLoader)
    except Exception as error:  # of the library, by far not only its own
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(str(error))
        raise PadError(f"{path} is not plain YAML: {reason}") from None
