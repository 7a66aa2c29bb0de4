"""Every format, mode and fault of an image file, against pixels computed with NumPy."""

from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pad.config import Config
from pad.errors import PadError
from pad.images.decode import batch_tensor, to_tensor
from pad.images.read import ImageError, read_image

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601


@pytest.fixture
def photograph(photographs: Path) -> Image.Image:
    """32x32 colour, so that nothing is resized on the way to the tensor."""
    return Image.open(photographs / "astronaut.png").convert("RGB").crop((20, 10, 52, 42))


def scaled(pixels: np.ndarray, white: float = 255) -> np.ndarray:
    """(H, W[, C]) values as (C, H, W) in [-1, 1]."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return planes.astype(np.float64) / white * 2 - 1


def loaded(path: Path, config: Config) -> np.ndarray:
    tensor = to_tensor(read_image(path), config)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (config.channels, config.size, config.size)
    return tensor.numpy()


# Formats and modes

EXACT = {"png": {}, "bmp": {}, "tif": {}, "TIFF": {}, "webp": {"lossless": True}, "ppm": {}}


@pytest.mark.parametrize("suffix", EXACT)
def test_lossless_formats_keep_every_pixel(photograph, tmp_path, colour, grey, suffix):
    path = tmp_path / f"a.{suffix}"
    photograph.save(path, **EXACT[suffix])
    np.testing.assert_allclose(loaded(path, colour), scaled(np.asarray(photograph)), atol=1e-6)
    luma = scaled(np.asarray(photograph) @ LUMA)
    np.testing.assert_allclose(loaded(path, grey), luma, atol=1.01 / 127.5)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(photograph, tmp_path, colour, mode):
    path = tmp_path / "a.jpg"
    photograph.convert(mode).save(path, quality=98, subsampling=0)
    expected = scaled(np.asarray(photograph.convert(mode).convert("RGB")))
    assert np.abs(loaded(path, colour) - expected).mean() < 0.02


def test_gif_and_other_animations_give_the_first_frame(photograph, tmp_path, colour):
    frames = [photograph, ImageOps.invert(photograph)]
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        error = np.abs(loaded(tmp_path / name, colour) - scaled(np.asarray(photograph))).mean()
        assert error < 0.05, name


def test_grey_is_repeated_and_bilevel_is_black_and_white(photograph, tmp_path, colour, grey):
    plain = photograph.convert("L")
    plain.save(tmp_path / "grey.png")
    three = loaded(tmp_path / "grey.png", colour)
    np.testing.assert_allclose(three, np.repeat(scaled(np.asarray(plain)), 3, axis=0), atol=1e-6)
    np.testing.assert_array_equal(loaded(tmp_path / "grey.png", grey), three[:1])
    plain.convert("1").save(tmp_path / "one.png")
    assert set(np.unique(loaded(tmp_path / "one.png", grey))) == {-1.0, 1.0}


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_alpha_is_composited_over_white(photograph, tmp_path, colour, name):
    alpha = np.linspace(0, 255, 32 * 32).round().astype(np.uint8).reshape(32, 32)
    image = photograph.copy()
    image.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    image.save(tmp_path / name, **options)
    a = alpha[..., None] / 255
    expected = scaled(np.asarray(photograph) * a + 255 * (1 - a))
    np.testing.assert_allclose(loaded(tmp_path / name, colour), expected, atol=1.01 / 127.5)


def test_grey_alpha_and_a_transparent_palette_entry(photograph, tmp_path, grey, colour):
    half = photograph.convert("L")
    half.putalpha(128)
    half.save(tmp_path / "la.png")
    a = 128 / 255
    expected = scaled(np.asarray(photograph.convert("L")) * a + 255 * (1 - a))
    np.testing.assert_allclose(loaded(tmp_path / "la.png", grey), expected, atol=1.01 / 127.5)

    palette = photograph.quantize(16)
    palette.save(tmp_path / "p.png")
    pixels = np.asarray(palette.convert("RGB"))
    np.testing.assert_allclose(loaded(tmp_path / "p.png", colour), scaled(pixels), atol=1e-6)
    hidden = int(np.asarray(palette)[0, 0])
    palette.save(tmp_path / "clear.png", transparency=hidden)
    pixels = np.where((np.asarray(palette) == hidden)[..., None], 255, pixels)
    np.testing.assert_allclose(loaded(tmp_path / "clear.png", colour), scaled(pixels), atol=1e-6)


# Deep pixels


@pytest.fixture
def deep() -> np.ndarray:
    """All of the 16-bit range, in steps that 8 bits cannot tell apart."""
    return (np.arange(32 * 32, dtype=np.uint32) * 64).astype(np.uint16).reshape(32, 32)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_keeps_its_depth(deep, tmp_path, grey, colour, name):
    Image.fromarray(deep).save(tmp_path / name)
    got = loaded(tmp_path / name, grey)
    np.testing.assert_allclose(got, scaled(deep, 65535), atol=1e-6)
    assert len(np.unique(got)) == 1024
    np.testing.assert_array_equal(loaded(tmp_path / name, colour), np.repeat(got, 3, axis=0))


def test_16_bit_big_endian_and_32_bit_integers(deep, tmp_path, grey):
    Image.frombytes("I;16B", (32, 32), deep.astype(">u2").tobytes()).save(tmp_path / "b.tif")
    np.testing.assert_allclose(loaded(tmp_path / "b.tif", grey), scaled(deep, 65535), atol=1e-6)
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "i.tif")
    np.testing.assert_allclose(loaded(tmp_path / "i.tif", grey), scaled(deep, 65535), atol=1e-6)
    Image.fromarray(deep.astype(np.int32) * 1000).save(tmp_path / "large.tif")
    with pytest.raises(ImageError, match="no known scale"):
        loaded(tmp_path / "large.tif", grey)


def test_16_bit_resize_does_not_go_through_8_bits(tmp_path, grey):
    wide = np.tile(np.array([[1000, 1010], [1000, 1010]], np.uint16), (32, 32))
    Image.fromarray(wide).save(tmp_path / "a.png")
    np.testing.assert_allclose(
        loaded(tmp_path / "a.png", grey)[0, 4:-4, 4:-4], 1005 / 65535 * 2 - 1, atol=2e-5
    )


def test_16_bit_colour_is_read_at_8_bits(deep, tmp_path, colour):
    rgb = np.stack([deep, deep[::-1], deep.T], axis=-1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (tmp_path / "a.png").write_bytes(png)
    np.testing.assert_allclose(loaded(tmp_path / "a.png", colour), scaled(rgb, 65535), atol=1.01 / 127.5)


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_tiff_has_the_smallest_scale_that_holds_it(deep, tmp_path, grey, white):
    values = (deep / 65535 * white).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_allclose(loaded(tmp_path / "a.tif", grey), scaled(values, white), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e6])
def test_float_without_a_scale_is_refused(tmp_path, grey, value):
    values = np.full((8, 8), 0.5, np.float32)
    values[3, 3] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"finite|no known scale"):
        loaded(tmp_path / "a.tif", grey)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV", "RGBX", "CMYK"])
def test_other_colour_spaces(photograph, colour, grey, mode):
    image = photograph.convert(mode)
    expected = to_tensor(photograph, colour)
    assert (to_tensor(image, colour) - expected).abs().mean() < 0.05
    assert (to_tensor(image, grey) - to_tensor(photograph, grey)).abs().mean() < 0.05


@pytest.mark.parametrize("mode", ["1", "P", "LA", "La", "PA", "RGBa", "I", "F", "I;16", "I;16B", "I;16L"])
def test_every_mode_of_pillow_has_a_tensor(colour, grey, mode):
    for config in (colour, grey):
        got = to_tensor(Image.new(mode, (40, 30)), config)
        assert got.unique().tolist() == [1.0 if "a" in mode.lower() else -1.0]  # clear is white, 0 is black


# Orientation and geometry


def test_16_bit_is_turned_upright_too(deep, tmp_path, grey):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.ascontiguousarray(deep[::-1, ::-1])).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(loaded(tmp_path / "a.png", grey), scaled(deep, 65535), atol=1e-6)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, suffix, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = (255, 0, 0)  # the corner that tells all eight apart,
    upright[:8, 12:] = (0, 0, 255)  # with its neighbour
    # What a camera held that way stores (EXIF 2.3, tag 0x0112): the picture before its correction.
    stored = [
        upright,
        upright[:, ::-1],
        upright[::-1, ::-1],
        upright[::-1],
        upright.transpose(1, 0, 2),
        np.rot90(upright, 1),
        upright[::-1, ::-1].transpose(1, 0, 2),
        np.rot90(upright, -1),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    got = np.asarray(read_image(path), np.int32)
    assert got.shape == upright.shape
    assert np.abs(got - upright).max() < 30


@pytest.mark.filterwarnings("ignore")
def test_broken_exif_does_not_cost_the_image(photograph, tmp_path):
    photograph.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert read_image(tmp_path / "a.jpg").size == (32, 32)


def test_crop_takes_the_centre_of_the_source(colour):
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[14:46, 24:56] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    got = to_tensor(pixels, colour.replace(crop=32)).numpy()
    np.testing.assert_allclose(got, scaled(pixels[14:46, 24:56]), atol=1e-6)
    small = to_tensor(pixels[:20, :20], colour.replace(crop=32))  # smaller than the crop: all of it
    torch.testing.assert_close(small, to_tensor(pixels[:20, :20], colour))


def test_fit_crops_the_centre_or_stretches(grey):
    pixels = np.zeros((32, 96), np.uint8)
    pixels[:, 32:64] = 200
    np.testing.assert_allclose(to_tensor(pixels, grey).numpy(), 200 / 255 * 2 - 1, atol=1e-6)
    stretched = to_tensor(pixels, grey.replace(fit="stretch")).numpy()[0]
    np.testing.assert_allclose(stretched[:, [2, -3]], -1, atol=1e-6)
    np.testing.assert_allclose(stretched[:, 16], 200 / 255 * 2 - 1, atol=1e-6)


def test_shrinking_averages_and_growing_interpolates(grey):
    fine = np.indices((256, 256)).sum(0) % 2 * 255
    shrunk = to_tensor(fine.astype(np.uint8), grey).numpy()
    np.testing.assert_allclose(shrunk, 0, atol=0.02)  # no antialiasing would leave black or white
    ramp = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))
    grown = to_tensor(ramp, grey).numpy()[0, 16]
    assert (np.diff(grown) >= 0).all()
    assert to_tensor(np.full((1, 1), 51, np.uint8), grey).unique().tolist() == pytest.approx([-0.6])


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_resize_agrees_with_pillow(photographs, colour, name):
    image = read_image(photographs / f"{name}.png")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    other = image.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(to_tensor(image, colour).numpy(), scaled(np.asarray(other)), atol=2.01 / 127.5)


# Faults


def bomb(path: Path, side: int) -> None:
    """A valid header of a huge picture, and a few bytes of data."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", [9_600, 30_000])  # between Pillow's warning and its error, and beyond both
def test_decompression_bomb(tmp_path, side):
    bomb(tmp_path / "a.png", side)
    with pytest.raises(ImageError, match=r"a\.png: too large"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "gif"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_truncated(photographs, tmp_path, suffix, kept):
    path = tmp_path / f"a.{suffix}"
    read_image(photographs / "coffee.png").convert("RGB").save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert str(path) not in caught.value.reason
    assert caught.value.reason.startswith(("the file is", "not an image"))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("these are not the pixels you are looking for")
    (tmp_path / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, reason in [
        ("empty.png", "empty"),
        ("text.png", "not an image"),
        ("header.png", "not an image"),
        ("gone.png", "no such file"),
        ("never.png", "no such file"),
        ("script.png", "not an image"),
        ("", "a folder"),
        ("nul\0.png", "cannot be read"),
    ]:
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="shown: no such file"):
        read_image(tmp_path / "never.png", "shown")
    assert issubclass(ImageError, PadError)


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "a.png")


def test_forbidden_file(tmp_path, photograph):
    import os

    photograph.save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    if os.access(tmp_path / "a.png", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ImageError, match="permission denied"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore")
def test_any_damaged_byte_gives_an_image_or_an_image_error(photographs, tmp_path, colour):
    rng = np.random.default_rng(0)
    source = read_image(photographs / "rocket.png").convert("RGB")
    for suffix in ("png", "jpg", "bmp", "tif", "webp", "gif", "ppm"):
        source.save(tmp_path / f"a.{suffix}")
        data = np.frombuffer((tmp_path / f"a.{suffix}").read_bytes(), np.uint8)
        for _ in range(15):
            broken = data.copy()
            broken[rng.integers(0, min(len(data), 400), 3)] = rng.integers(0, 256, 3)
            (tmp_path / "broken").write_bytes(broken.tobytes())
            try:
                tensor = to_tensor(read_image(tmp_path / "broken"), colour)
            except ImageError:
                continue
            assert torch.isfinite(tensor).all()


def test_same_pixels_from_every_thread(photographs, colour):
    results: list[torch.Tensor] = []
    paths = sorted(photographs.iterdir())

    def work() -> None:
        results.append(batch_tensor(paths, colour))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, results[0]) for result in results)


# batch_tensor


def test_batch_of_everything_at_once(boots, grey):
    paths = sorted(boots.iterdir())[:3]
    images = [read_image(path) for path in paths]
    arrays = np.stack([np.asarray(image) for image in images])
    expected = torch.stack([to_tensor(image, grey) for image in images])
    assert expected.shape == (3, 1, 32, 32)
    for given in (
        paths,
        [str(path) for path in paths],
        images,
        arrays,
        arrays[..., None],
        list(arrays),
        np.repeat(arrays[..., None], 3, axis=-1),
        expected,
        list(expected),
        expected.numpy(),
        expected.double(),
        expected.expand(-1, 3, -1, -1),
        (path for path in paths),
    ):
        got = batch_tensor(given, grey)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch_tensor(paths[0], grey), expected[:1])
    torch.testing.assert_close(batch_tensor(images[0], grey), expected[:1])


def test_rgba_arrays_go_over_white(colour):
    array = np.zeros((2, 32, 32, 4), np.uint8)
    assert (batch_tensor(array, colour) == 1).all()


def test_float_tensors_are_resized_and_their_channels_fitted(grey, colour):
    tensor = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert batch_tensor(tensor, colour).shape == (2, 3, 32, 32)
    flat = torch.full((1, 3, 64, 96), 0.25)
    torch.testing.assert_close(batch_tensor(flat, grey), torch.full((1, 1, 32, 32), 0.25), atol=1e-3, rtol=0)
    assert batch_tensor(tensor * 1.0005, colour).abs().max() <= 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (np.zeros((28, 28), np.uint8), "in a list"),
        (np.zeros((28, 28, 3), np.uint8), "in a list"),
        (np.zeros((2, 28, 28), np.int64), r"images\[0\]: .*int64"),
        ([np.zeros((9, 9), np.uint8), np.zeros((9, 9, 2), np.uint8)], r"images\[1\]: .*\(9, 9, 2\)"),
        ([np.zeros((9, 0), np.uint8)], r"images\[0\]"),
        ([np.zeros((9, 9), np.uint8), 7], r"images\[1\]: .*int"),
        (7, "int"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)"),
        (torch.zeros(1, 2, 32, 32), r"\(1, 2, 32, 32\)"),
        (
            torch.stack([torch.zeros(1, 32, 32), torch.full((1, 32, 32), 2.0)]),
            r"images\[1\]: values from 2 to 2",
        ),
        (torch.full((1, 1, 32, 32), float("nan")), r"images\[0\]"),
        (["nowhere/at/all.png"], r"images\[0\] \(nowhere/at/all\.png\): no such file"),
    ],
)
def test_what_is_no_batch_is_refused_by_index(images, message, grey):
    with pytest.raises(PadError, match=message):
        batch_tensor(images, grey)


def test_the_index_can_start_elsewhere(grey):
    good, bad = torch.zeros(1, 32, 32), torch.full((1, 32, 32), 9.0)
    for images in (torch.stack([good, bad]), [good, bad]):
        with pytest.raises(PadError, match=r"^images\[65\]: values"):
            batch_tensor(images, grey, first=64)
    with pytest.raises(PadError, match=r"^images\[64\] \(nowhere\.png\)"):
        batch_tensor(["nowhere.png"], grey, first=64)


def test_a_lazy_pil_image_that_turns_out_truncated(photographs, tmp_path, colour):
    data = (photographs / "coffee.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ImageError, match=r"images\[0\]"):
        batch_tensor([image], colour)
