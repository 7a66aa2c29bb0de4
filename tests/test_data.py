"""Which files a specification names, what is known of them, and the stream of tensors."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pad.config import Config
from pad.errors import PadError
from pad.images.decode import to_tensor
from pad.images.imageset import ImageSet, Sample
from pad.images.read import read_image
from pad.images.resolve import resolve
from pad.images.stream import each_batch, load_all, stream


def put(path: Path, value: int = 100) -> Path:
    """A small grey image of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path, format="PNG")
    return path


def names(specs, purpose="evaluate", under: Path | None = None) -> list[str]:
    found = [sample.name for sample in resolve(specs, purpose).samples]
    return [Path(name).relative_to(under).as_posix() for name in found] if under else found


# Files, folders, globs


def test_plain_folder(boots):
    images = resolve(boots, "train")
    assert len(images) == 120
    assert not images.labelled
    assert images.describe() == "120 images in ankle-boot"
    paths = sorted(boots.iterdir())
    assert images.samples[0] == Sample(str(paths[0]), None, None, None)
    assert [sample.name for sample in images.samples] == [str(path) for path in paths]
    np.testing.assert_array_equal(np.asarray(images.open(7)), np.asarray(Image.open(paths[7])))
    assert len(images.normal_only()) == 120


def test_folder_is_searched_recursively_in_order_without_sidecars(tmp_path):
    for name in ("b/2.PNG", "b/10.png", "a.Jpeg", "c/d/e.tiff", ".hidden.png", ".git/x.png", "no-suffix"):
        put(tmp_path / name)
    for name in ("labels.csv", "README.md", "b/b.json", "x.yaml", "Thumbs.db"):
        (tmp_path / name).write_text("1")
    (tmp_path / "report.docx").write_text("not a picture, and reported as such")
    expected = ["a.Jpeg", "no-suffix", "report.docx", "b/10.png", "b/2.PNG", "c/d/e.tiff"]
    assert names(tmp_path, under=tmp_path) == expected
    batch = next(stream(resolve(tmp_path, "evaluate"), Config(), 10))
    assert batch.indices == [0, 1, 3, 4, 5]
    assert batch.errors == [(2, "not an image of a supported format")]


def test_odd_names(tmp_path, grey):
    odd = ["with space.png", "größe — 画像.png", "100%.png", "semi;colon.png", "[1].png", "a:b.png", "*.png"]
    for name in odd:
        put(tmp_path / name)
    assert sorted(names(tmp_path, under=tmp_path)) == sorted(odd)
    for name in odd:  # also each alone: an existing file is meant before a glob or a dataset
        assert names(str(tmp_path / name), under=tmp_path) == [name]
    assert len(load_all(resolve(tmp_path, "train"), grey)[1]) == len(odd)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text here")
def test_a_name_that_is_not_text_can_be_printed(tmp_path, grey):
    put(tmp_path / os.fsdecode(b"caf\xe9.png"))
    images = resolve(tmp_path, "evaluate")
    assert images.samples[0].name.encode("utf-8").endswith("caf\ufffd.png".encode())
    assert next(stream(images, grey, 1)).indices == [0]
    assert images.fingerprint()["images"] == 1


def test_globs_lists_and_repeats(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png", "b/deep/4.png"):
        put(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("a sidecar")
    assert names(str(tmp_path / "a/*"), under=tmp_path) == ["a/1.png", "a/2.png"]
    assert names(str(tmp_path / "*/?.png"), under=tmp_path) == ["a/1.png", "a/2.png", "b/3.png"]
    everything = ["a/1.png", "a/2.png", "b/3.png", "b/deep/4.png"]
    assert names(str(tmp_path / "**/*.png"), under=tmp_path) == everything
    assert names(str(tmp_path / "*"), under=tmp_path) == everything
    several = [str(tmp_path / name) for name in ("b", "a/2.png", ".", "a/../a/1.png")]
    assert names(several, under=tmp_path) == ["b/3.png", "b/deep/4.png", "a/2.png", "a/1.png"]
    assert resolve(several[:2], "train").describe() == "3 images in b, 2.png"


def test_a_file_given_by_name_counts_whatever_its_suffix(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    images = resolve([tmp_path / "a.txt"], "evaluate")
    assert next(stream(images, Config(), 1)).errors == [(0, "not an image of a supported format")]


def test_symbolic_links(tmp_path):
    put(tmp_path / "store/a.png")
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/linked").symlink_to(tmp_path / "store")
    (tmp_path / "data/sub/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to(tmp_path / "data/self")
    found = names(tmp_path / "data", under=tmp_path / "data")
    assert sorted(found) == ["linked/a.png", "self"]  # the loop once; what cannot be followed is reported


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "nowhere: no such file, folder or dataset"),
        ("nowhere/*.png", r"nowhere/\*\.png: no image matches"),
        ("empty", "empty: no images in this folder"),
        ("papers", "papers: no images in this folder"),
        ("imagse", "did you mean 'images'"),
        ("fashon-mnist:9", "did you mean 'fashion-mnist'"),
        ("imagenet:cat", "the datasets are mnist, fashion-mnist, cifar10, coil-100, celeba, lsun"),
        ("", "an empty name"),
        ([], "no images were named"),
        (["images", "nowhere"], "nowhere: no such"),
    ],
)
def test_what_names_no_image_is_refused(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "images/a.png")
    Path("empty/.hidden").mkdir(parents=True)
    Path("papers").mkdir()
    Path("papers/a.txt").write_text("x")
    with pytest.raises(PadError, match=message):
        resolve(spec, "train")


# Labels


def test_labelled_folder(fashion):
    images = resolve(fashion / "test", "evaluate")
    assert images.labelled
    assert len(images) == 140
    kinds = {(sample.kind, sample.anomalous) for sample in images.samples}
    others = ("bag", "sandal", "shirt", "sneaker", "trouser")
    assert kinds == {("normal", False)} | {(kind, True) for kind in others}
    assert len(images.normal_only()) == 40
    assert len(images.subset([3, 1])) == 2
    assert images.subset([3, 1]).samples == [images.samples[3], images.samples[1]]
    train = resolve(fashion / "test", "train")
    assert len(train) == 40
    assert {sample.anomalous for sample in train.samples} == {False}


def test_a_folder_with_train_and_test_is_used_for_each_purpose(fashion):
    assert len(resolve(fashion, "train")) == 120
    assert len(resolve(fashion, "evaluate")) == 140


def test_good_in_any_case_nested_kinds_and_loose_files(tmp_path):
    for name in ("Good/a.png", "Good/x/b.png", "scratch/deep/c.png", "loose.png"):
        put(tmp_path / name)
    images = resolve(tmp_path, "evaluate")
    assert [(Path(s.name).name, s.kind, s.anomalous) for s in images.samples] == [
        ("loose.png", None, None),
        ("a.png", "Good", False),
        ("b.png", "Good", False),
        ("c.png", "scratch", True),
    ]
    assert names(tmp_path, "train", tmp_path) == ["Good/a.png", "Good/x/b.png"]
    shutil.rmtree(tmp_path / "scratch")
    assert not resolve(tmp_path, "evaluate").labelled  # nothing beside it


def test_a_labelled_folder_without_normal_images_cannot_train(tmp_path):
    put(tmp_path / "bad/a.png")
    (tmp_path / "normal").mkdir()
    with pytest.raises(PadError, match=r"normal: no images"):
        resolve(tmp_path, "train")
    assert len(resolve(tmp_path, "evaluate")) == 1


def test_mvtec_layout(tmp_path):
    root = tmp_path / "bottle"
    for name in ("train/good/000.png", "train/good/001.png", "test/good/000.png", "test/crack/000.png"):
        put(root / name)
    put(root / "test/crack/001.png")
    mask = put(root / "ground_truth/crack/000_mask.png", 255)
    train = resolve(root, "train")
    assert names(root, "train", root) == ["train/good/000.png", "train/good/001.png"]
    assert {(sample.kind, sample.anomalous) for sample in train.samples} == {("good", False)}
    for spec in (root, root / "test"):
        images = resolve(spec, "evaluate")
        found = [
            (Path(s.name).relative_to(root).as_posix(), s.kind, s.anomalous, s.mask) for s in images.samples
        ]
        assert found == [
            ("test/crack/000.png", "crack", True, mask),
            ("test/crack/001.png", "crack", True, None),
            ("test/good/000.png", "good", False, None),
        ]
    assert "ground_truth" not in " ".join(names(tmp_path))  # nor from the folder above
    assert names(root / "train", "train", root) == ["train/good/000.png", "train/good/001.png"]
    shutil.rmtree(root / "train")
    assert len(resolve(root, "evaluate")) == 3
    with pytest.raises(PadError, match="train: no normal images"):
        resolve(root, "train")


# Fingerprint


def test_fingerprint_is_of_the_images_and_not_of_the_machine(boots, tmp_path):
    print_ = resolve(boots, "train").fingerprint()
    assert print_ == resolve(str(boots), "train").fingerprint()
    assert (print_["source"], print_["images"]) == ("ankle-boot", 120)
    assert len(str(print_["sha256"])) == 64
    shutil.copytree(boots, tmp_path / "ankle-boot")
    assert resolve(tmp_path / "ankle-boot", "train").fingerprint() == print_
    put(tmp_path / "ankle-boot" / sorted(p.name for p in boots.iterdir())[0])
    assert resolve(tmp_path / "ankle-boot", "train").fingerprint() != print_
    assert resolve(boots, "train").subset(range(60)).fingerprint()["images"] == 60
    (tmp_path / "ankle-boot" / sorted(p.name for p in boots.iterdir())[0]).unlink()
    assert resolve(tmp_path, "train").fingerprint()["images"] == 119


def test_fingerprint_of_the_current_folder_has_its_name(boots, monkeypatch):
    monkeypatch.chdir(boots)
    assert resolve(".", "train").fingerprint() == resolve(boots, "train").fingerprint()


# Streaming


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_stream_keeps_the_order(boots, grey, workers, batch_size):
    images = resolve(boots, "evaluate").subset(range(50))
    batches = list(stream(images, grey, batch_size, workers))
    assert [index for batch in batches for index in batch.indices] == list(range(50))
    assert all(len(batch.indices) == len(batch.tensor) <= batch_size for batch in batches)
    expected = torch.stack([to_tensor(images.open(index), grey) for index in range(50)])
    assert torch.equal(torch.cat([batch.tensor for batch in batches]), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_batch_is_what_stream_gives(tmp_path, grey, threads):
    for index in range(70):
        put(tmp_path / f"{index:02d}.png", value=index)
    (tmp_path / "33.png").write_bytes(b"")
    images = resolve(tmp_path, "evaluate")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = list(each_batch(lambda batch: batch, images, grey, torch.device("cpu"), 40))
    finally:
        torch.set_num_threads(before)
    expected = list(stream(images, grey, 70))
    assert [i for batch in found for i in batch.indices] == expected[0].indices
    assert [error for batch in found for error in batch.errors] == expected[0].errors
    assert torch.equal(torch.cat([batch.tensor for batch in found]), expected[0].tensor)
    assert max(len(batch.indices) for batch in found) <= (40 if threads == 1 else 20)


def test_lanes_read_slow_files_at_the_same_time(boots, grey):
    boot = next(boots.rglob("*.png")).read_bytes()
    reading, most = [], []

    class Slow:
        def read(self):
            reading.append(self)
            most.append(len(reading))
            time.sleep(0.01)
            reading.remove(self)
            return boot

    images = ImageSet([Sample(f"{i}") for i in range(80)], [Slow() for _ in range(80)], [""] * 80, "slow")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = each_batch(lambda batch: batch.indices, images, grey, torch.device("cpu"), 40)
        assert [i for indices in found for i in indices] == list(range(80))
    finally:
        torch.set_num_threads(before)
    assert max(most) == 2


def test_unreadable_images_are_reported_and_the_rest_goes_through(tmp_path, grey):
    for index in range(10):
        put(tmp_path / f"{index}.png", value=index)
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "8.png").write_text("no pixels here")
    (tmp_path / "9.png").write_text("nor here")
    images = resolve(tmp_path, "evaluate")
    (tmp_path / "5.png").unlink()  # vanished since
    batches = list(stream(images, grey, 2))
    assert [batch.indices for batch in batches] == [[0, 1], [2], [4], [6, 7], []]
    assert batches[-1].tensor.shape == (0, 1, 32, 32)
    assert [index for batch in batches for index, _ in batch.errors] == [3, 5, 8, 9]
    reasons = dict(error for batch in batches for error in batch.errors)
    assert reasons[3] == "the file is empty"
    assert reasons[5] == "no such file"
    pixels, kept, errors = load_all(images, grey)
    assert kept == [0, 1, 2, 4, 6, 7]
    assert [index for index, _ in errors] == [3, 5, 8, 9]
    torch.testing.assert_close(pixels, torch.cat([batch.tensor for batch in batches]))
    torch.testing.assert_close(pixels[:, 0, 0, 0], torch.tensor(kept) / 255 * 2 - 1)


def test_stream_runs_only_a_little_ahead(tmp_path, grey):
    for index in range(100):
        put(tmp_path / f"{index:03d}.png")
    images = resolve(tmp_path, "evaluate")
    batches = stream(images, grey, 1, workers=2)
    next(batches)
    for path in sorted(tmp_path.iterdir())[10:]:
        path.unlink()
    rest = list(batches)
    assert sum(len(batch.errors) for batch in rest) == 90  # none of those had been read yet
    unfinished = stream(images, grey, 1)
    next(unfinished)
    unfinished.close()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_is_flat(tmp_path, grey):
    Image.new("RGB", (1000, 1000)).save(tmp_path / "a.png")  # 3 MB decoded, 450 MB if all were kept
    for index in range(150):
        (tmp_path / f"{index}.png").symlink_to(tmp_path / "a.png")
    images = resolve(tmp_path, "evaluate")

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    batches = stream(images, grey, 8)
    for _ in range(5):
        next(batches)
    before = peak()
    assert sum(len(batch.indices) for batch in batches) == 151 - 40
    assert peak() - before < 100


def test_everything_agrees_with_reading_one_file(photographs, colour):
    pixels, kept, errors = load_all(resolve(photographs, "train"), colour)
    assert kept == [0, 1, 2, 3]
    assert errors == []
    for row, path in zip(pixels, sorted(photographs.iterdir()), strict=True):
        assert torch.equal(row, to_tensor(read_image(path), colour))


def test_a_batch_of_every_size_and_type_agrees_with_reading_one_file(tmp_path, colour):
    rng = np.random.default_rng(0)
    for index, side in enumerate((20, 300, 40, 20, 33)):  # 300x300 is not kept back for the others
        rgb = rng.integers(0, 256, (side, side + 2, 3)).astype(np.uint8)
        Image.fromarray(rgb).save(tmp_path / f"{index}.png")
        Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(tmp_path / f"{index}-deep.png")
        Image.fromarray(rgb[..., 0] / np.float32(255)).save(tmp_path / f"{index}-float.tiff")
    images = resolve(tmp_path, "evaluate")
    (batch,) = stream(images, colour, len(images))
    assert batch.indices == list(range(15))
    for index, row in enumerate(batch.tensor):
        assert torch.equal(row, to_tensor(images.open(index), colour))


def test_images_in_memory(grey):
    deep = Image.fromarray(np.full((32, 32), 1005, np.uint16))
    images = ImageSet(
        [Sample("deep"), Sample("flat"), Sample("clear")],
        [deep, np.full((32, 32), 51, np.uint8), np.zeros((32, 32, 4), np.uint8)],
        ["deep", "flat", "clear"],
        "memory",
    )
    pixels, kept, errors = load_all(images, grey)
    assert (kept, errors) == ([0, 1, 2], [])
    assert pixels[:, 0, 0, 0].tolist() == pytest.approx([1005 / 65535 * 2 - 1, -0.6, 1.0])
    print_ = images.fingerprint()
    assert print_ == images.fingerprint() != images.subset([1, 0, 2]).fingerprint()
