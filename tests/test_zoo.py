"""The zoo: its index, its table, and that a model scores as its record says, here and after a download."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hub_server import Hub
from PIL import Image
from sklearn.datasets import load_digits
from zoo_process import environment, main, refused, zoo

import pad
from pad.config import Config, to_mapping
from pad.errors import PadError
from pad.registry.verify import verify_model, write_record
from pad.remote.cache import sha256
from pad.store.hub import list_models, resolve_model, zoo_names
from pad.store.index import add_entry, read_index
from pad.store.model_folder import write_model

SUMMARY = {
    "title": "Zeros",
    "dataset": "digits:0",
    "images": 1234,
    "roc_auc": {"value": 0.97654, "low": 0.95, "high": 0.99},
    "licence": "BSD-3-Clause",
}
NAME = "digits/zero"


def real_model(folder: Path) -> Path:
    """A model that scores, with three sample images of real digits and their recorded scores."""
    from pad.networks import build_networks

    config = Config(
        size=16,
        similarity="l1",  # needs no backbone, which would take seconds to load
        latent_dim=4,
        generator_channels=(8, 8, 8),
        encoder_channels=(8, 8, 8),
        critic_channels=(8, 8, 8),
        latent_critic_channels=(8,),
    )
    torch.manual_seed(0)
    tensors = build_networks(config).state_dict()
    card = "---\nlicense: bsd-3-clause\n---\n# Zeros\n\nMeasured.\n"
    write_model(folder, tensors, {"recipe": to_mapping(config), "backbone": {}}, {"scores": [0.1, 0.2]}, card)
    digits = load_digits()
    names = []
    for index in (0, 1, 2):
        name = f"samples/digit-{digits.target[index]}.png"
        (folder / "samples").mkdir(exist_ok=True)
        Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).save(folder / name)
        names.append(name)
    scores = pad.load(folder, device="cpu").score([folder / name for name in names])
    assert len(set(scores.tolist())) == 3
    write_record(folder, dict(zip(names, scores.tolist(), strict=True)))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    add_entry(NAME, real_model(root / "digits" / "zero"), SUMMARY, root)
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "zoo"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


# ------------------------------------------------------------------------------------------- the index


def test_the_index_is_written_from_the_model(root: Path) -> None:
    model = read_index(root)[NAME]
    assert (model.size, model.channels, model.images, model.licence) == (16, 1, 1234, "BSD-3-Clause")
    assert model.roc_auc == SUMMARY["roc_auc"]
    folder = root / model.folder
    assert set(model.files) == {
        *("model.safetensors", "config.yaml", "calibration.json", "README.md", "verify.json"),
        *("samples/digit-0.png", "samples/digit-1.png", "samples/digit-2.png"),
    }
    for name, digest in model.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest == sha256(folder / name)


def test_entries_are_replaced_and_keep_where_they_are_published(root: Path) -> None:
    remote = {"repo": "org/zeros", "revision": "a" * 40}
    add_entry(NAME, root / "digits" / "zero", SUMMARY, root, remote)
    add_entry("a/first", root / "digits" / "zero", {**SUMMARY, "roc_auc": None}, root)
    add_entry(NAME, root / "digits" / "zero", {**SUMMARY, "images": 5}, root)
    index = read_index(root)
    assert list(index) == ["a/first", NAME]
    assert (index[NAME].images, index[NAME].remote) == (5, remote)
    assert index["a/first"].remote is None
    assert not [p for p in root.iterdir() if p.name.startswith(".")]


def test_an_incomplete_summary_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(PadError, match="lacks title, licence"):
        add_entry(NAME, root / "digits" / "zero", {"dataset": "d", "images": 3}, root)
    with pytest.raises(PadError, match="not inside the zoo"):
        add_entry(NAME, tmp_path, SUMMARY, root)
    with pytest.raises(PadError, match="is not a model folder"):
        add_entry(NAME, root / "digits", SUMMARY, root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../x"}, "needs a name"),
        ({"folder": "../x"}, "leaves the zoo"),
        ({"folder": "/etc"}, "leaves the zoo"),
        ({"files": {"../x": "0" * 64}}, "leaves the zoo"),
        ({"files": {"C:\\x": "0" * 64}}, "leaves the zoo"),
        ({"files": {"x": "12"}}, "sha256"),
        ({"remote": {"repo": "org/x", "revision": "main"}}, "a commit of 40 digits"),
        ({"remote": {"repo": "../x", "revision": "0" * 40}}, "a repo"),
        ({"licence": None, "license": "x"}, "license"),
    ],
)
def test_a_malformed_index_is_refused(root: Path, change: dict[str, Any], words: str) -> None:
    path = root / "index.yaml"
    content = yaml.safe_load(path.read_text())
    content["models"][0] |= change
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(PadError, match=words) as caught:
        read_index(root)
    assert str(path) in str(caught.value)


def test_an_index_of_a_newer_format_is_refused(root: Path) -> None:
    (root / "index.yaml").write_text("format: 2\nmodels: []\n")
    with pytest.raises(PadError, match="upgrade pad"):
        read_index(root)


# ------------------------------------------------------------------------------- list, show, verify


def test_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "digits" / "zero", root / "new" / "one")
    head, *rows = run(capsys, "list", "--root", str(root)).splitlines()
    assert head.split() == ["NAME", "SIZE", "IMAGES", "ROC", "AUC", "LICENCE", "WHERE"]
    assert rows[0].split() == [NAME, "16x16x1", "1,234", "0.977", "BSD-3-Clause", "local"]
    assert rows[1].split()[0] == "new/one"
    assert "not in the index" in rows[1]
    assert head.index("WHERE") == rows[0].index("local") == rows[1].index("local")


def test_show(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "show", f"zoo:{NAME}", "--root", str(root))
    for words in (
        "0.977 (95 % interval 0.950 to 0.990)",
        "16x16 pixels, grey",
        str(root / "digits" / "zero"),
    ):
        assert words in text
    assert text.endswith("# Zeros\n\nMeasured.\n")
    assert "license:" not in text  # the front matter is for the hub


def test_show_finds_the_one_meant(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(capsys, "show", NAME, "--root", str(root))
    assert run(capsys, "show", "zero", "--root", str(root)) == whole
    assert "use       zoo:fashion-mnist/ankle-boot" in run(capsys, "show", "ankle-boot")
    shutil.copytree(root / "digits" / "zero", root / "letters" / "zero")
    assert main(["show", "zero", "--root", str(root)]) == 2
    assert capsys.readouterr().err == "pad: the zoo has several models 'zero': digits/zero, letters/zero\n"
    for name in ("", "ero", "../zero", "digits"):
        assert main(["show", name, "--root", str(root)]) == 2
        assert capsys.readouterr().err.startswith(f"pad: the zoo has no model '{name}'")


def test_the_installed_zoo_is_consistent() -> None:
    assert list_models() == [f"zoo:{name}" for name in zoo_names()]
    for name in read_index():
        assert resolve_model(f"zoo:{name}").name


def test_verify(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "verify", "--root", str(root))
    assert text.startswith(f"{NAME}: 8 files as in the index, 3 images score as recorded (within ")
    assert run(capsys, "verify", NAME, "--root", str(root)) == text


def test_verify_tells_what_is_wrong(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "digits" / "zero"

    def fault(refresh: bool = False) -> str:
        if refresh:  # as a builder who records a model without looking at it
            add_entry(NAME, folder, SUMMARY, root)
        with pytest.raises(PadError) as caught:
            verify_model(NAME, root)
        return str(caught.value)

    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text("changed")
    assert "README.md is not the file of the index" in fault()
    assert main(["verify", "--root", str(root)]) == 2
    printed = capsys.readouterr()
    assert f"{NAME}: FAILED: " in printed.out
    assert printed.err == f"pad: 1 of 1 models failed verification: {NAME}\n"
    (folder / "README.md").unlink()
    assert "README.md is missing" in fault()
    (folder / "README.md").write_text(card)

    record = json.loads((folder / "verify.json").read_text())
    wrong = {**record["scores"], "samples/digit-1.png": record["scores"]["samples/digit-1.png"] * 1.1}
    write_record(folder, wrong)
    assert "samples/digit-1.png scores" in fault(refresh=True)
    for bad in (
        {"scores": wrong},
        {"tolerance": 9, "scores": wrong},
        {"tolerance": 0, "scores": {"../x.png": 1.0}},
    ):
        (folder / "verify.json").write_text(json.dumps(bad))
        assert "verify.json is not of the form" in fault(refresh=True)
    (folder / "verify.json").unlink()
    add_entry(NAME, folder, SUMMARY, root)
    assert "loads, no verify.json to score" in verify_model(NAME, root)

    (folder / "model.safetensors").write_bytes(b"\x80\x04not weights")
    assert "model.safetensors is not the file of the index" in fault()


def test_mistyped_names(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "download", "verify"):
        assert main([command, "digits/zerro", "--root", str(root)]) == 2
        assert (
            capsys.readouterr().err
            == "pad: the zoo has no model 'digits/zerro'; did you mean 'digits/zero'?\n"
        )


# -------------------------------------------------------------------------- published zoo models


def published(hub: Hub, root: Path) -> tuple[Path, str]:
    """The zoo with its model taken to the hub: only the index is left here."""
    folder = root / "digits" / "zero"
    commit = hub.add("org/zeros", folder)
    add_entry(NAME, folder, SUMMARY, root, {"repo": "org/zeros", "revision": commit})
    original = Path(shutil.move(folder, root.parent / "original"))
    hub.repositories["org/zeros"].commit({"README.md": b"a newer card", "evil.py": b""})
    return original, commit


def test_a_remote_model_is_downloaded_pinned_and_scores_the_same(
    hub: Hub, root: Path, tmp_path: Path
) -> None:
    original, commit = published(hub, root)
    env = environment(hub, tmp_path / "home")
    at = ("--root", str(root))
    status, out, _ = zoo("list", *at, env=env)
    assert status == 0
    assert out.splitlines()[1].endswith("remote")
    assert "skipped, not on this machine" in zoo("verify", *at, env=env)[1]
    assert not hub.requests
    status, out, err = zoo("download", NAME, *at, env=env)
    assert status == 0, err
    folder = Path(out.split()[-1])
    assert folder.name == commit
    for path in original.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(original)).read_bytes() == path.read_bytes()
    assert not (folder / "evil.py").exists()
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    status, out, err = zoo("verify", NAME, *at, env=offline)
    assert status == 0, err
    assert "files as in the index, 3 images score as recorded (within 0.0e+00)" in out


def test_a_remote_model_with_another_checksum_is_refused(hub: Hub, root: Path, tmp_path: Path) -> None:
    published(hub, root)
    path = root / "index.yaml"
    digest = read_index(root)[NAME].files["model.safetensors"]
    path.write_text(path.read_text().replace(digest, "f" * 64))
    message = refused("download", NAME, "--root", str(root), env=environment(hub, tmp_path / "home"))
    assert f"model.safetensors has sha256 {digest[:12]}…, the index says ffffffffffff…; refused" in message
