"""A hub that lies, in every way of tests/lies.py: one line, exit 2, nothing written outside the cache."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import TOKEN, Handler, Hub
from lies import LIES, Lie
from test_hub import make_model
from zoo_process import environment, start

from pad.errors import PadError
from pad.registry.publish import plan

LATEST = 30  # seconds after which a command must have ended whose limit is 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model", size=20_000)


@pytest.fixture
def hub(tmp_path: Path, model: Path) -> Iterator[Hub]:
    with Hub() as server:
        server.add("org/boots", model)
        server.outside = str(tmp_path / "outside")
        yield server


def everything(folder: Path) -> dict[str, Any]:
    """What lies below a folder, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", LIES)
def test_a_hub_that_lies(name: str, hub: Hub, tmp_path: Path) -> None:
    lie: Lie = LIES[name]
    hub.lie = lie
    home, outside = tmp_path / "home", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    before = everything(outside)
    env = environment(hub, home, HF_TOKEN=TOKEN, PAD_HUB_SECONDS="2", HOME=str(outside))
    begun = time.monotonic()
    command = start("download", "hf-hub:org/boots", env=env)
    status, out, err = command.result()
    assert time.monotonic() - begun < LATEST

    assert everything(outside) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "outside"]
    for path in (home / "hub").rglob("*"):
        parts = path.relative_to(home / "hub").parts
        assert parts[0] in (".locks", "models--org--boots")
        if len(parts) > 2:
            digest = r"[0-9a-f]{40}([0-9a-f]{24})?(\.lock|\.incomplete)?"
            assert re.fullmatch(f"main|{digest}", parts[2] if parts[0] != ".locks" else parts[-1]), path
    assert command.peak() < 1 << 30
    assert not re.search(r"[^\n -~…]", out + err), (out, err)  # no control character
    if lie.harmless:
        assert status == 0
        return
    lines = err.splitlines()
    assert (status, len(lines)) == (2, 1), (out, err)
    assert lines[0].startswith("pad: ")
    assert lie.words in lines[0]
    # The hub is well again, and so is the command: nothing of the lie was kept.
    hub.lie = None
    status, out, err = start("download", "hf-hub:org/boots", env={**env, "PAD_HUB_SECONDS": "60"}).result()
    assert status == 0, err


def test_there_are_forty_lies_and_the_large_model_is_not_fetched(hub: Hub, tmp_path: Path) -> None:
    assert len(LIES) >= 40
    hub.lie = LIES["weights of 5 GB"]
    assert start("download", "hf-hub:org/boots", env=environment(hub, tmp_path)).result()[0] == 2
    assert not hub.paths("GET", "/")


def test_the_cache_is_used_while_the_hub_is_silent(hub: Hub, tmp_path: Path) -> None:
    env = environment(hub, tmp_path, PAD_HUB_SECONDS="2")
    folder = start("download", "hf-hub:org/boots", env=env).result()[1]
    hub.lie = LIES["silence"]
    status, out, err = start("download", "hf-hub:org/boots", env=env).result()
    assert (status, out) == (0, folder), err


def test_the_time_limit_is_a_number(hub: Hub, tmp_path: Path) -> None:
    for seconds in ("soon", "-1", "nan", "0"):
        env = environment(hub, tmp_path, PAD_HUB_SECONDS=seconds)
        status, _, err = start("download", "hf-hub:org/boots", env=env).result()
        assert (status, len(err.splitlines())) == (2, 1)
        assert f"PAD_HUB_SECONDS takes a number of seconds, not '{seconds}'" in err


def test_a_revision_is_no_path(hub: Hub, tmp_path: Path) -> None:
    for revision in ("/etc/x", "../x", "a/../../x"):
        status, _, err = start(
            "download", f"hf-hub:org/boots@{revision}", env=environment(hub, tmp_path)
        ).result()
        assert status == 2
        assert "not of the form" in err
    assert not hub.requests


# ------------------------------------------------------------------------------------------- publishing


UPLOADS: dict[str, Any] = {
    "no JSON": b"<html>",
    "a list": b"[]",
    "nothing that is due": b"{}",
    "nested deeply": b"[" * 100_000,
    "a commit that is a path": b'{"commitUrl": "http://h/org/boots/commit/x", "commitOid": "../../x"}',
    "a commit of control characters": b'{"commitUrl": "http://h/o/b/commit/x", "commitOid": "\\u001b[2J"}',
}


@pytest.mark.parametrize("name", UPLOADS)
def test_a_hub_that_answers_nonsense_when_published_to(
    name: str, hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(handler: Handler, **_: str) -> None:
        handler.answer(UPLOADS[name])

    routes = [(m, p, answer if "/commit/" in p else f) for m, p, f in hub_server.ROUTES]
    monkeypatch.setattr(hub_server, "ROUTES", routes)
    env = environment(hub, tmp_path, HF_TOKEN=TOKEN)
    status, out, err = start("publish", str(model), "org/new", env=env).result()
    lines = [line for line in err.splitlines() if line.startswith("pad: ")]
    assert (status, len(lines)) == (2, 1), (out, err)
    assert not re.search(r"[^\n -~…]", out + err)


def test_publishing_ends_where_the_hub_never_answers(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = threading.Event()
    routes = [(m, p, (lambda h: asleep.wait(60)) if "create" in p else f) for m, p, f in hub_server.ROUTES]
    monkeypatch.setattr(hub_server, "ROUTES", routes)
    env = environment(hub, tmp_path, HF_TOKEN=TOKEN, PAD_HUB_SECONDS="2")
    begun = time.monotonic()
    status, _, err = start("publish", str(model), "org/new", env=env).result()
    asleep.set()
    assert time.monotonic() - begun < LATEST
    assert status == 2
    assert "has not taken org/new within" in err


# ------------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("name", ["README.md", "calibration.json", "config.yaml", "model.safetensors"])
def test_nothing_that_a_link_points_to_is_published(name: str, model: Path, tmp_path: Path) -> None:
    folder, secret = tmp_path / "model", tmp_path / "id_rsa"
    shutil.copytree(model, folder)
    secret.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    with pytest.raises(PadError, match=f"{name} is a link out of the model folder"):
        plan(folder, "org/boots")
