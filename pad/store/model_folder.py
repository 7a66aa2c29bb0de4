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

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pad.errors import PadError
from pad.store.files import CannotWrite, replace_folder, restore_folder, sibling, sync_folder, write_synced

if TYPE_CHECKING:
    import torch

FORMAT = 1  # of config.yaml; a newer one is refused
WEIGHTS, CONFIG, CALIBRATION, CARD = "model.safetensors", "config.yaml", "calibration.json", "README.md"
FILES = (WEIGHTS, CONFIG, CALIBRATION, CARD)

MAX_HEADER = 1_000_000  # bytes of the safetensors header
MAX_WEIGHTS = 2 << 30  # bytes
MAX_CONFIG = 1_000_000  # bytes
MAX_CALIBRATION = 64_000_000  # bytes

# Bytes of one element of each type that a model may hold.
_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class ModelFiles:
    """What `read_model` found: checked tensors, and plain mappings for the rest."""

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]  # the whole of config.yaml; its "recipe" has passed pad.config.from_mapping
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
    _check_finite(plain, folder / WEIGHTS)
    config_yaml = {"format": FORMAT, **config_yaml}
    contents = {
        WEIGHTS: safetensors.torch.save(plain),
        CONFIG: dump_config(config_yaml),
        CARD: readme.encode(),
    }
    if calibration is not None:
        contents[CALIBRATION] = (json.dumps(calibration, allow_nan=False) + "\n").encode()

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
    for name, content in _read_files(_current(folder)).items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- reading


def present(folder: Path) -> bool:
    """Whether a model folder lies there, also one whose writer was killed while replacing it."""
    return any((place / WEIGHTS).exists() for place in (folder, sibling(_absolute(folder), "old")))


def read_model(folder: Path) -> ModelFiles:
    """Reads and checks a model folder; see the module's text.

    Raises PadError, one line naming the file, for: a missing file; a pickle in any guise; a file that is a
    link out of the folder or no regular file; an oversized header or file; tensors that do not lie inside
    the file, are of an unknown type, or not finite; a config that is no YAML mapping, of a newer format, or
    with unknown settings; a malformed calibration.
    """
    folder = Path(folder)
    for _ in range(20):  # a writer may replace the folder under us: then read again
        place = _current(folder)
        before = _identity(place)
        try:
            contents = _read_files(place)
        except PadError:
            if before == _identity(_current(folder)):
                raise
            continue
        if before == _identity(_current(folder)):
            return _parse_files(contents, place)
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


def _read_files(folder: Path) -> dict[str, bytes]:
    """The files that reading needs, whole; their form is checked as far as their safe reading needs it."""
    _require_files(folder)
    contents = {
        WEIGHTS: _read_file(folder, WEIGHTS, MAX_WEIGHTS, _check_header),
        CONFIG: _read_file(folder, CONFIG, MAX_CONFIG),
    }
    if os.path.lexists(folder / CALIBRATION):
        contents[CALIBRATION] = _read_file(folder, CALIBRATION, MAX_CALIBRATION)
    return contents


def _parse_files(contents: Mapping[str, bytes], folder: Path) -> ModelFiles:
    config = _parse_config(contents[CONFIG], folder / CONFIG)
    calibration = None
    if CALIBRATION in contents:
        calibration = _parse_calibration(contents[CALIBRATION], folder / CALIBRATION)
    return ModelFiles(_parse_weights(contents[WEIGHTS], folder / WEIGHTS), config, calibration)


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


def _read_file(folder: Path, name: str, limit: int, check_head: Any = None) -> bytes:
    """The bytes of one file that must be regular, inside the folder, and not above `limit` bytes.

    `check_head(file, size, path)` may look at the open file before it is read whole.
    """
    path = folder / name
    try:
        _check_inside(folder, path)
        # Not blocking: a pipe in a file's place must not hang the reader.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise PadError(f"{path} is not a regular file: refused")
            if status.st_size > limit:
                raise PadError(f"{path} is too large: {status.st_size:,} bytes, at most {limit:,}")
            if check_head is not None:
                check_head(file, status.st_size, path)
                file.seek(0)
            return file.read(limit + 1)
    except OSError as error:
        raise PadError(f"cannot read {path}: {error.strerror or error}") from None


def _check_inside(folder: Path, path: Path) -> None:
    """Refuses a link that leaves the folder, but for the links of the hub client's own cache."""
    real, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    allowed = [real]
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--"):
        # <cache>/models--ORG--NAME/snapshots/<commit>/FILE links to ../../blobs, or to <cache>/blobs
        allowed += [real.parent.parent / "blobs", real.parent.parent.parent / "blobs"]
    if not any(target.is_relative_to(root) for root in allowed):
        raise PadError(f"{path} is a link out of the model folder: refused")


# -------------------------------------------------------------------------------------------- the weights


def _check_header(file: Any, size: int, path: Path) -> None:
    """The safetensors header, before the library or memory sees the rest of the file.

    Its form: 8 bytes, the header's length (little-endian), then JSON {name: {dtype, shape, data_offsets}},
    then the tensors one after another.
    """
    head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{":
        if head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
            raise PadError(f"{path} is a pickle under another name, not safetensors: refused")
        if length <= MAX_HEADER or len(head) < 9:
            raise PadError(f"{path} is not a safetensors file: refused")
    if length > MAX_HEADER:
        raise PadError(f"{path} has an oversized header: {length:,} bytes, at most {MAX_HEADER:,}; refused")
    if 8 + length > size:
        raise PadError(f"{path} is cut short: its header has {length:,} bytes, the file {size:,}")
    file.seek(8)
    entries = _parse_json(file.read(length), path, "header")
    if not isinstance(entries, dict):
        raise PadError(f"{path}: its header is not a mapping; refused")
    spans = [_span(name, entry, path) for name, entry in entries.items() if name != "__metadata__"]
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise PadError(f"{path}: tensor {name!r:.80} does not lie where the one before it ends; refused")
        end = last
    if 8 + length + end != size:
        missing = 8 + length + end > size
        what = (
            "is cut short: its tensors do not lie inside the file"
            if missing
            else "holds more than its tensors"
        )
        raise PadError(f"{path} {what} ({size:,} bytes, its header says {8 + length + end:,}); refused")


def _span(name: str, entry: Any, path: Path) -> tuple[int, int, str]:
    """(first byte, last byte, name) of one tensor, checked against its shape and type."""
    label = f"{path}: tensor {name!r:.80}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PadError(f"{label} has a malformed entry in the header; refused")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise PadError(f"{label} is of an unknown type {dtype!r:.40}; refused")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise PadError(f"{label} has a malformed shape or place; refused")
    if len(offsets) != 2 or len(shape) > 16 or offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype]:
        raise PadError(f"{label} does not fill its place in the file; refused")
    return offsets[0], offsets[1], name


def _parse_weights(content: bytes, path: Path) -> dict[str, torch.Tensor]:
    import safetensors
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise PadError(f"{path} is not a safetensors file: {' '.join(str(error).split())}") from None
    _check_finite(tensors, path)
    return tensors


def _check_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise PadError(f"{path}: tensor {name!r:.80} holds NaN or infinite values; refused")


def check_tensors(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor | Sequence[int]],
    where: Path | str = WEIGHTS,
) -> None:
    """Compares tensors with what the networks of a config need.

    Args:
        tensors: as read.
        expected: name to a tensor (its shape and type count; networks on the `meta` device cost nothing), or
            to a shape alone (then any floating-point type fits).
        where: the file, for the message.

    Raises PadError that names the tensors that are missing, unexpected, of a wrong shape or a wrong type.
    """
    faults = _listed("missing", [n for n in expected if n not in tensors])
    faults += _listed("unexpected", [n for n in tensors if n not in expected])
    for name, wanted in expected.items():
        if name not in tensors:
            continue
        found = tensors[name]
        shape = tuple(getattr(wanted, "shape", wanted))
        dtype = getattr(wanted, "dtype", None)
        if tuple(found.shape) != shape:
            faults.append(f"'{name}' has shape {_shape(found.shape)} where {_shape(shape)} fits")
        elif found.dtype != dtype if dtype is not None else not found.is_floating_point():
            kind = "a floating-point type" if dtype is None else str(dtype).removeprefix("torch.")
            faults.append(f"'{name}' is {str(found.dtype).removeprefix('torch.')} where {kind} fits")
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise PadError(f"{where} does not fit its config: {'; '.join(faults[:4])}{more}")


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what} {', '.join(repr(name)[:80] for name in names[:3])}{more}"]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape) or "()"


# --------------------------------------------------------------------------------- config and calibration


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML only: an alias may make a small file expand without bound, so none is taken."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias (*name), which is refused")
        return super().compose_node(parent, index)


def _parse_config(content: bytes, path: Path) -> dict[str, Any]:
    from pad.config import from_mapping

    try:
        config = yaml.load(content.decode("utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise PadError(f"{path} is not plain YAML: {reason:.200}") from None
    if not isinstance(config, dict):
        raise PadError(f"{path} is not a mapping of 'key: value' lines; refused")
    version = config.get("format")
    if type(version) is not int or version < 1:
        raise PadError(f"{path} has no 'format: {FORMAT}' line: not the config of a model")
    if version > FORMAT:
        raise PadError(
            f"{path} was made by a newer pad (format {version}, this one reads {FORMAT}): upgrade pad"
        )
    if not isinstance(config.get("recipe"), dict):
        raise PadError(f"{path} has no 'recipe' mapping; refused")
    try:
        from_mapping(config["recipe"], where=str(path))
    except PadError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise PadError(f"{path}: {text:.400}") from None
    return config


def _parse_calibration(content: bytes, path: Path) -> dict[str, Any]:
    calibration = _parse_json(content, path, "content")
    scores = calibration.get("scores") if isinstance(calibration, dict) else None
    if not isinstance(scores, list):
        raise PadError(f"{path} has no list of 'scores'; refused")
    if not all(type(s) in (int, float) and -1e300 < s < 1e300 for s in scores):
        raise PadError(f"{path}: its scores are not all finite numbers; refused")
    if any(a > b for a, b in pairwise(scores)):
        raise PadError(f"{path}: its scores are not sorted; refused")
    return calibration


def _parse_json(content: bytes, path: Path, what: str) -> Any:
    """JSON without its extensions (NaN, Infinity) and without a key given twice."""

    def refuse_constant(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise ValueError("a key is given twice")
        return mapping

    try:
        text = content.decode("utf-8")
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=refuse_twice)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise PadError(f"{path}: its {what} is not JSON: {reason:.200}; refused") from None
