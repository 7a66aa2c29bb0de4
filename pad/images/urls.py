"""Images in object stores and wherever else fsspec reaches: `s3://bucket/folder`, `gs://...`, `file:///...`.

What is found in a folder or by a glob is what pad/images/resolve.py would find on a disk. The store's own
package (s3fs, gcsfs ...) and its credentials are the user's: fsspec looks for both where it always does.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from pad.errors import PadError, one_line
from pad.images.read import ImageError

MOST_BYTES = 1 << 30  # of an image file
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(spec: str) -> bool:
    """Whether a name is one of a store, and not of a path or a dataset."""
    return _URL.match(spec) is not None


@functools.lru_cache(maxsize=16)
def file_system(protocol: str) -> Any:
    """fsspec's file system. Raises PadError for one that is not installed, or that cannot be had."""
    try:
        import fsspec

        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        raise PadError(f"{protocol}://: {one_line(str(error))}") from None


def is_glob(url: str) -> bool:
    """Whether it is a pattern."""
    return any(magic in url for magic in "*?[")


def split(url: str) -> tuple[str, str]:
    """Protocol and the path as the file system has it."""
    protocol = url.partition("://")[0]
    return protocol, file_system(protocol)._strip_protocol(url)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a store. `size` is in bytes, None where the store does not say."""

    protocol: str
    path: str
    size: int | None = None

    @property
    def identity(self) -> str:
        return f"{self.protocol}://{self.path}"

    def read(self) -> bytes:
        """The whole file. Raises ImageError where it cannot be had, or is larger than MOST_BYTES."""
        return self.read_part(0, None)

    def read_part(self, offset: int, size: int | None) -> bytes:
        """`size` bytes from `offset` on; None: up to the end. Raises ImageError as `read`."""
        wanted = self.size if size is None else size
        if wanted is not None and wanted > MOST_BYTES:
            raise ImageError("", f"too large: {wanted:,} bytes")
        try:
            end = None if size is None else offset + size
            return bytes(file_system(self.protocol).cat_file(self.path, start=offset, end=end))
        except FileNotFoundError:
            raise ImageError("", "no such file") from None
        except PermissionError:
            raise ImageError("", "permission denied") from None
        except Exception as error:  # of whatever client
            raise ImageError("", f"cannot be read ({one_line(str(error)) or type(error).__name__})") from None


def listed(url: str) -> tuple[str, list[RemoteFile]]:
    """The folder that a URL names, or the part before the first magic of a glob, and the files that it means,
    sorted. Raises PadError if there is nothing, or the store cannot be reached."""
    protocol, path = split(url)
    system = file_system(protocol)
    try:
        if is_glob(path):
            found = {k: v for k, v in system.glob(path, detail=True).items() if v["type"] == "file"}
            base = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
        elif system.isfile(path):
            found, base = {path: system.info(path)}, path.rpartition("/")[0]
        else:
            found, base = system.find(path, detail=True), path
    except PadError:
        raise
    except Exception as error:  # of whatever client: no network, no credentials
        raise PadError(f"{url}: cannot be listed ({one_line(str(error)) or type(error).__name__})") from None
    if not found:
        raise PadError(f"{url}: no files there")
    return base.rstrip("/"), [RemoteFile(protocol, name, found[name].get("size")) for name in sorted(found)]
