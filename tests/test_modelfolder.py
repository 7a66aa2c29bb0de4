"""Model folders: what is written is read; a kill loses nothing; everything unsafe is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml

from pad.config import Config, to_mapping
from pad.errors import PadError
from pad.store.model_folder import FORMAT, fingerprint, present, read_model, write_model
from pad.store.weights import check_tensors

CALIBRATION = {"scores": [0.25, 0.5, 0.5, 1.0]}


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "generator.weight": torch.full((4, 3), value),
        "generator.bias": torch.full((3,), value, dtype=torch.float16),
        "steps": torch.tensor(int(value)),
    }


def config(**more: Any) -> dict[str, Any]:
    return {"recipe": to_mapping(Config()), "versions": {"pad": "0.1.0"}, **more}


def write(folder: Path, value: float = 1.0) -> Path:
    write_model(folder, tensors(value), config(), CALIBRATION, "# A model\n")
    return folder


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(PadError) as caught:
        read_model(folder)
    text = str(caught.value)
    assert "\n" not in text
    for word in (str(folder), *words):
        assert word in text
    return text


def test_written_is_read(tmp_path: Path) -> None:
    found = read_model(write(tmp_path / "runs" / "one" / "model"))
    assert set(found.tensors) == set(tensors())
    for name, tensor in tensors().items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    assert found.config == {"format": FORMAT, **config()}
    assert found.calibration == CALIBRATION


def test_replacing_keeps_pictures_and_leaves_no_litter(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "samples").mkdir()
    (folder / "samples" / "a.png").write_bytes(b"picture")
    write(folder, 2.0)
    assert read_model(folder).tensors["steps"] == 2
    assert (folder / "samples" / "a.png").read_bytes() == b"picture"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_shared_and_strided_tensors_are_written(tmp_path: Path) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    write_model(tmp_path / "m", {"a": one, "b": one, "c": one.T}, config(), None, "")
    found = read_model(tmp_path / "m")
    assert torch.equal(found.tensors["c"], one.T)
    assert found.calibration is None


def test_a_shared_list_in_the_config_needs_no_alias(tmp_path: Path) -> None:
    widths = [1, 2]
    write_model(tmp_path / "m", tensors(), config(data={"a": widths, "b": widths}), None, "")
    assert read_model(tmp_path / "m").config["data"] == {"a": [1, 2], "b": [1, 2]}


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(PadError, match="holds other files"):
        write(tmp_path / "photos")
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(PadError, match="it is a file"):
        write(tmp_path / "file")
    with pytest.raises(PadError, match="cannot write the model"):
        write(tmp_path / "file" / "model")
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"mine"


def test_weights_that_are_not_finite_never_replace_good_ones(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    with pytest.raises(PadError, match="'weight' holds NaN"):
        write_model(folder, {"weight": torch.tensor([float("nan")])}, config(), None, "")
    assert read_model(folder).tensors["steps"] == 1


WRITER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_modelfolder import write
value = 1
print("ready", flush=True)
while True:
    value += 1
    write(Path(sys.argv[1]), float(value))
"""


def test_kill_leaves_the_old_or_the_new_model_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    script = WRITER.format(tests=str(Path(__file__).parent))
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
    )
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        until = time.monotonic() + 60
        reads, last = 0, 0
        # While it is being replaced, every read is of one whole model.
        while (reads < 50 or last < 20) and time.monotonic() < until:
            found = read_model(folder).tensors
            value = int(found["steps"])
            assert torch.equal(found["generator.weight"], torch.full((4, 3), float(value)))
            assert value >= last
            reads, last = reads + 1, value
        assert reads >= 50
        assert last >= 20
    finally:
        writer.kill()
        writer.wait()
    assert int(read_model(folder).tensors["steps"]) >= last
    write(folder, 1.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_killed_between_the_renames(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    folder.rename(tmp_path / ".model.old")
    write(tmp_path / ".model.new", 2.0)
    assert present(folder)
    assert int(read_model(folder).tensors["steps"]) == 1
    write(folder, 3.0)
    assert int(read_model(folder).tensors["steps"]) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# --------------------------------------------------------------------------------------------- refusals


def test_missing_files_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "none", "there is no such model folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no model.safetensors and no config.yaml")
    folder = write(tmp_path / "model")
    (folder / "config.yaml").unlink()
    assert "model.safetensors" not in refused(folder, "no config.yaml")


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["PAD_EVIL"],))


def test_pickles_are_refused_in_any_guise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAD_EVIL", str(tmp_path / "ran"))
    folder = write(tmp_path / "model")
    for content in (pickle.dumps(Evil(), 2), pickle.dumps([Evil()], 4), b"PK\x03\x04" + bytes(100)):
        (folder / "model.safetensors").write_bytes(content)
        refused(folder, "model.safetensors", "pickle")
    torch.save({"a": torch.ones(3)}, folder / "model.safetensors")
    refused(folder, "model.safetensors", "pickle")
    torch.save({"a": torch.ones(3)}, folder / "model.safetensors", _use_new_zipfile_serialization=False)
    refused(folder, "model.safetensors", "pickle")
    (folder / "model.safetensors").rename(folder / "model.pt")
    refused(folder, "holds model.pt but no model.safetensors")
    refused(folder / "model.pt", "pickle is never loaded")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "calibration.json"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model")
    (folder / name).rename(tmp_path / "elsewhere")
    for target in (tmp_path / "elsewhere", Path("../elsewhere")):
        (folder / name).symlink_to(target)
        refused(folder, name, "link out of the model folder")
        (folder / name).unlink()
    (folder / name).symlink_to("inside")
    (tmp_path / "elsewhere").rename(folder / "inside")
    read_model(folder)


def test_the_links_of_the_hub_cache_are_read_and_no_others(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    folder = write(repo / "snapshots" / "abc")
    (repo / "blobs").mkdir()
    (folder / "config.yaml").rename(repo / "blobs" / "123")
    (folder / "config.yaml").symlink_to("../../blobs/123")
    read_model(folder)
    (repo / "blobs").rename(tmp_path / "out")
    (repo / "blobs").symlink_to(tmp_path / "out")
    refused(folder, "config.yaml", "link out of")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "config.yaml").unlink()
    os.mkfifo(folder / "config.yaml")
    refused(folder, "config.yaml", "not a regular file")


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a safetensors file"),
        (b"GIF89a and so on", "refused"),
        (header({}, length=2_000_000), "oversized header: 2,000,000 bytes"),
        (header({}, length=(1 << 63) + 5), "oversized header"),
        (header({"a": F32}, length=500), "cut short"),
        (header({"a": F32}, b"1234"), "do not lie inside the file"),
        (header({"a": F32}, bytes(12)), "holds more than its tensors"),
        (header({"a": F32, "b": F32}, bytes(8)), "does not lie where"),
        (header({"a": {**F32, "data_offsets": [4, 12]}}, bytes(12)), "does not lie where"),
        (header({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)), "does not fill its place"),
        (header({"a": {**F32, "data_offsets": [-8, 0]}}, bytes(8)), "malformed shape or place"),
        (header({"a": {**F32, "shape": [2**62, 4]}}, bytes(8)), "does not fill its place"),
        (header({"a": {**F32, "shape": [True, 2]}}, bytes(8)), "malformed shape or place"),
        (header({"a": {**F32, "dtype": "F8_E4M3"}}, bytes(8)), "unknown type 'F8_E4M3'"),
        (header({"a": {**F32, "dtype": ["F32"]}}, bytes(8)), "unknown type"),
        (header({"a": {**F32, "more": 1}}, bytes(8)), "malformed entry"),
        (header({"a": [1]}, bytes(8)), "malformed entry"),
        (header(b'{"a": 1, "a": 2}'), "a key is given twice"),
        (header(b'{"a": NaN}'), "not JSON"),
        (header(b"{" + b"[" * 3), "not JSON"),
        (header(b'{"a":' + b"[" * 200_000), "not JSON"),
        (header({"a": F32}, struct.pack("<2f", 1.0, float("nan"))), "'a' holds NaN"),
        (header({"a": F32}, struct.pack("<2f", float("-inf"), 0.0)), "'a' holds NaN or infinite"),
        (header({"__metadata__": {"format": 3}, "a": F32}, bytes(8)), "not a safetensors file"),
    ],
)
def test_malformed_weights_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors", words)


def test_huge_files_are_refused_unread(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    for name in ("model.safetensors", "config.yaml", "calibration.json"):
        content = (folder / name).read_bytes()
        os.truncate(folder / name, 3 << 30)
        refused(folder, name, "too large: 3,221,225,472 bytes")
        (folder / name).write_bytes(content)
    read_model(folder)


def test_random_damage_never_gets_past_as_anything_but_a_refusal(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    random = Random(0)
    refusals: list[str] = []
    for name in ("model.safetensors", "config.yaml", "calibration.json"):
        good = (folder / name).read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            for _ in range(random.randint(1, 4)):
                place = random.randrange(len(bad))
                bad[place : place + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
            (folder / name).write_bytes(bad)
            try:
                read_model(folder)
            except PadError as error:
                refusals.append(str(error))
        (folder / name).write_bytes(good)
    assert len(refusals) > 100
    assert all(str(folder) in text and len(text.splitlines()) == 1 for text in refusals)


def test_malformed_configs_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    recipe = to_mapping(Config())

    def with_config(content: Any, *words: str) -> None:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (folder / "config.yaml").write_text(text)
        refused(folder, "config.yaml", *words)

    with_config("- 1\n", "not a mapping")
    with_config("a: [", "not plain YAML")
    with_config("a: !!python/object/apply:os.system [ls]", "not plain YAML")
    with_config("a: 2001-99-99", "not plain YAML")
    with_config("[" * 5000, "nested too deeply")
    with_config("a: &x [1]\nb: [*x, *x]\n", "alias")
    with_config({"recipe": recipe}, "no 'format: 2' line")
    with_config({"format": True, "recipe": recipe}, "no 'format: 2' line")
    with_config({"format": 3, "recipe": {"unheard_of": 1}}, "newer pad (format 3", "upgrade pad")
    with_config({"format": 1}, "no 'recipe'")
    with_config({"format": 1, "recipe": {**recipe, "latentdim": 3}}, "latentdim", "did you mean 'latent_dim'")
    with_config({"format": 1, "recipe": {**recipe, "size": 33}}, "'size' cannot be 33")
    (folder / "config.yaml").write_bytes(b"\xff\xfe\x00")
    refused(folder, "config.yaml", "not plain YAML")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "no list of 'scores'"),
        ('{"scores": 3}', "no list of 'scores'"),
        ('{"scores": [1, "2"]}', "not all finite"),
        ('{"scores": [true]}', "not all finite"),
        ('{"scores": [1e999]}', "not all finite"),
        ('{"scores": [NaN]}', "not JSON"),
        ('{"scores": [2, 1]}', "not sorted"),
        ("not json", "not JSON"),
    ],
)
def test_malformed_calibrations_are_refused(tmp_path: Path, content: str, words: str) -> None:
    folder = write(tmp_path / "model")
    (folder / "calibration.json").write_text(content)
    refused(folder, "calibration.json", words)


def test_check_tensors_names_what_does_not_fit() -> None:
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    expected = network.state_dict()
    good = {name: torch.zeros(t.shape) for name, t in expected.items()}
    check_tensors(good, expected)
    check_tensors(good, {name: tuple(t.shape) for name, t in expected.items()})

    def fault(tensors: dict[str, torch.Tensor], *words: str) -> None:
        with pytest.raises(PadError) as caught:
            check_tensors(tensors, expected, "m/model.safetensors")
        for word in ("m/model.safetensors does not fit its config", *words):
            assert word in str(caught.value)

    fault({**good, "0.weight": torch.zeros(3, 2)}, "'0.weight' has shape 3x2 where 2x3 fits")
    fault({**good, "0.bias": torch.zeros(2, dtype=torch.int64)}, "'0.bias' is int64 where float32 fits")
    fault({**good, "2.bias": torch.zeros(2)}, "unexpected '2.bias'")
    fault({k: v for k, v in good.items() if k != "1.bias"}, "missing '1.bias'")
    with pytest.raises(PadError, match="a floating-point type fits"):
        check_tensors({"a": torch.zeros(2, dtype=torch.int8)}, {"a": (2,)})


def test_the_fingerprint_of_a_model_is_taken_without_its_files_in_memory(tmp_path: Path) -> None:
    """Of a file that claims gigabytes: found by benchmarks/mutate_models.py."""
    (tmp_path / "config.yaml").write_bytes(b"size: 32\n")
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    found = fingerprint(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    whole = b"".join(
        f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes()
        for path in (weights, tmp_path / "config.yaml")
    )
    assert found == hashlib.sha256(whole).hexdigest()
