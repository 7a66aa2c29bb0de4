"""Images in shards and in stores: what is found there is what lies on a disk."""

from __future__ import annotations

import io
import tarfile
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
from pad.images.urls import file_system


@pytest.fixture(scope="module")
def bags(fashion: Path) -> list[Path]:
    return sorted((fashion / "test" / "bag").glob("*.png"))


def pixels(images: ImageSet) -> list[bytes]:
    return [images.open(index).tobytes() for index in range(len(images))]


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(bags: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twenty bags: ten in a tar file as WebDataset writes it, ten in a Parquet file of three groups."""
    folder = tmp_path_factory.mktemp("shards")
    files: dict[str, bytes] = {}
    for path in bags[:10]:
        files |= {path.name: path.read_bytes(), f"{path.stem}.cls": b"8", f"{path.stem}.json": b"{}"}
    write_tar(folder / "a-000.tar", files)
    table = pyarrow.table({"image": [{"bytes": p.read_bytes(), "path": p.name} for p in bags[10:]]})
    parquet.write_table(table, folder / "b-000.parquet", row_group_size=4)
    return folder


def test_shards_hold_the_images_that_were_put_there(bags: list[Path], shards: Path) -> None:
    tar, table = shards / "a-000.tar", shards / "b-000.parquet"
    expected = pixels(resolve(bags, "evaluate"))
    together = [
        shards,
        f"{shards}/*",
        f"{shards}/*.[tp]a*",
        [tar, table],
        f"file://{shards}",
        f"file://{shards}/*",
    ]
    for spec in together:
        assert pixels(resolve(spec, "evaluate")) == expected
    images = resolve([tar, table], "evaluate")
    assert [sample.name for sample in images.samples] == [
        f"{shard}/{path.name}" for shard, paths in ((tar, bags[:10]), (table, bags[10:])) for path in paths
    ]
    assert len(resolve([tar, f"file://{tar}", str(tar)], "evaluate")) == 10  # named three times


def test_images_of_a_parquet_file_in_any_order(bags: list[Path], shards: Path) -> None:
    images, expected = resolve(shards / "b-000.parquet", "evaluate"), pixels(resolve(bags[10:], "evaluate"))
    for index in (9, 0, 5, 1, 8):
        assert images.open(index).tobytes() == expected[index]


@pytest.mark.parametrize("column", ["image", "img"])
def test_names_of_a_parquet_file_may_be_another_column(bags: list[Path], tmp_path: Path, column: str) -> None:
    content = [path.read_bytes() for path in bags[:3]]
    parquet.write_table(pyarrow.table({"__key__": ["x", "y", None], column: content}), tmp_path / "n.parquet")
    images = resolve(tmp_path / "n.parquet", "evaluate")
    assert [Path(sample.name).name for sample in images.samples] == ["x", "y", "000002"]
    assert pixels(images) == pixels(resolve(bags[:3], "evaluate"))


def test_shards_that_hold_nothing_to_look_at(bags: list[Path], tmp_path: Path) -> None:
    write_tar(tmp_path / "empty.tar", {"readme.txt": b"", ".hidden.png": b""})
    (tmp_path / "torn.tar").write_bytes(b"no tar file")
    (tmp_path / "torn.parquet").write_bytes(b"no parquet file")
    two = {"a": [b""], "b": [b""], "c": [1]}
    parquet.write_table(pyarrow.table(two), tmp_path / "two.parquet")
    for name, why in {
        "empty.tar": "no images in this shard",
        "torn.tar": "not a readable tar file",
        "torn.parquet": "not a readable Parquet file",
        "two.parquet": "needs a column 'image', or just one of bytes, among: a, b, c",
    }.items():
        with pytest.raises(PadError, match=why):
            resolve(tmp_path / name, "evaluate")
    parquet.write_table(
        pyarrow.table({"image": [bags[0].read_bytes(), None, b"x"]}), tmp_path / "gap.parquet"
    )
    images = resolve(tmp_path / "gap.parquet", "evaluate")
    images.open(0)
    for index in (1, 2):
        with pytest.raises(ImageError):
            images.open(index)


@pytest.mark.parametrize("purpose", ["train", "evaluate"])
def test_a_folder_of_a_store_is_read_as_one_on_a_disk(fashion: Path, purpose: str) -> None:
    local, remote = resolve(fashion / "test", purpose), resolve(f"file://{fashion}/test", purpose)
    assert [(s.kind, s.anomalous) for s in remote.samples] == [(s.kind, s.anomalous) for s in local.samples]
    assert remote.keys == local.keys
    assert pixels(remote) == pixels(local)


def test_a_store_that_is_no_disk(bags: list[Path]) -> None:
    store = fsspec.filesystem("memory")
    for path in bags[:4]:
        store.pipe(f"/bucket/in/{path.name}", path.read_bytes())
    store.pipe("/bucket/in/.hidden.png", b"")
    store.pipe("/bucket/in/notes.txt", b"")
    try:
        expected = pixels(resolve(bags[:4], "evaluate"))
        for spec in ("memory://bucket", "memory://bucket/in/", "memory://bucket/*/*.png"):
            assert pixels(resolve(spec, "evaluate")) == expected
        images = resolve([f"memory://bucket/in/{bags[0].name}", "memory://bucket/in"], "evaluate")
        assert len(images) == 4
        store.rm(f"/bucket/in/{bags[0].name}")
        with pytest.raises(ImageError, match="no such file"):
            images.open(0)
    finally:
        store.rm("/bucket", recursive=True)
    with pytest.raises(PadError, match="memory://bucket: no files there"):
        resolve("memory://bucket", "evaluate")
    with pytest.raises(PadError, match="nowhere://"):
        resolve("nowhere://bucket", "evaluate")


def test_python_takes_stores_too(bags: list[Path]) -> None:
    import pad

    detector = pad.load("zoo:fashion-mnist/ankle-boot", device="cpu")
    scores = detector.score(bags)
    np.testing.assert_array_equal(detector.score(f"file://{bags[0].parent}"), scores)
    assert file_system("file") is file_system("file")
