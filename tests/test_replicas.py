"""`pad serve --ray`: the service of one process, from several."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from serve_process import MODEL, TOKEN, Server, close_to, serve_without, serving

import pad
from pad.commands.parser import main
from pad.errors import PadError
from pad.serving.request import ServeRequest
from pad.store.hub import resolve_model

TELLING = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def session() -> Iterator[Path]:
    """Where Ray keeps its logs, and its sockets, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    yield folder
    shutil.rmtree(folder)


def replicas(server: Server) -> list[int]:
    """Processes that serve, below that of the command, by what Linux tells of them."""
    below, parents, names = {server.process.pid}, {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:  # it has ended
            continue
    while new := {child for child, parent in parents.items() if parent in below} - below:
        below |= new
    return [found for found in below if names.get(found, "").startswith("ray::ServeReplica")]


def test_two_replicas_are_one_service(fashion: Path, session: Path) -> None:
    pytest.importorskip("ray.serve", reason="needs the extra pad-anomaly[ray]")
    pictures = sorted((fashion / "test" / "bag").glob("*.png"))[:10]
    files = [(path.name, path.read_bytes()) for path in pictures]
    words = ("--ray", "--replicas", 2, "--max-megabytes", 1, "--max-images", 20, "--max-queue", 20)
    with serving(*words, token=TOKEN, OMP_NUM_THREADS="2", RAY_TMPDIR=str(session)) as server:
        assert server.score(*files).status == 401
        assert server.score(("x.png", b"\0" * 1_100_000), **TELLING).status == 413
        found = server.score(*files, ("bad.png", b"no picture"), **TELLING).body["results"]
        close_to(found[:-1], pictures, pad.load(MODEL, device="cpu"))
        assert found[-1]["error"]
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(server.score, *files * 2, **TELLING) for _ in range(24)]
            statuses = {answer.result().status for answer in asked}
        assert statuses == {200, 429}

        if sys.platform == "linux":  # the other one takes over
            assert len(replicas(server)) == 2
            os.kill(replicas(server)[0], signal.SIGKILL)
        for number in range(20):
            answer = server.score(files[number % 10], **TELLING)
            assert answer.body["results"][0]["score"] == pytest.approx(found[number % 10]["score"], rel=2e-2)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            last = pool.submit(server.score, *files, **TELLING)
            while "pad_waiting_images 0.0" in server.ask("GET", "/metrics").body and not last.done():
                pass
            server.process.send_signal(signal.SIGTERM)
            assert len(last.result().body["results"]) == 10
        assert server.process.wait(60) == 128 + signal.SIGTERM
        assert server.process.stderr is not None
        said = server.process.stderr.read()
    assert "Traceback" not in said
    logs = [path for path in session.rglob("*") if path.is_file()]
    assert any("replica" in path.name for path in logs)
    assert not [path for path in logs if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in said


def test_what_else_a_cluster_serves_is_left_alone(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve", reason="needs the extra pad-anomaly[ray]")
    from ray import serve

    from pad.cluster.start import cluster
    from pad.serving.replicas import serve_replicas

    class Other:
        def __call__(self) -> str:
            return "here"

    monkeypatch.setenv("RAY_TMPDIR", str(session))
    request = ServeRequest(MODEL, port=0, ray="", device="cpu")
    detector = pad.load(MODEL, device="cpu")
    with cluster(""):
        serve.start(proxy_location="Disabled")
        handle = serve.run(serve.deployment(Other).bind(), name="another", route_prefix=None)
        with pytest.raises(PadError, match="the cluster serves 'another' by Ray Serve already"):
            serve_replicas(detector, resolve_model(MODEL), request, None, lambda *_: None)
        assert handle.remote().result(timeout_s=30) == "here"
        with pytest.raises(PadError, match="--replicas 99: the cluster has room for"):
            serve_replicas(
                detector, resolve_model(MODEL), replace(request, replicas=99), None, lambda *_: None
            )
        serve.shutdown()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--replicas", "2"], "--replicas goes with --ray"),
        (["--ray", "127.0.0.1:9", "--port", "0"], "--ray ADDRESS takes a --port"),
        (["--ray", "127.0.0.1:9"], "--ray 127.0.0.1:9: [Errno 111] Connection refused"),
        (["--ray", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1:8000"),
    ],
)
def test_what_a_cluster_cannot_do_is_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray.serve", reason="needs the extra pad-anomaly[ray]")
    assert main(["serve", MODEL, "--device", "cpu", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_missing_extra_is_named() -> None:
    done = serve_without("ray", "--ray")
    assert done.returncode == 2
    assert done.stderr == "pad: ray is not installed: python -m pip install 'pad-anomaly[ray,serve]'\n"
