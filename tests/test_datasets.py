"""Named datasets, from the files that each of them consists of."""

from __future__ import annotations

import gzip
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pad.config import Config
from pad.errors import PadError
from pad.images import named as datasets
from pad.images.named import CIFAR10_CLASSES, FASHION_CLASSES, read_idx
from pad.images.resolve import resolve
from pad.images.stream import load_all, stream

SYSTEM = datasets.SYSTEM_ROOT / "fashion-mnist"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def pixels(fashion: Path) -> np.ndarray:
    """Ten real images, (10, 28, 28)."""
    folders = sorted((fashion / "test").iterdir())
    files = [path for folder in folders for path in sorted(folder.iterdir())[:2]][:10]
    return np.stack([np.asarray(Image.open(path)) for path in files])


@pytest.fixture
def root(tmp_path: Path, pixels: np.ndarray) -> Path:
    """A small Fashion-MNIST: 10 training and 10 test images, one of each class, test in reverse."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    labels = np.arange(10, dtype=np.uint8)
    for split, order in (("train", labels), ("t10k", labels[::-1])):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(pixels[order]))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(order)))
    return tmp_path


# IDX


@pytest.mark.parametrize("shape", [(7,), (4, 3, 2), (0, 28, 28)])
def test_read_idx(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    (tmp_path / "a").write_bytes(idx(array))
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("a", "a.gz"):
        got = read_idx(tmp_path / name)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, array)


def test_damaged_idx(tmp_path, pixels):
    whole = idx(pixels)
    for name, data in [
        ("short", whole[:-1]),
        ("long", whole + b"1"),
        ("cut", whole[:9]),
        ("empty", b""),
        ("text", b"this is not it"),
        ("cut.gz", gzip.compress(whole)[:-9]),
        ("text.gz", b"this is not it"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PadError, match=name):
            read_idx(tmp_path / name)
    with pytest.raises(PadError, match="missing"):
        read_idx(tmp_path / "missing")


# One-vs-rest


def test_one_versus_rest(root, pixels):
    train = resolve("fashion-mnist:9", "train", root)
    assert [s.name for s in train.samples] == ["fashion-mnist/train/00009"]
    assert train.samples[0].kind == "ankle-boot"
    assert train.samples[0].anomalous is False
    np.testing.assert_array_equal(np.asarray(train.open(0)), pixels[9])
    test = resolve("fashion-mnist:ankle-boot", "evaluate", root)
    assert test.describe() == "10 images in fashion-mnist:ankle-boot"
    assert [s.kind for s in test.samples] == list(reversed(FASHION_CLASSES))
    assert [s.anomalous for s in test.samples] == [False] + [True] * 9
    assert len(test.normal_only()) == 1
    assert test.samples[3].name == "fashion-mnist/test/00003"
    np.testing.assert_array_equal(np.asarray(test.open(3)), pixels[6])


@pytest.mark.parametrize(
    "spec", ["fashion-mnist:5,7,9", "Fashion_MNIST:sandal,Sneaker,ankle boot", "fashion-mnist: 9, 7, 5, 5"]
)
def test_several_normal_classes(root, spec):
    assert [s.name[-1] for s in resolve(spec, "train", root).samples] == ["5", "7", "9"]
    test = resolve(spec, "evaluate", root)
    assert sum(not s.anomalous for s in test.samples) == 3
    assert test.source == "fashion-mnist:sandal,sneaker,ankle-boot"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fashion-mnist", "name the normal class, such as 'fashion-mnist:ankle-boot'"),
        ("fashion-mnist:", "name the normal class"),
        ("fashion-mnist:boot", "did you mean 'ankle-boot'"),
        ("fashion-mnist:10", "no class '10'; the classes are 0 to 9 or t-shirt"),
        ("fashion-mnist:-1", "no class '-1'"),
        ("fashion-mnist:0,1,2,3,4,5,6,7,8,9", "nothing is left"),
        ("coil-100:101", "the classes are 1 to 100"),
        ("coil-100:0", "no class '0'"),
        ("celeba:bald", "only 'normal'"),
        ("lsun:1", "only 'bedroom'"),
        ("mnist:3", "mnist: dataset not found .*mnist.*; it needs t10k-images-idx3-ubyte.*torchvision"),
        ("cifar10:3", "cifar10: dataset not found .*cifar-10-batches-py"),
        ("coil-100:3", "obj1__0.png"),
        ("celeba", "list_attr_celeba.txt"),
        ("lsun", "bedroom_val_lmdb and conference_room_val_lmdb"),
    ],
)
def test_refusals(root, spec, message):
    with pytest.raises(PadError, match=message):
        resolve(spec, "evaluate", root)


def test_data_root_must_be_a_folder(tmp_path):
    with pytest.raises(PadError, match="--data-root"):
        resolve("mnist:3", "train", tmp_path / "nowhere")


@pytest.mark.parametrize("layout", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_layouts(root, tmp_path_factory, layout):
    other = tmp_path_factory.mktemp("root")
    (other / layout).mkdir(parents=True, exist_ok=True)
    for path in (root / "fashion-mnist").iterdir():
        (other / layout / path.name).write_bytes(path.read_bytes())
    assert len(resolve("fashion-mnist:1", "evaluate", other)) == 10


def test_images_and_labels_must_fit(root):
    (root / "fashion-mnist/t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(PadError, match="does not fit its labels"):
        resolve("fashion-mnist:1", "evaluate", root)


def test_fingerprint_is_of_the_pixels(root, pixels):
    print_ = resolve("fashion-mnist:9", "evaluate", root).fingerprint()
    assert print_ == resolve("fashion-mnist:ankle-boot", "evaluate", root).fingerprint()
    assert print_["source"] == "fashion-mnist:ankle-boot"
    (root / "fashion-mnist/t10k-images-idx3-ubyte").write_bytes(idx(pixels))
    assert resolve("fashion-mnist:9", "evaluate", root).fingerprint() != print_


def test_datasets_and_folders_together(root, boots):
    images = resolve(["fashion-mnist:9", str(boots), "fashion-mnist:9"], "train", root)
    assert len(images) == 121
    assert len(load_all(images, Config())[1]) == 121


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_the_whole_of_fashion_mnist(fashion):
    train, test = (resolve("fashion-mnist:ankle-boot", purpose) for purpose in ("train", "evaluate"))
    assert (len(train), len(test), len(test.normal_only())) == (6000, 10000, 1000)
    for path in sorted((fashion / "test").glob("*/*.png")):  # copied from there by tests/make_data.py
        sample = test.samples[int(path.stem)]
        assert sample.kind == ("ankle-boot" if path.parent.name == "normal" else path.parent.name)
        np.testing.assert_array_equal(np.asarray(test.open(int(path.stem))), np.asarray(Image.open(path)))


# The others


def test_cifar10(tmp_path, monkeypatch):
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (60, 3072)).astype(np.uint8)
    sums = {}
    for part, name in enumerate(
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
    ):
        rows = slice(part * 10, part * 10 + 10)
        (folder / name).write_bytes(pickle.dumps({"data": data[rows], "labels": list(range(10))}))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": data[50:], "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10_CLASSES)}))
    with pytest.raises(PadError, match="damaged or incomplete"):  # these files are not the real ones
        resolve("cifar10:cat", "train", tmp_path)

    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[n, s] for n, s in sums.items() if n.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    train = resolve("cifar10:cat,5", "train", tmp_path)
    assert len(train) == 10
    assert {s.kind for s in train.samples} == {"cat", "dog"}
    for where in (tmp_path, folder):
        test = resolve("cifar10:cat", "evaluate", where)
        assert [s.kind for s in test.samples] == list(CIFAR10_CLASSES)
        expected = data[53].reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(test.open(3)), expected)


def test_coil_100(tmp_path):
    folder = tmp_path / "coil-100"
    folder.mkdir()
    for number in (1, 2, 100):
        for angle in range(0, 360, 5):
            Image.new("RGB", (4, 4), (number, angle % 256, 0)).save(folder / f"obj{number}__{angle}.png")
    (folder / "convertGroupppm2png.pl").write_text("it comes with this")
    train = resolve("coil-100:100", "train", tmp_path)
    test = resolve("coil-100:obj100", "evaluate", tmp_path)
    assert (len(train), len(test)) == (58, 3 * 14)
    assert sum(not s.anomalous for s in test.samples) == 14
    assert {s.kind for s in test.samples} == {"obj1", "obj2", "obj100"}
    assert not {s.name for s in train.samples} & {s.name for s in test.samples}
    assert train.samples[0].name == "coil-100/obj100__0.png"
    assert train.open(1).getpixel((0, 0)) == (100, 5, 0)
    assert len(resolve("coil-100:1", "train", folder)) == 58


def test_a_dataset_named_like_a_folder_at_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "celeba").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "celeba/a.png")
    assert resolve("celeba", "train").samples[0].name == str(Path("celeba/a.png"))
    with pytest.raises(PadError, match="dataset not found"):
        resolve("celeba", "train", tmp_path)


def test_celeba(tmp_path):
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    attributes = ["Bald", "Bangs", "Eyeglasses", "Mustache", "Smiling", "Wearing_Hat"]
    faces = [  # name, split, attributes present
        ("000001.jpg", 0, ["Smiling"]),
        ("000002.jpg", 0, ["Bald"]),
        ("000003.jpg", 1, []),
        ("000004.jpg", 2, []),
        ("000005.jpg", 2, ["Wearing_Hat", "Smiling"]),
        ("000006.jpg", 2, ["Bald", "Eyeglasses"]),
        ("000007.jpg", 2, ["Mustache"]),
    ]
    for name, _, _ in faces:
        Image.new("RGB", (178, 218)).save(folder / "img_align_celeba" / name)
    rows = [name + "".join("  1" if a in has else " -1" for a in attributes) for name, _, has in faces]
    text = "\n".join([str(len(faces)), " ".join(attributes) + " ", *rows, ""])
    (folder / "list_attr_celeba.txt").write_text(text)
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} {split}\n" for name, split, _ in faces))
    for spec in ("celeba", "celeba:0", "celeba:normal"):
        train = resolve(spec, "train", tmp_path)
        assert [(s.name, s.kind, s.anomalous) for s in train.samples] == [
            ("celeba/000001.jpg", "normal", False)
        ]
    test = resolve("celeba", "evaluate", tmp_path)
    assert [(s.name[-5], s.kind, s.anomalous) for s in test.samples] == [
        ("4", "normal", False),
        ("5", "wearing-hat", True),
        ("7", "mustache", True),
    ]
    assert len(next(stream(test, Config(size=64, channels=3, crop=140), 8)).indices) == 3
    (folder / "list_attr_celeba.txt").write_text("1\nSmiling\n000001.jpg 1\n")
    with pytest.raises(PadError, match="does not name bald"):
        resolve("celeba", "train", tmp_path)
    (folder / "list_attr_celeba.txt").write_text(text.replace("000002.jpg", "000002.jpg 1"))
    with pytest.raises(PadError, match=r"000002\.jpg"):
        resolve("celeba", "train", tmp_path)


def test_lsun(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    for room, value in (("bedroom", 10), ("conference_room", 200)):
        environment = lmdb.open(str(tmp_path / f"{room}_val_lmdb"), map_size=1 << 20)
        with environment.begin(write=True) as transaction:
            for index in range(2):
                file = io.BytesIO()
                Image.new("RGB", (300, 256), (value + index,) * 3).save(file, "WEBP", lossless=True)
                transaction.put(f"{index:040d}".encode(), file.getvalue())
            transaction.put(b"x", b"not an image")
        environment.close()
    images = resolve("lsun", "evaluate", tmp_path)
    assert resolve("lsun:bedroom", "evaluate", tmp_path).samples == images.samples  # once more, while open
    kinds = [(sample.kind, sample.anomalous) for sample in images.samples]
    assert kinds == [("bedroom", False)] * 3 + [("conference-room", True)] * 3
    batch = next(stream(images, Config(size=64, channels=3, crop=256), 9))
    assert batch.indices == [0, 1, 3, 4]
    assert [index for index, _ in batch.errors] == [2, 5]
    np.testing.assert_allclose(batch.tensor[:, 0, 0, 0], np.array([10, 11, 200, 201]) / 127.5 - 1, atol=1e-6)
    with pytest.raises(PadError, match="bedroom_train_lmdb"):
        resolve("lsun:bedroom", "train", tmp_path)


def test_lsun_without_its_reader(tmp_path, monkeypatch):
    (tmp_path / "bedroom_train_lmdb").mkdir()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(PadError, match="pip install lmdb"):
        resolve("lsun", "train", tmp_path)
