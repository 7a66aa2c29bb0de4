"""Hashes of pictures (pad/images/identity.py) as sets, and as the text that a model keeps of them."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
NO_HASHES: Hashes = np.empty(0, np.uint64)

# Another image is taken for one of a million with a probability of 4e-9; eight characters hold a hash.
HASH_BYTES = 6


def joined_hashes(*parts: Hashes) -> Hashes:
    """All hashes of some sets, sorted, each once."""
    return np.unique(np.concatenate([NO_HASHES, *parts]))


def pack(hashes: Hashes) -> str:
    """Hashes as text, eight characters each: sorted, little-endian, in base64."""
    rows = np.sort(hashes).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :HASH_BYTES]
    return base64.b64encode(rows.tobytes()).decode("ascii")


def unpack(text: Any) -> Hashes:
    """The inverse of `pack`, sorted. Raises ValueError for anything else."""
    if not isinstance(text, str) or not text.isascii():
        raise ValueError("not a text")
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if len(content) % HASH_BYTES:
        raise ValueError("cut short")
    rows = np.frombuffer(content, np.uint8).reshape(-1, HASH_BYTES)
    padded = np.zeros((len(rows), 8), np.uint8)
    padded[:, :HASH_BYTES] = rows
    return np.unique(padded.view("<u8").ravel().astype(np.uint64))
