"""Maps aligned with the input's own pixels, on a fixed scale, and the pictures made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pad.config import Config
from pad.errors import PadError
from pad.images.geometry import seen_box
from pad.showing.explanation import (
    MapScale,
    align_map,
    annotate,
    make_explanation,
    montage,
    overlay,
    panels,
    safe_name,
    write_pictures,
)
from pad.showing.pictures import displayable, to_picture

SCALE = MapScale(0.5, 2.0)


def explanation(size: tuple[int, int] = (120, 80), side: int = 32, **recipe: object):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    anomaly_map = np.full((side, side), 0.1, np.float32)
    anomaly_map[4:8, 20:24] = 3.0
    config = Config(size=side, channels=3, **recipe)
    return make_explanation(
        image, np.zeros((3, side, side)), anomaly_map, config, 1.5, 0.002, "anomaly", SCALE
    )


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (64, 64), (33, 47), (301, 300)])
@pytest.mark.parametrize(
    ("crop", "fit"), [(None, "crop"), (None, "stretch"), (40, "crop"), (50, "stretch"), (90, "crop")]
)
def test_the_box_is_what_the_model_sees(size: tuple[int, int], crop: int | None, fit: str):
    """Pixels outside the box do not change the model's input; those at its corners do."""
    torch = pytest.importorskip("torch")
    from pad.images.decode import to_tensor

    left, top, right, bottom = seen_box(*size, crop, fit)
    config = Config(size=64, channels=1, crop=crop, fit=fit)
    plain = np.full((size[1], size[0]), 100, np.uint8)
    outside = np.full_like(plain, 250)
    outside[top:bottom, left:right] = 100
    reference = to_tensor(Image.fromarray(plain), config)
    assert torch.equal(to_tensor(Image.fromarray(outside), config), reference)
    for y, x in ((top, left), (top, right - 1), (bottom - 1, left), (bottom - 1, right - 1)):
        marked = plain.copy()
        marked[y, x] = 255
        assert not torch.equal(to_tensor(Image.fromarray(marked), config), reference)


@pytest.mark.parametrize("recipe", [{}, {"fit": "stretch"}, {"crop": 60}, {"crop": 70, "fit": "stretch"}])
def test_a_pasted_defect_comes_back_to_its_place(recipe: dict):
    """Through the model's own geometry and back: the map of |x - background| peaks on the defect."""
    pytest.importorskip("torch")
    from pad.images.decode import to_tensor

    rng = np.random.default_rng(1)
    config = Config(size=32, channels=1, **recipe)
    for _ in range(25):
        width, height = rng.integers(60, 200, 2)
        left, top, right, bottom = seen_box(width, height, config.crop, config.fit)
        x, y = rng.integers(left, right - 9), rng.integers(top, bottom - 9)
        pixels = np.zeros((height, width), np.uint8)
        pixels[y : y + 10, x : x + 10] = 255
        image = Image.fromarray(pixels)
        small = to_tensor(image, config)[0].numpy() + 1
        aligned = make_explanation(image, np.zeros((1, 32, 32)), small, config, 1.0).anomaly_map
        assert aligned.shape == (height, width)
        found = np.unravel_index(aligned.argmax(), aligned.shape)
        assert y - 3 <= found[0] <= y + 12
        assert x - 3 <= found[1] <= x + 12
        assert np.average(np.arange(width), weights=aligned.sum(0)) == pytest.approx(
            min(x + 4.5, right - 5), abs=1.5
        )


def test_alignment_is_bilinear_between_pixel_centres():
    torch = pytest.importorskip("torch")

    small = np.random.default_rng(0).random((8, 8), np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(small)[None, None], (40, 56), mode="bilinear", align_corners=False
    )[0, 0]
    aligned = align_map(small, (60, 50), (2, 5, 58, 45))
    np.testing.assert_allclose(aligned[5:45, 2:58], wanted, atol=1e-5)
    aligned[5:45, 2:58] = 0
    assert not aligned.any()


def test_the_scale_keeps_normal_images_calm():
    rng = np.random.default_rng(0)
    maps = [rng.gamma(2, 0.2, (32, 32)).astype(np.float32) for _ in range(200)]
    scale = MapScale.from_maps(iter(maps))
    coloured = [np.mean(m > scale.low) for m in maps]
    assert 0.04 < np.mean(coloured) < 0.06
    assert np.mean([m.max() > scale.high for m in maps]) == pytest.approx(0.01, abs=0.011)
    assert scale == MapScale.from_maps(maps)
    assert MapScale.from_dict(scale.to_dict()) == scale
    assert MapScale.from_maps([np.ones((4, 4)), np.full((4, 4), np.nan)]).high > 1
    with pytest.raises(PadError, match="at least one calibration image"):
        MapScale.from_maps([])


@pytest.mark.parametrize("bad", [None, {}, {"low": 1.0}, {"low": "0", "high": 1}, {"low": 2.0, "high": 1.0},
                                 {"low": 0, "high": float("inf")},
                                 {"low": float("nan"), "high": 1.0}])  # fmt: skip
def test_a_damaged_scale_is_refused(bad: object):
    with pytest.raises(PadError, match=r"^calibration\.json: 'map_scale'"):
        MapScale.from_dict(bad)


def test_overlay_colours_follow_the_fixed_scale():
    image = Image.new("RGB", (3, 1), (100, 100, 100))
    low, middle, high = np.asarray(overlay(image, np.array([[0.5, 1.25, 9.0]], np.float32), SCALE))[0].astype(
        int
    )
    assert low.tolist() == [100, 100, 100]  # 0.8 * 100 + 20: as it was
    assert middle[0] > middle[2] + 60
    assert high[:2].min() > 200
    assert high[2] < 160
    full = explanation()
    assert full.overlay().size == full.input.size


def test_explanation_at_the_inputs_own_resolution():
    result = explanation((120, 80))
    assert result.input.size == (120, 80)
    assert result.anomaly_map.shape == (80, 120)
    assert result.anomaly_map.dtype == np.float32
    assert result.box == (20, 0, 100, 80)
    assert not result.anomaly_map[:, :20].any()
    assert not result.anomaly_map[:, 100:].any()
    y, x = np.unravel_index(result.anomaly_map.argmax(), (80, 120))
    assert 10 <= y < 20
    assert 70 <= x < 80
    assert result.nearest.size == (32, 32)


def test_annotated_copy_covers_no_pixel_of_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))
    copy = annotate(image, 1.2345, 0.00083, "anomaly", "hole\n\x1b" + "x" * 99)
    assert copy.size[0] == 400
    np.testing.assert_array_equal(np.asarray(copy)[:300], np.asarray(image))
    assert tuple(np.asarray(copy)[-1, -1]) == (179, 38, 30)
    assert annotate(Image.new("RGB", (28, 28)), 1.0, None, "").width >= 240
    calm = annotate(image, 0.5, 0.7, "normal")
    assert tuple(np.asarray(calm)[-1, -1]) == (20, 108, 67)


@pytest.mark.parametrize("size", [(28, 28), (1000, 30), (30, 1000), (1, 1), (700, 500)])
def test_montage_of_any_shape(size: tuple[int, int]):
    picture = montage(explanation(size))
    assert picture.mode == "RGB"
    assert picture.width <= 3 * 512 + 16
    assert picture.height <= 700


def test_panels_fade_what_the_model_did_not_see():
    result = explanation((120, 80))
    shown, beside, _ = panels(
        result.input, result.nearest, np.zeros((32, 32), np.float32), result.box, SCALE, 120
    )
    assert (np.asarray(beside)[:, 20:100] == 128).all()
    faded = np.asarray(beside)[:, :20].astype(int)
    np.testing.assert_allclose(faded, np.asarray(shown)[:, :20] * 0.25 + 96, atol=1)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
)
def test_every_mode_is_displayed(mode: str):
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(np.full((5, 7), 65535 if mode != "F" else 1.0).astype(kind))
        assert image.mode == mode
        assert displayable(image).getpixel((3, 3)) == (255, 255, 255)
    else:
        assert displayable(Image.new("RGB", (7, 5), (200, 30, 30)).convert(mode) if mode != "PA"
                           else Image.new("LA", (7, 5)).convert("PA")).size == (7, 5)  # fmt: skip
    clear = Image.new("RGBA", (2, 2), (9, 9, 9, 0))
    assert displayable(clear).getpixel((0, 0)) == (255, 255, 255)


def in_every_mode(side: int) -> dict[str, Image.Image]:
    """A smooth colour picture in every mode that a file can have, and in some ways to be transparent."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(30, 225, (6, 6, 3), dtype=np.uint8))
    picture = coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
    grey = np.asarray(picture.convert("L"))
    modes = {
        mode: picture.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX")
    }
    modes |= {mode: picture.convert(mode[:-1] + "A") for mode in ("LA", "PA", "RGBA")}
    modes |= {mode: modes[mode[:-1] + "A"].convert(mode) for mode in ("La", "RGBa")}
    modes |= {
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "I": Image.fromarray(grey.astype(np.int32) * 257),
    }
    modes["I;16B"] = Image.frombytes("I;16B", picture.size, (grey.astype(">u2") * 257).tobytes())
    for white in (1, 255, 65535):
        modes[f"F to {white}"] = Image.fromarray(grey.astype(np.float32) * (white / 255))
    for name, key in (("L", 40), ("P", 3), ("RGB", (200, 30, 30))):
        modes[f"{name} with a transparent colour"] = modes[name].copy()
        modes[f"{name} with a transparent colour"].info["transparency"] = key
    return modes


@pytest.mark.parametrize("mode", in_every_mode(8))
def test_a_large_picture_of_any_mode_is_reduced_as_a_whole_one(mode: str, monkeypatch: pytest.MonkeyPatch):
    """Tile by tile it is what the whole picture, converted and then reduced, would be."""
    monkeypatch.setattr("pad.showing.pictures._TILE", 50)
    image = in_every_mode(515)[mode]
    reduced = displayable(image, 128)
    assert reduced.mode == "RGB"
    assert reduced.size == (103, 78)
    np.testing.assert_array_equal(np.asarray(reduced), np.asarray(displayable(image).reduce(5)))


def test_a_wide_picture_is_drawn_at_a_bounded_size():
    image = Image.new("P", (70_000, 3), 7)
    assert displayable(image, 2048).size == (2000, 1)
    drawn = make_explanation(
        image, np.zeros((1, 32, 32)), np.ones((32, 32)), Config(size=32, channels=1, fit="stretch"), 1.0
    )
    assert drawn.input.size == (2000, 1)
    assert drawn.anomaly_map.shape == (1, 2000)
    assert drawn.box == (0, 0, 2000, 1)
    assert all(max(picture.size) <= 2048 for picture in drawn.pictures("a label").values())


def test_the_box_stays_in_place_on_a_reduced_copy():
    result = explanation((5000, 4000))
    assert result.input.size == (1667, 1334)
    assert result.box == (167, 0, 1500, 1334)
    y, x = np.unravel_index(result.anomaly_map.argmax(), result.anomaly_map.shape)
    assert 167 + 20 / 32 * 1334 <= x < 167 + 24 / 32 * 1334
    assert 4 / 32 * 1334 <= y < 8 / 32 * 1334


def test_pictures_of_tensors():
    values = np.linspace(-1.2, 1.2, 12).reshape(1, 3, 4)
    picture = to_picture(values)
    assert picture.size == (4, 3)
    assert picture.getpixel((0, 0)) == (0, 0, 0)
    assert picture.getpixel((3, 2)) == (255, 255, 255)
    assert to_picture(np.zeros((3, 2, 2))).getpixel((0, 0)) == (128, 128, 128)


def test_files_are_named_apart(tmp_path: Path):
    first = write_pictures(explanation().pictures("hole"), tmp_path / "why", 1, "a/x y.png")
    second = write_pictures(explanation().pictures(), tmp_path / "why", 2, "b/x y.png")
    assert first.name == "000001-x_y.montage.png"
    assert first != second
    names = sorted(p.name for p in (tmp_path / "why").iterdir())
    assert len(names) == 6
    assert Image.open(tmp_path / "why" / "000001-x_y.overlay.png").size == (120, 80)
    assert safe_name("../../etc/<script>.png") == "_script_"
    assert safe_name("図.png") == "_"
    assert safe_name("") == "image"
