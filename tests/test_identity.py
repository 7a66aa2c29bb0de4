"""Which picture an image is: the same hash for the same pixels, however they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pad.images.hashes import joined_hashes, pack, unpack
from pad.images.identity import hashes_of, pixel_hash, with_hashes
from pad.images.resolve import as_image_set, resolve


def test_the_same_pixels_have_one_hash_in_every_lossless_form(photographs: Path, boots: Path, tmp_path: Path):
    colour = Image.open(sorted(photographs.iterdir())[0]).convert("RGB")
    grey = Image.open(sorted(boots.iterdir())[0]).convert("L")
    for name, picture in (("colour", colour), ("grey", grey)):
        for suffix in ("png", "bmp", "tiff", "ppm"):
            picture.save(tmp_path / f"{name}.{suffix}")
        picture.save(tmp_path / f"{name}-small.png", optimize=True)
        picture.convert("RGBA").save(tmp_path / f"{name}-opaque.png")
        turned = picture.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned clockwise: as it was
        turned.save(tmp_path / f"{name}-turned.png", exif=exif)
        files = sorted(tmp_path.glob(f"{name}*"))
        hashes = hashes_of(resolve(files, "train"))
        assert len(files) == 7
        assert set(hashes.tolist()) == {pixel_hash(picture)}
        assert hashes_of(as_image_set([np.asarray(picture)]))[0] == hashes[0]
    grey.convert("RGB").save(tmp_path / "grey in colour.png")
    grey.convert("P").save(tmp_path / "grey by palette.png")
    hashes = hashes_of(resolve([*tmp_path.glob("grey *")], "train"))
    assert set(hashes.tolist()) == {pixel_hash(grey)}


def test_other_pixels_have_another_hash(boots: Path):
    pixels = np.asarray(Image.open(sorted(boots.iterdir())[0])).copy()
    before = pixel_hash(pixels)
    pixels[14, 14] ^= 1
    assert pixel_hash(pixels) != before
    assert pixel_hash(np.zeros((4, 9), np.uint8)) != pixel_hash(np.zeros((9, 4), np.uint8))
    deep = Image.fromarray(pixels.astype(np.uint16))
    assert pixel_hash(deep) != pixel_hash(pixels)
    assert len(np.unique(hashes_of(resolve([str(boots)], "train")))) == 120


def test_what_cannot_be_read_is_known_by_its_name(boots: Path, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_text("no picture")
    Image.open(sorted(boots.iterdir())[0]).save(tmp_path / "c.png")
    told: list[int] = []
    images = with_hashes(resolve([str(tmp_path)], "train"), progress=told.append)
    assert sum(told) == 3
    assert images.hashes is not None
    assert len(np.unique(images.hashes)) == 3
    assert images.subset([2, 0]).hashes.tolist() == images.hashes[[2, 0]].tolist()
    assert with_hashes(images) is images


def test_packed_hashes_come_back():
    hashes = np.random.default_rng(0).integers(0, 2**48, 1000, dtype=np.uint64)
    text = pack(hashes)
    assert len(text) == 8000
    np.testing.assert_array_equal(unpack(text), np.unique(hashes))
    assert unpack(pack(hashes[:0])).size == 0
    assert pack(hashes[::-1]) == text
    for damaged in (text[:-4], text[:-1], "ä" + text[1:], "?" * 8, 5, None, [text]):
        with pytest.raises(ValueError):  # noqa: PT011 - the caller names the file
            unpack(damaged)
    np.testing.assert_array_equal(joined_hashes(hashes[:600], hashes[400:]), np.unique(hashes))
    assert joined_hashes().size == 0
