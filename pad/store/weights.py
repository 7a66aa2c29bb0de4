"""The weights of a model, `model.safetensors`: what a file must be before the library, or memory, sees it.

Its form: 8 bytes, the header's length (little-endian), then JSON {name: {dtype, shape, data_offsets}}, then
the tensors one after another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pad.errors import PadError, one_line, shown
from pad.store.plain_json import parse_json

if TYPE_CHECKING:
    import torch

MAX_HEADER = 1_000_000  # bytes of the header

# Bytes of one element of each type that a model may hold, and its name in torch.
_DTYPES = {
    "F64": (8, "float64"),
    "F32": (4, "float32"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I64": (8, "int64"),
    "I32": (4, "int32"),
    "I16": (2, "int16"),
    "I8": (1, "int8"),
    "U8": (1, "uint8"),
    "BOOL": (1, "bool"),
}


@dataclass(frozen=True)
class TensorSpec:
    """What the header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def read_header(file: BinaryIO, size: int, path: Path) -> dict[str, TensorSpec]:
    """The tensors that a file of `size` bytes holds, by name; none of them is read.

    Raises PadError, naming the file, for a pickle, an oversized header, and tensors that do not lie one after
    another in the whole of the file.
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
    entries = parse_json(file.read(length), path, "header")
    if not isinstance(entries, dict):
        raise PadError(f"{path}: its header is not a mapping; refused")
    entries.pop("__metadata__", None)
    end = 0
    for first, last, name in sorted(_span(name, entry, path) for name, entry in entries.items()):
        if first != end:
            raise PadError(f"{path}: tensor {shown(name)} does not lie where the one before it ends; refused")
        end = last
    if 8 + length + end != size:
        what = "holds more than its tensors"
        if 8 + length + end > size:
            what = "is cut short: its tensors do not lie inside the file"
        raise PadError(f"{path} {what} ({size:,} bytes, its header says {8 + length + end:,}); refused")
    return {name: _spec(entry) for name, entry in entries.items()}


def _span(name: str, entry: Any, path: Path) -> tuple[int, int, str]:
    """(first byte, last byte, name) of one tensor, checked against its shape and type."""
    label = f"{path}: tensor {shown(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PadError(f"{label} has a malformed entry in the header; refused")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise PadError(f"{label} is of an unknown type {shown(dtype)}; refused")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise PadError(f"{label} has a malformed shape or place; refused")
    length = math.prod(shape) * _DTYPES[dtype][0]
    if len(offsets) != 2 or len(shape) > 16 or offsets[1] - offsets[0] != length:
        raise PadError(f"{label} does not fill its place in the file; refused")
    # A side of 0 lets the others be anything, and torch multiplies them all the same.
    if math.prod(max(n, 1) for n in shape) >= 2**40:
        raise PadError(f"{label} is empty but has enormous sides; refused")
    return offsets[0], offsets[1], name


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    import torch

    return TensorSpec(tuple(entry["shape"]), getattr(torch, _DTYPES[entry["dtype"]][1]))


def parse_weights(content: bytes, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file whose header has been checked. Raises PadError for NaN and infinite values."""
    import safetensors
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise PadError(f"{path} is not a safetensors file: {one_line(str(error))}") from None
    check_finite(tensors, path)
    return tensors


def check_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raises PadError that names the file and the tensor for NaN and infinite values."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise PadError(f"{path}: tensor {shown(name)} holds NaN or infinite values; refused")


def check_tensors(
    tensors: Mapping[str, torch.Tensor | TensorSpec],
    expected: Mapping[str, torch.Tensor | Sequence[int]],
    where: Path | str = "model.safetensors",
) -> None:
    """Compares tensors with what the networks of a config need.

    Args:
        tensors: as read, or what the header says of them.
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
        elif found.dtype != dtype if dtype is not None else not found.dtype.is_floating_point:
            kind = "a floating-point type" if dtype is None else str(dtype).removeprefix("torch.")
            faults.append(f"'{name}' is {str(found.dtype).removeprefix('torch.')} where {kind} fits")
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise PadError(f"{where} does not fit its config: {'; '.join(faults[:4])}{more}")


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what} {', '.join(shown(name) for name in names[:3])}{more}"]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape) or "()"
