"""Pictures and models that ask for all the memory, the network, or a file that is none of theirs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import pad
from pad.config import Config, fitting_batch, zoo_folder
from pad.errors import PadError
from pad.images.read import ImageError, read_image
from pad.images.resolve import resolve
from pad.images.stream import stream
from pad.store.index import checksums

ROOT = Path(__file__).parent.parent
BOOT = zoo_folder() / "fashion-mnist" / "ankle-boot"


# Pictures -----------------------------------------------------------------------------------------------


def tiff(path: Path, width: int, height: int, *tags: tuple[int, int, int, int]) -> Path:
    """A TIFF of a few bytes: its size, tags (number, type, count, value), and 64 bytes of zeros, packed."""
    data = zlib.compress(bytes(64))
    entries = sorted(
        [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
         (259, 3, 1, 8), *tags]
    )  # fmt: skip
    start = 14 + 12 * len(entries)
    content = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for number, kind, count, value in entries:
        value = {-1: start, -2: len(data)}.get(value, value)
        content += struct.pack("<HHII" if kind == 4 else "<HHIHxx", number, kind, count, value)
    path.write_bytes(content + struct.pack("<I", 0) + data)
    return path


TILED = ((322, 4, 1, 46336), (323, 4, 1, 46336), (324, 4, 1, -1), (325, 4, 1, -2))
STRIP = ((278, 4, 1, 9400), (273, 4, 1, -1), (279, 4, 1, -2))


def test_pictures_that_ask_for_gigabytes_are_refused_unread(tmp_path: Path) -> None:
    bombs = {
        "tiles of 46336 pixels": tiff(tmp_path / "tiles.tif", 64, 64, *TILED),
        "cannot hold 9,400x9,400 pixels": tiff(tmp_path / "strip.tif", 9400, 9400, *STRIP),
        "over 89 million pixels": tiff(tmp_path / "large.tif", 60_000, 60_000, *STRIP),
    }
    header = struct.pack(">IIBBBBB", 30_000_000, 1, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(30_000_001))), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    bombs["30,000,000x1 pixels, at most 65,536 on a side"] = tmp_path / "line.png"
    bombs["30,000,000x1 pixels, at most 65,536 on a side"].write_bytes(png)
    for words, path in bombs.items():
        assert path.stat().st_size < 30_000
        with pytest.raises(ImageError, match=words.replace("(", r"\(")):
            read_image(path)


def test_tiles_larger_than_the_picture_are_read(tmp_path: Path) -> None:
    Image.new("L", (50, 40), 7).save(tmp_path / "a.tif", compression="tiff_deflate", tile=(256, 256))
    assert read_image(tmp_path / "a.tif").size == (50, 40)


MEASURE = """
import resource, sys
from pad.config import Config
from pad.images.decode import planes, scaled
from pad.images.read import read_image
config = Config(channels=3, fit="stretch")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scaled(*planes(read_image(sys.argv[1]), config), config)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_the_largest_picture_takes_less_than_a_gigabyte(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (9_400, 9_400)).save(tmp_path / "a.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.png")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert int(done.stdout) < 1000, done.stderr  # MB; it was 1,610


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "L", "I;16"])
def test_large_pictures_come_out_as_in_one_piece(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (61, 47, 4), dtype=torch.uint8).numpy()
    image = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(pixels.view("uint16")[..., 0])
    elif mode == "P":
        image = image.convert("RGB").convert("P")
        image.info["transparency"] = bytes(range(256))
    elif mode != "RGBA":
        image = image.convert(mode)
    for channels in (1, 3):
        for fit in ("crop", "stretch"):
            config = Config(channels=channels, fit=fit)
            whole = pad.images.decode.to_tensor(image, config)
            for module in ("read", "decode"):
                monkeypatch.setattr(f"pad.images.{module}.BAND", 500)
            assert torch.equal(pad.images.decode.to_tensor(image, config), whole)
            monkeypatch.undo()


def test_one_bomb_costs_one_row(tmp_path: Path, boots: Path) -> None:
    good = sorted(boots.iterdir())[:2]
    for path in good:
        shutil.copy(path, tmp_path)
    tiff(tmp_path / "0.tif", 64, 64, *TILED)
    (batch,) = stream(resolve([tmp_path], "evaluate"), Config(), 8)
    assert len(batch.indices) == 2
    assert [index for index, _ in batch.errors] == [0]


# Models -------------------------------------------------------------------------------------------------


def changed(folder: Path, **recipe: Any) -> Path:
    """A model of the zoo whose recipe is changed."""
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.yaml", "calibration.json", "README.md"):
        shutil.copy(BOOT / name, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["recipe"].update(recipe)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def parts(folder: Path) -> tuple[dict[str, Any], bytes]:
    content = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(folder: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([0, 2**40, 2**40, 64], "empty but has enormous sides"),
        ([0, 2**20, 21, 128], "does not fit its config"),
        ([2**39, 0, 1, 1], "does not fit its config"),
        ([], "does not fill its place"),
    ],
)
def test_components_of_nothing_with_enormous_sides(tmp_path: Path, shape: list[int], words: str) -> None:
    folder = changed(tmp_path / "model")
    header, data = parts(folder)
    entry = header["similarity.relu3_1.components"]
    first, last = entry["data_offsets"]
    for other in header.values():
        if "data_offsets" in other and other["data_offsets"][0] >= last:
            other["data_offsets"] = [place - (last - first) for place in other["data_offsets"]]
    header["similarity.relu3_1.components"] = {**entry, "shape": shape, "data_offsets": [first, first]}
    with_header(folder, header, data[:first] + data[last:])
    with pytest.raises(PadError, match=words):
        pad.load(folder, "cpu")


def test_fewer_images_at_a_time_where_they_are_large() -> None:
    small, large = Config(), Config(size=256, generator_channels=(8,) * 7, encoder_channels=(8,) * 7,
                                    critic_channels=(8,) * 7, backbone_scale=4.0)  # fmt: skip
    assert fitting_batch(small, 128) == 128
    assert fitting_batch(large, 128) == 8
    assert fitting_batch(large, 1) == 1


# Downloads ----------------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a proxy that refuses everything, and the first line of whatever came in."""
    asked: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(1000).splitlines()[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def command(proxy: str, home: Path, *words: Any) -> tuple[int, str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_HOME": str(home),
           "HF_HOME": str(home), "https_proxy": proxy, "http_proxy": proxy}  # fmt: skip
    env.pop("no_proxy", None)
    done = subprocess.run(
        [sys.executable, "-m", "pad", *map(str, words)], env=env, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("similarity", ["relative-perceptual-l1", "lpips"])
def test_a_strangers_model_starts_no_download(
    proxy: tuple[str, list[bytes]],
    tmp_path: Path,
    boots: Path,
    similarity: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, asked = proxy
    folder = changed(tmp_path / "model", backbone="vgg19" if similarity != "lpips" else "vgg16")
    if similarity == "lpips":
        folder = changed(tmp_path / "other", backbone="vgg16", similarity=similarity)
        header, data = parts(folder)
        kept = {k: v for k, v in header.items() if not k.startswith("similarity.")}
        last = max(v["data_offsets"][1] for k, v in kept.items() if k != "__metadata__")
        assert sorted(v["data_offsets"][0] for k, v in kept.items() if k != "__metadata__")[0] == 0
        with_header(folder, kept, data[:last])
    for words in (
        ("evaluate", folder, boots),
        ("calibrate", folder, boots, "--out", tmp_path / "out"),
        ("train", "--from", folder, "--data", boots, "--out", tmp_path / "run"),
    ):
        status, said = command(address, tmp_path / "home", *words)
        assert status == 2
        assert "its weights are not on this machine" in said
        assert "--allow-downloads" in said
        assert len(said.splitlines()) == 1
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with pytest.raises(PadError, match="allow it with"):
        pad.load(folder, "cpu")
    assert asked == []
    status, said = command(address, tmp_path / "home", "evaluate", folder, boots, "--allow-downloads")
    assert status == 2
    assert "cannot download its weights" in said
    assert asked
    assert all(line.startswith(b"CONNECT download.pytorch.org") for line in asked)


def test_weights_that_are_here_are_used_without_asking(
    proxy: tuple[str, list[bytes]], tmp_path: Path, boots: Path
) -> None:
    """Random ones: told by their fingerprint, which only happens to weights that were read."""
    widths = [(64, 2), (128, 2), (256, 4), (512, 4), (512, 4)]
    state, inputs = {}, 3
    for index, width in enumerate(width for width, count in widths for _ in range(count)):
        state[f"features.{index}.weight"] = torch.zeros(width, inputs, 3, 3)
        state[f"features.{index}.bias"] = torch.zeros(width)
        inputs = width
    place = tmp_path / "home" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save(state, place / "vgg19-dcbb9e9d.pth")
    folder = changed(tmp_path / "model", backbone="vgg19")
    status, said = command(proxy[0], tmp_path / "home", "evaluate", folder, boots)
    assert status == 2
    assert "was trained with other weights of the backbone vgg19" in said
    assert proxy[1] == []


def test_a_network_of_timm_is_not_made_without_its_weights(
    tmp_path: Path, proxy: tuple[str, list[bytes]]
) -> None:
    """eva02_enormous has 4.4 billion numbers."""
    folder = changed(tmp_path / "model", views=["whole"], steps=0,
                     view_backbone="timm:eva02_enormous_patch14_clip_224.laion2b")  # fmt: skip
    status, said = command(proxy[0], tmp_path / "home", "evaluate", folder, BOOT / "samples")
    assert status == 2
    assert proxy[1] == []
    assert len(said.splitlines()) == 1


# Links --------------------------------------------------------------------------------------------------


def zoo_with(tmp_path: Path, name: str) -> tuple[Path, Path]:
    """A zoo with one model, one of whose files is a link to a file outside of it; and that file."""
    root = tmp_path / "zoo"
    shutil.copytree(BOOT, root / "a" / "b")
    linked, outside = root / "a" / "b" / name, tmp_path / "outside"
    linked.rename(outside)
    linked.symlink_to(outside)
    return root, outside


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("README.md", "show"),
        ("verify.json", "verify"),
        ("samples/normal/00000.png", "verify"),
        ("config.yaml", "verify"),
    ],
)
def test_the_zoo_follows_no_link_out_of_a_model(
    tmp_path: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pad.commands.parser import main

    if name.startswith("samples/"):
        name = next(p for p in sorted((BOOT / "samples").rglob("*.png"))).relative_to(BOOT).as_posix()
    root, _ = zoo_with(tmp_path, name)
    status = main(["zoo", command, "a/b", "--root", str(root)])
    said = capsys.readouterr()
    assert status == 2
    assert f"{name} is a link out of the model folder: refused" in said.out + said.err
    with pytest.raises(PadError, match="is a link out of the model folder"):
        checksums(root / "a" / "b")


def test_a_copied_model_takes_no_link_along_as_a_file(tmp_path: Path, boots: Path) -> None:
    from pad.commands.parser import main

    folder = tmp_path / "model"
    shutil.copytree(BOOT, folder)
    (tmp_path / "secret").write_text("mine")
    (folder / "secret.txt").symlink_to(tmp_path / "secret")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "secret")
    assert main(["calibrate", str(folder), str(boots), "--device", "cpu"]) == 0
    assert (tmp_path / "secret").read_text() == "mine"
    assert not (folder / "README.md").is_symlink()
    assert (folder / "secret.txt").is_symlink()
    assert "mine" not in (folder / "README.md").read_text()
