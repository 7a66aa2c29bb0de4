"""`pad serve` as a process of its own, and how clients ask it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pad.detector import Detector

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TOKEN = "a-token-of-the-tests-0123456789"
MODEL = "zoo:fashion-mnist/ankle-boot"


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]


class Server:
    """A running `pad serve`."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        kind = response.headers.get("content-type", "")
        return Answer(response.status, json.loads(content) if "json" in kind else content.decode(),
                      {k.lower(): v for k, v in response.headers.items()})  # fmt: skip

    def score(self, *files: tuple[str, bytes], path: str = "/v1/score", **headers: str) -> Answer:
        kind, body = multipart(*files)
        return self.ask("POST", path, body, {"Content-Type": kind, **headers})

    def score_json(self, content: Any, path: str = "/v1/score") -> Answer:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.ask("POST", path, body, {"Content-Type": "application/json"})


def multipart(*files: tuple[str, bytes]) -> tuple[str, bytes]:
    """Content type and body of a form with the field `files`."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode()
        + b'"\r\nContent-Type: image/png\r\n\r\n' + content + b"\r\n"
        for name, content in files
    ]  # fmt: skip
    return "multipart/form-data; boundary=edge", b"".join(parts) + b"--edge--\r\n"


@contextmanager
def serving(*words: object, token: str = "", **environment: str) -> Iterator[Server]:
    """`pad serve` on a free port."""
    environment = {**ENVIRONMENT, **environment, **({"PAD_SERVE_TOKEN": token} if token else {})}
    command = [
        sys.executable,
        "-m",
        "pad",
        "serve",
        MODEL,
        "--port",
        "0",
        "--device",
        "cpu",
        *map(str, words),
    ]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", first)
        assert found, first + (process.stderr.read() or "")
        server = Server(process, int(found[1]))
        limit = time.monotonic() + 100
        while True:
            try:
                if server.ask("GET", "/readyz").status == 200:
                    break
            except OSError:
                assert time.monotonic() < limit
            time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()


def serve_without(package: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`pad serve` where a package is not installed."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from pad.commands.parser import main; sys.exit(main({['serve', MODEL, *words]!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=100
    )


def close_to(found: list[dict[str, Any]], paths: list[Path], detector: Detector) -> None:
    assert [row["name"] for row in found] == [path.name for path in paths]
    assert [row["score"] for row in found] == pytest.approx(detector.score(paths).tolist(), rel=2e-2)
    assert detector.calibration is not None
    for row in found:
        assert set(row) == {"name", "score", "p_value", "verdict", "error"}
        assert row["error"] == ""
        assert row["p_value"] == pytest.approx(float(detector.calibration.p_values(row["score"])))
        assert row["verdict"] == (
            "anomaly" if row["p_value"] <= detector.calibration.p_limit(0.05) else "normal"
        )
