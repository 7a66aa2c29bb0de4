"""Shards: many images in one file, each read only when asked for.

- `NAME.tar`, as WebDataset writes them: every member of an image's kind is an image (`IMAGE_SUFFIXES`); what
  lies beside it (`.cls`, `.json`) is passed over.
- `NAME.parquet`: a column `image` or else the only one of bytes, or of structures with `bytes`, as datasets
  of the hub have it. `path` inside of these, or a column `path`, `name` or `__key__`, names an image.

A shard lies on a disk or in a store (pad/images/urls.py). Nothing is unpacked to a disk.
"""

from __future__ import annotations

import functools
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pad.errors import PadError, one_line
from pad.images.read import ImageError
from pad.images.urls import RemoteFile, file_system

SUFFIXES = (".tar", ".parquet")
IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm")
)
_NAMES = ("path", "name", "__key__")
_GROUPS = threading.Lock()


def is_shard(name: str) -> bool:
    """Whether a file is taken for a shard, by its name."""
    return name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class TarMember:
    """An image in a tar file."""

    shard: RemoteFile
    name: str
    offset: int
    size: int

    @property
    def identity(self) -> str:
        return f"{self.shard.identity}/{self.offset}"

    def read(self) -> bytes:
        return self.shard.read_part(self.offset, self.size)


@dataclass(frozen=True)
class ParquetRow:
    """An image in a Parquet file."""

    shard: RemoteFile
    column: str
    group: int  # row group
    row: int  # in the group

    @property
    def identity(self) -> str:
        return f"{self.shard.identity}/{self.group}/{self.row}"

    def read(self) -> bytes:
        with _GROUPS:  # of several threads, one reads a group and the others find it there
            values = _group(self.shard, self.column, self.group)
        value = values[self.row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ImageError("", "the row holds no bytes of an image")
        return content


def members(shard: RemoteFile) -> Iterator[tuple[str, TarMember | ParquetRow]]:
    """The images of a shard in order, each with its name in it. Raises PadError for a shard that cannot be
    read, or that holds none."""
    found: Iterator[tuple[str, TarMember | ParquetRow]]
    found = _of_tar(shard) if shard.path.lower().endswith(".tar") else _of_parquet(shard)
    first = next(found, None)
    if first is None:
        raise PadError(f"{shard.identity}: no images in this shard")
    yield first
    yield from found


def _of_tar(shard: RemoteFile) -> Iterator[tuple[str, TarMember]]:
    try:
        with (
            file_system(shard.protocol).open(shard.path, "rb") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                if member.isreg() and not member.issparse() and _is_image(member.name):
                    yield member.name, TarMember(shard, member.name, member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined] # which it would keep
    except FileNotFoundError:
        raise PadError(f"{shard.identity}: no such file") from None
    except (tarfile.TarError, OSError) as error:
        raise PadError(f"{shard.identity}: not a readable tar file ({one_line(str(error))})") from None


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _of_parquet(shard: RemoteFile) -> Iterator[tuple[str, ParquetRow]]:
    file = _parquet(shard)
    column, inside = _column(shard, file.schema_arrow)
    keys = [name for name in _NAMES if name in file.schema_arrow.names and name != column]
    wanted = [f"{column}.path"] if inside else keys[:1]
    count = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        names: list[Any] = [None] * rows
        if wanted:
            (values,) = file.read_row_group(group, columns=wanted).columns
            names = values.to_pylist()
        for row, name in enumerate(names):
            name = name.get("path") if isinstance(name, dict) else name
            yield str(name) if name else f"{count:06d}", ParquetRow(shard, column, group, row)
            count += 1


@functools.lru_cache(maxsize=4)
def _parquet(shard: RemoteFile) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise PadError("a Parquet file needs pyarrow: python -m pip install 'pad-anomaly[parquet]'") from None
    try:
        return parquet.ParquetFile(file_system(shard.protocol).open(shard.path, "rb"))
    except FileNotFoundError:
        raise PadError(f"{shard.identity}: no such file") from None
    except (ArrowException, OSError, ValueError) as error:
        raise PadError(f"{shard.identity}: not a readable Parquet file ({one_line(str(error))})") from None


def _column(shard: RemoteFile, schema: Any) -> tuple[str, bool]:
    """The column of images, and whether its values name themselves."""
    from pyarrow import types

    def holds(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds(kind.field("bytes").type)
        return types.is_binary(kind) or types.is_large_binary(kind)

    fit = [field for field in schema if holds(field.type)]
    chosen = [field for field in fit if field.name == "image"] or fit
    if len(chosen) != 1:
        columns = ", ".join(schema.names[:20])
        raise PadError(f"{shard.identity}: needs a column 'image', or just one of bytes, among: {columns}")
    kind = chosen[0].type
    return chosen[0].name, types.is_struct(kind) and kind.get_field_index("path") >= 0


@functools.lru_cache(maxsize=2)  # images are asked for in order
def _group(shard: RemoteFile, column: str, group: int) -> Any:
    return _parquet(shard).read_row_group(group, columns=[column]).column(0).combine_chunks()
