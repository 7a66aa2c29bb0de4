"""Images in stores that fsspec reaches, and in shards: the same images as on a disk."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from pad.errors import PadError
from pad.images.imageset import ImageSet
from pad.images.read import ImageError
from pad.images.resolve import resolve


@pytest.fixture
def store(fashion: Path) -> Iterator[str]:
    """The tests' images in a store: memory, which knows no disk."""
    system, root = fsspec.filesystem("memory"), "memory://bucket/fashion"
    for path in [*(fashion / "test").rglob("*.png"), *(fashion / "train").rglob("0000*.png")]:
        system.pipe_file(f"/bucket/fashion/{path.relative_to(fashion).as_posix()}", path.read_bytes())
    yield root
    system.rm("/bucket", recursive=True)


def pixels(images: ImageSet) -> list[bytes]:
    return [images.open(index).tobytes() for index in range(len(images))]


def test_a_folder_in_a_store_is_that_on_a_disk(store: str, fashion: Path) -> None:
    there, here = resolve(f"{store}/test", "evaluate"), resolve(fashion / "test", "evaluate")
    assert [(s.kind, s.anomalous) for s in there.samples] == [(s.kind, s.anomalous) for s in here.samples]
    assert there.keys == here.keys
    assert pixels(there) == pixels(here)
    assert there.samples[0].name == "memory:///bucket/fashion/test/bag/00018.png"
    normal = resolve(f"{store}/test", "train")
    assert len(normal) == 40
    assert {sample.kind for sample in normal.samples} == {"normal"}
    by_file = resolve((fashion / "test").as_uri(), "evaluate")
    assert pixels(by_file) == pixels(here)


def test_the_layout_of_mvtec_in_a_store(tmp_path: Path, fashion: Path) -> None:
    boots = sorted((fashion / "train" / "ankle-boot").glob("*.png"))
    for number, place in enumerate(("train/good", "test/good", "test/torn", "ground_truth/torn")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.png").write_bytes(boots[number].read_bytes())
    for purpose in ("train", "evaluate"):
        there, here = resolve(tmp_path.as_uri(), purpose), resolve(tmp_path, purpose)
        assert pixels(there) == pixels(here)
        assert [s.anomalous for s in there.samples if s.anomalous] == [
            s.anomalous for s in here.samples if s.anomalous
        ]


def test_globs_and_files_in_a_store(store: str, fashion: Path) -> None:
    there = resolve(f"{store}/test/*/0000*.png", "evaluate")
    here = resolve(str(fashion / "test" / "*" / "0000*.png"), "evaluate")
    assert pixels(there) == pixels(here)
    assert not there.labelled
    assert not here.labelled
    one = resolve(f"{store}/test/bag/00018.png", "evaluate")
    assert len(one) == 1
    assert len(resolve([f"{store}/test/bag", f"{store}/test/bag/00018.png"], "evaluate")) == 20
    system = fsspec.filesystem("memory")
    for name in ("notes.txt", ".hidden.png", "ground_truth/x.png", ".thumbs/x.png"):
        system.pipe_file(f"/bucket/fashion/test/bag/{name}", b"x")
    assert len(resolve(f"{store}/test/bag", "evaluate")) == 20


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://nowhere/at/all", "no files there|cannot be listed"),
        ("memory://nowhere/*.png", "no files there"),
        ("nosuchstore://bucket/x", "nosuchstore"),
        ("memory://only/text", "no images there"),
    ],
)
def test_what_is_not_there_is_said(url: str, reason: str) -> None:
    fsspec.filesystem("memory").pipe_file("/only/text/a.txt", b"x")
    with pytest.raises(PadError, match=reason) as caught:
        resolve(url, "evaluate")
    assert "\n" not in str(caught.value)


def test_a_file_that_vanishes_is_an_error_of_its_own(store: str) -> None:
    images = resolve(f"{store}/test/bag", "evaluate")
    fsspec.filesystem("memory").rm("/bucket/fashion/test/bag/00018.png")
    with pytest.raises(ImageError, match="no such file"):
        images.open(0)
    assert images.open(1).size == (28, 28)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_shards_of_webdataset(fashion: Path, tmp_path: Path) -> None:
    files = sorted((fashion / "test" / "bag").glob("*.png"))
    for number in range(2):
        part = files[number::2]
        members = {}
        for path in part:
            members |= {path.name: path.read_bytes(), f"{path.stem}.cls": b"3", f"{path.stem}.json": b"{}"}
        write_tar(tmp_path / f"bags-{number}.tar", {"./": b"", **members})
    images = resolve(str(tmp_path / "bags-*.tar"), "evaluate")
    expected = [path for number in range(2) for path in files[number::2]]
    assert pixels(images) == [resolve(path, "evaluate").open(0).tobytes() for path in expected]
    assert images.samples[0].name == f"{tmp_path / 'bags-0.tar'}/{files[0].name}"
    assert not images.labelled
    twice = resolve([str(tmp_path / "bags-0.tar"), (tmp_path / "bags-0.tar").as_uri()], "evaluate")
    assert len(twice) == 10
    # Beside images, an archive is no image, as ever.
    (tmp_path / "a.png").write_bytes(files[0].read_bytes())
    assert len(resolve(tmp_path, "evaluate")) == 1


def test_shards_of_parquet(fashion: Path, tmp_path: Path) -> None:
    files = sorted((fashion / "test" / "bag").glob("*.png"))
    contents = [path.read_bytes() for path in files]
    structures = [{"bytes": c, "path": p.name} for p, c in zip(files, contents, strict=True)]
    parquet.write_table(
        pyarrow.table({"label": range(20), "image": structures, "other": contents}),
        tmp_path / "hub.parquet",
        row_group_size=7,
    )
    parquet.write_table(
        pyarrow.table({"jpg": contents, "__key__": [p.stem for p in files]}), tmp_path / "keys.parquet"
    )
    parquet.write_table(pyarrow.table({"jpg": [*contents[:1], None]}), tmp_path / "bare.parquet")
    expected = pixels(resolve(fashion / "test" / "bag", "evaluate"))
    for name, first in (("hub", "00018.png"), ("keys", "00018")):
        images = resolve(tmp_path / f"{name}.parquet", "evaluate")
        assert pixels(images) == expected
        assert images.samples[0].name.endswith(f"{name}.parquet/{first}")
    bare = resolve((tmp_path / "bare.parquet").as_uri(), "evaluate")
    assert bare.samples[1].name.endswith("bare.parquet/000001")
    with pytest.raises(ImageError, match="no bytes"):
        bare.open(1)


def test_shards_of_both_kinds_in_a_folder_and_their_images_in_any_order(
    fashion: Path, tmp_path: Path
) -> None:
    files = sorted((fashion / "test" / "bag").glob("*.png"))
    write_tar(tmp_path / "a.tar", {path.name: path.read_bytes() for path in files[:10]})
    rows = pyarrow.table({"image": [path.read_bytes() for path in files[10:]]})
    parquet.write_table(rows, tmp_path / "b.parquet", row_group_size=4)
    expected = pixels(resolve(fashion / "test" / "bag", "evaluate"))
    for spec in (
        tmp_path,
        f"{tmp_path}/*",
        f"{tmp_path}/*.[tp]a*",
        tmp_path.as_uri(),
        f"{tmp_path.as_uri()}/*",
    ):
        images = resolve(spec, "evaluate")
        assert pixels(images) == expected
    for index in (19, 3, 10, 15, 0, 11, 18):
        assert images.open(index).tobytes() == expected[index]


@pytest.mark.parametrize("name", ["text.tar", "text.parquet", "empty.tar", "none.parquet", "two.parquet"])
def test_shards_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_bytes(b"no shard" * 200)
    (tmp_path / "text.parquet").write_bytes(b"no shard")
    write_tar(tmp_path / "empty.tar", {"a.cls": b"1"})
    parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "none.parquet")
    parquet.write_table(pyarrow.table({"a": [b"1"], "b": [b"2"]}), tmp_path / "two.parquet")
    with pytest.raises(PadError, match=name) as caught:
        resolve(tmp_path / name, "evaluate")
    assert "\n" not in str(caught.value)


def test_a_shard_that_lies_about_a_size(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": b"x" * 600})
    content = bytearray((tmp_path / "a.tar").read_bytes())
    header = bytearray(content[:512])
    header[124:136] = b"%011o\0" % (1 << 32)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(content[512:]))
    try:
        images = resolve(tmp_path / "a.tar", "evaluate")
    except PadError:
        return
    with pytest.raises(ImageError):
        images.open(0)


def test_a_detector_scores_what_lies_in_a_store(store: str, fashion: Path) -> None:
    import pad

    detector = pad.load("zoo:fashion-mnist/ankle-boot", device="cpu")
    np.testing.assert_array_equal(
        detector.score(f"{store}/test/bag"), detector.score(fashion / "test" / "bag")
    )
