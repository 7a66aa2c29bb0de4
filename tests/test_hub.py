"""Finding, downloading and publishing models: the real hub client against a hub on 127.0.0.1."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TOKEN, Hub
from zoo_process import environment, refused, start, zoo

from pad.config import Config, to_mapping
from pad.errors import PadError
from pad.registry.publish import plan
from pad.store.hub import parse_hub_spec, resolve_model
from pad.store.model_folder import FILES, read_model, write_model


def make_model(folder: Path, size: int = 200_000, **recipe: Any) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(size // 4, generator=generator)}
    config = {"recipe": to_mapping(Config(**recipe)), "data": {"source": "fashion-mnist:9"}}
    write_model(folder, tensors, config, {"scores": [0.5, 1.0]}, "---\nlicense: mit\n---\n# Boots\n")
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


def same_bytes(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


# ---------------------------------------------------------------------------------------------- finding


def test_run_and_model_folders(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "run" / "model", size=400)
    assert resolve_model(tmp_path / "run") == folder
    assert resolve_model(str(folder)) == folder
    folder.rename(tmp_path / "run" / ".model.old")  # its writer was killed between two renames
    assert resolve_model(tmp_path / "run") == folder
    assert read_model(folder).calibration


def test_mistyped_models_are_told_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "zoo" / "fashion-mnist" / "bag", size=400)
    make_model(tmp_path / "runs" / "leather" / "model", size=400)
    (tmp_path / "runs" / "fresh" / "checkpoints").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")  # the source tree has a folder zoo/fashion-mnist/bag

    def fault(spec: str) -> str:
        with pytest.raises(PadError) as caught:
            resolve_model(spec, tmp_path / "zoo")
        return str(caught.value)

    assert "did you mean 'fashion-mnist/bag'?" in fault("zoo:fashion-mnist/bug")
    assert "did you mean 'fashion-mnist/bag'?" in fault("zoo:bag")
    assert "did you mean 'zoo:fashion-mnist/bag'?" in fault("zoo/fashion-mnist/bag")
    assert "see `pad zoo list`" in fault("zoo:qqq")
    assert "no model '../x'" in fault("zoo:../x")
    assert f"did you mean '{tmp_path}/runs/leather'?" in fault(f"{tmp_path}/runs/lether")
    assert "not saved a model yet" in fault(f"{tmp_path}/runs/fresh")
    assert "holds no model (model.safetensors)" in fault(f"{tmp_path}/photos")
    assert "name its folder" in fault(f"{tmp_path}/runs/leather/model/model.safetensors")
    for spec in (
        "hf-hub:x",
        "hf-hub:a/b/c",
        "hf-hub:../x",
        "hf-hub:a/b@",
        "hf-hub:a/b@../../c",
        "hf-hub:a/b c",
    ):
        assert "not of the form hf-hub:ORG/REPO[@REVISION]" in fault(spec)
    assert parse_hub_spec("hf-hub:org/my.model-2@v1.0") == ("org/my.model-2", "v1.0")


# ------------------------------------------------------------------------------------------- downloading


def test_download_then_offline(hub: Hub, model: Path, tmp_path: Path) -> None:
    commit = hub.add("org/boots", model)
    hub.repositories["org/boots"].commit({"evil.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"})
    env = environment(hub, tmp_path / "home", HF_TOKEN=TOKEN)
    status, out, err = zoo("download", "hf-hub:org/boots", f"hf-hub:org/boots@{commit}", env=env)
    assert status == 0, err
    folders = [Path(line.split()[-1]) for line in out.splitlines()]
    assert [folder.is_relative_to(tmp_path / "home") for folder in folders] == [True, True]
    assert all(same_bytes(model, folder) for folder in folders)
    assert sorted(p.name for p in folders[0].iterdir()) == sorted(FILES)  # nothing but the allow list
    # The token went to the hub, and not to the storage that it redirects to.
    sent = {path.startswith("/storage"): "authorization" in headers for _, path, headers in hub.requests}
    assert sent == {False: True, True: False}

    before = len(hub.requests)
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert zoo("download", "hf-hub:org/boots", env=offline)[0] == 0
    assert len(hub.requests) == before
    assert "HF_HUB_OFFLINE is set and org/none is not in" in refused(
        "download", "hf-hub:org/none", env=offline
    )


def test_a_revision_is_taken_as_pinned(hub: Hub, model: Path, tmp_path: Path) -> None:
    first = hub.add("org/boots", model)
    hub.repositories["org/boots"].refs["v1"] = first
    hub.repositories["org/boots"].commit({"README.md": b"newer"})
    env = environment(hub, tmp_path)
    status, out, _ = zoo("download", "hf-hub:org/boots@v1", "hf-hub:org/boots", env=env)
    old, new = (Path(line.split()[-1]) for line in out.splitlines())
    assert status == 0
    assert same_bytes(model, old)
    assert (new / "README.md").read_bytes() == b"newer"
    message = refused("download", "hf-hub:org/boots@v2", env=env)
    assert f"org/boots has no revision 'v2' at {hub.url}" in message


def test_a_renamed_repository_is_followed(hub: Hub, model: Path, tmp_path: Path) -> None:
    commit = hub.add("org/new", model)
    hub.add("org/old", model)
    hub.repositories["org/old"] = hub.repositories["org/new"]
    hub.renamed["org/old"] = "org/new"
    status, out, err = zoo("download", f"hf-hub:org/old@{commit}", env=environment(hub, tmp_path))
    assert status == 0, err
    assert same_bytes(model, Path(out.split()[-1]))


def test_a_cut_connection_is_resumed(hub: Hub, tmp_path: Path) -> None:
    large = make_model(tmp_path / "large", size=32 << 20)
    hub.add("org/boots", large)
    hub.cuts = 1
    status, out, err = zoo("download", "hf-hub:org/boots", env=environment(hub, tmp_path / "home"))
    assert status == 0, err
    assert same_bytes(large, Path(out.split()[-1]))
    ranges = [headers.get("range") for m, path, headers in hub.requests if m == "GET" and "/storage" in path]
    assert ranges in (
        [None, f"bytes={10 << 20}-"],  # the client keeps whole blocks of 10 MiB
        [None, f"bytes={(large / 'model.safetensors').stat().st_size // 2}-"],  # older ones all that came
    )


def test_a_killed_download_goes_on(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("org/boots", model)
    hub.barrier = threading.Barrier(2)  # the storage does not answer
    env = environment(hub, tmp_path)
    command = start("download", "hf-hub:org/boots", env=env)
    small = {"config.yaml", "calibration.json", "README.md"}
    until = time.monotonic() + 60
    while {
        p.name for p in tmp_path.glob("hub/models--*/snapshots/*/*")
    } != small or not hub.barrier.n_waiting:
        assert time.monotonic() < until
        time.sleep(0.02)
    command.kill()
    hub.barrier.abort()
    hub.barrier = None
    hub.requests.clear()
    status, out, err = zoo("download", "hf-hub:org/boots", env=env)
    assert status == 0, err
    assert same_bytes(model, Path(out.split()[-1]))
    assert not any(hub.paths("GET", f"/{name}") for name in small)  # what was there is not fetched again


def test_wrong_bytes_are_refused_and_mended(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("org/boots", model)
    env = environment(hub, tmp_path)
    hub.corrupt = 2
    message = refused("download", "hf-hub:org/boots", env=env)
    assert "hf-hub:org/boots: model.safetensors is not the file that the hub announced" in message
    assert "refused" in message
    hub.corrupt = 0  # the hub is well again; the wrong bytes lie in the cache
    status, out, err = zoo("download", "hf-hub:org/boots", env=env)
    assert status == 0, err
    folder = Path(out.split()[-1])
    assert same_bytes(model, folder)
    (folder / "config.yaml").resolve().write_text("format: 1\n")  # the disk, or somebody, changes the cache
    assert "config.yaml is not the file" in refused(
        "download", "hf-hub:org/boots", env={**env, "HF_HUB_OFFLINE": "1"}
    )
    assert zoo("download", "hf-hub:org/boots", env=env)[0] == 0
    assert same_bytes(model, folder)


def test_refusals_of_the_hub(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("org/gated", model, gated=True)
    hub.add("org/private", model, private=True)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README.md").write_text("nothing else")
    hub.add("org/bare", tmp_path / "bare")
    env = environment(hub, tmp_path / "home")
    wrong = environment(hub, tmp_path / "other", HF_TOKEN="hf_" + "0" * 34)
    message = refused("download", "hf-hub:org/none", env=env)
    assert f"there is no model org/none at {hub.url} (if it is private, set HF_TOKEN)" in message
    assert "there is no model org/private" in refused("download", "hf-hub:org/private", env=env)
    assert zoo("download", "hf-hub:org/private", env={**env, "HF_TOKEN": TOKEN})[0] == 0
    assert "org/gated is gated: ask for access" in refused("download", "hf-hub:org/gated", env=env)
    assert "HF_TOKEN is valid" in refused("download", "hf-hub:org/private@main", env=wrong)
    assert "org/bare holds no model: it has no model.safetensors" in refused(
        "download", "hf-hub:org/bare", env=env
    )


def test_no_network(tmp_path: Path) -> None:
    env = environment("http://user:secret@127.0.0.1:9", tmp_path)
    message = refused("download", "hf-hub:org/boots", env=env)
    assert "cannot reach http://127.0.0.1:9 to download org/boots" in message
    assert "secret" not in message


def test_no_space(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("org/boots", model)

    # The kernel refuses to let a file grow, as it does on a full disk.
    message = refused("download", "hf-hub:org/boots", env=environment(hub, tmp_path), file_limit=50_000)
    assert "no space left for org/boots in" in message
    assert "HF_HOME" in message


def test_several_processes_at_once(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("org/boots", model)
    env = environment(hub, tmp_path)
    for command in [start("download", "hf-hub:org/boots", env=env) for _ in range(3)]:
        status, out, err = command.result()
        assert status == 0, err
        assert same_bytes(model, Path(out.split()[-1]))
    assert len(hub.paths("GET", "/storage")) == 1


# -------------------------------------------------------------------------------------------- publishing


def test_publish_then_download_on_a_clean_cache(hub: Hub, model: Path, tmp_path: Path) -> None:
    env = environment(hub, tmp_path / "a", HF_TOKEN=TOKEN)
    status, out, err = zoo("publish", str(model), "org/boots", "--private", env=env)
    assert status == 0, err
    repository = hub.repositories["org/boots"]
    assert repository.private
    assert out.splitlines()[-1] == f"published   hf-hub:org/boots@{repository.refs['main']}"
    assert hub.paths("PUT", "/upload")
    clean = environment(hub, tmp_path / "b", HF_TOKEN=TOKEN)
    status, out, err = zoo("download", out.split()[-1], env=clean)
    assert status == 0, err
    assert same_bytes(model, Path(out.split()[-1]))
    # Again: the repository is there, and nothing has changed in the large file.
    uploads = len(hub.paths("PUT", "/upload"))
    assert zoo("publish", str(model), "org/boots", env=env)[0] == 0
    assert len(hub.paths("PUT", "/upload")) == uploads


def test_dry_run_shows_and_sends_nothing(hub: Hub, model: Path, tmp_path: Path) -> None:
    env = environment(hub, tmp_path)
    status, out, err = zoo("publish", str(model), "org/boots", "--dry-run", env=env)
    assert status == 0, err
    assert not hub.requests
    for name in FILES:
        assert f"{name}  {(model / name).stat().st_size:,} bytes" in out
    assert f"{hub.url}/org/boots (public, created if it is not there)" in out
    assert "dry run: nothing was sent" in out


def test_publishing_is_refused_clearly(hub: Hub, model: Path, tmp_path: Path) -> None:
    env = environment(hub, tmp_path, HF_TOKEN=TOKEN)
    no_token = environment(hub, tmp_path)
    wrong = {**env, "HF_TOKEN": "hf_" + "1" * 34}
    assert "needs an access token: set HF_TOKEN" in refused("publish", str(model), "org/boots", env=no_token)
    message = refused("publish", str(model), "org/boots", env=wrong)
    assert f"{hub.url} refuses to publish org/boots" in message
    assert "1111" not in message
    message = refused("publish", str(model), "strangers/boots", env=env)
    assert "You don't have the rights" in message
    assert "HF_HUB_OFFLINE is set" in refused(
        "publish", str(model), "org/b", env={**env, "HF_HUB_OFFLINE": "1"}
    )
    assert "not of the form" in refused("publish", str(model), "boots", env=env)
    assert "cannot publish org/b, the network" in refused(
        "publish", str(model), "org/b", env={**env, "HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert not hub.repositories


def test_local_paths_and_secrets_stay_here(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_model(model).config
    config["data"] = {
        "source": "/home/me/photos/normal",
        "also": ["~/x/y", "C:\\Users\\me\\z", "a/b", "https://h/p/q"],
    }
    config["training"] = {"command": "train.py --data /home/me/in --out=/tmp/me/run --set size=32"}
    card = "# M\nBy `train.py --data /home/me/in`, see https://example.org/a/b and [c](c/d.png), 3/4.\n"
    folder = tmp_path / "model"
    write_model(folder, read_model(model).tensors, config, None, card)
    (folder / "curve.png").write_bytes(b"png")
    (folder / "notes.txt").write_text("private")
    (folder / "secret.png").symlink_to("/etc/hostname")
    publication = plan(folder, "org/boots")
    assert sorted(publication.files) == ["README.md", "config.yaml", "curve.png", "model.safetensors"]
    write_model(tmp_path / "back", read_model(model).tensors, config, None, "")
    (tmp_path / "back" / "config.yaml").write_bytes(publication.files["config.yaml"])
    found = read_model(tmp_path / "back").config
    assert found["data"] == {"source": "normal", "also": ["y", "z", "a/b", "https://h/p/q"]}
    assert found["training"]["command"] == "train.py --data in --out=run --set size=32"
    assert publication.files["README.md"].decode() == card.replace("/home/me/", "")
    assert publication.notes == ("config.yaml: local folders shortened", "README.md: local folders shortened")
    assert (folder / "config.yaml").read_bytes() != publication.files[
        "config.yaml"
    ]  # the folder is as it was

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (folder / "README.md").write_text(f"my token is {TOKEN}")
    with pytest.raises(PadError, match=r"README.md holds an access token") as caught:
        plan(folder, "org/boots")
    assert TOKEN not in str(caught.value)


def test_unsafe_and_unusable_models_are_not_published(model: Path, tmp_path: Path) -> None:
    weighted = make_model(tmp_path / "vgg", size=400, backbone="vgg19", backbone_weights="/home/me/vgg19.pth")
    with pytest.raises(PadError, match=r"needs the backbone weights /home/me/vgg19\.pth"):
        plan(weighted, "org/boots")
    broken = make_model(tmp_path / "broken", size=400)
    (broken / "model.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(PadError, match="pickle"):
        plan(broken, "org/boots")
    bare = make_model(tmp_path / "bare", size=400)
    (bare / "README.md").unlink()
    with pytest.raises(PadError, match="published with its card"):
        plan(bare, "org/boots")
    with pytest.raises(PadError, match="without a revision"):
        plan(model, "org/boots@main")
