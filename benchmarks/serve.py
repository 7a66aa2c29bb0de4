"""What a service does under load: right answers, how long they take, its memory; and what nonsense makes of
it.

    python benchmarks/serve.py [--model MODEL] [--images DIR ...] [--clients 64] [--seconds 60] [--mutated
    2000]
                               [--out FILE] [--markdown FILE]

`pad serve` is started on this machine. Each client asks for one picture after the other, and every answer is
compared with what `Detector.score` says of it; so are pictures a second, with those of `Detector.score` on
the same files, `--at-once` in a request and as many clients as keep it busy, in the same run. Then uploads
are mutated: no answer may be 500 or above.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jobs import exit_status, use_share_of_processor
from provenance import markdown, plain, provenance, write_json

from pad.detector import Detector
from pad.images.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent
CLOSE = 0.02  # of scores, relative: how many are scored together changes the rounding


class Service:
    """A running `pad serve` on a free port."""

    def __init__(self, model: str, device: str) -> None:
        words = [
            sys.executable,
            "-m",
            "pad",
            "serve",
            model,
            "--port",
            "0",
            "--device",
            device,
            "--max-queue",
            "4096",
        ]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        found = re.search(r":(\d+) ", self.process.stderr.readline())
        assert found
        self.port = int(found[1])
        while True:
            try:
                if self.ask(http.client.HTTPConnection("127.0.0.1", self.port), "GET", "/readyz")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)

    def ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "",
    ) -> tuple[int, bytes]:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        response = connection.getresponse()
        return response.status, response.read()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    @property
    def megabytes(self) -> float:
        """Resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1000 if found else float("nan")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(120)


def form(files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Content type and body."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode()
        + b'"\r\nContent-Type: image/png\r\n\r\n' + content + b"\r\n"
        for name, content in files
    ]  # fmt: skip
    return "multipart/form-data; boundary=edge", b"".join(parts) + b"--edge--\r\n"


def load(
    service: Service, contents: list[bytes], expected: np.ndarray, clients: int, seconds: float
) -> dict[str, Any]:
    """Every client asks for one picture at a time."""
    times: list[float] = []
    counts: Counter[str] = Counter()
    lock, until = threading.Lock(), time.monotonic() + seconds
    memory = [service.megabytes]

    def client(number: int) -> None:
        chance, connection = random.Random(number), service.connect()
        while time.monotonic() < until:
            index = chance.randrange(len(contents))
            name = f"{number}-{index}-{chance.random()}"
            begun = time.perf_counter()
            status, body = service.ask(
                connection, "POST", "/v1/score", *form([(name, contents[index])])[::-1]
            )
            taken = time.perf_counter() - begun
            (row,) = json.loads(body)["results"] if status == 200 else ({"name": "", "score": 0.0},)
            right = row["name"] == name and abs(row["score"] / expected[index] - 1) < CLOSE
            with lock:
                times.append(taken)
                counts["right" if right else "wrong" if status == 200 else str(status)] += 1
        connection.close()

    def watch() -> None:
        while time.monotonic() < until:
            time.sleep(1)
            memory.append(service.megabytes)

    with ThreadPoolExecutor(clients + 1) as pool:
        for future in [pool.submit(watch), *(pool.submit(client, number) for number in range(clients))]:
            future.result()
    quarter = memory[len(memory) // 4 :]
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": dict(counts),
        "pictures a second": len(times) / seconds,
        "p50, ms": 1000 * float(np.quantile(times, 0.5)),
        "p99, ms": 1000 * float(np.quantile(times, 0.99)),
        "memory after a quarter, MB": quarter[0],
        "memory at the end, MB": quarter[-1],
    }


def throughput(
    service: Service, detector: Detector, paths: list[Path], at_once: int, rounds: int
) -> dict[str, Any]:
    """Files of a request as large as batches are, beside `Detector.score` on the same files."""
    contents = [path.read_bytes() for path in paths]
    groups = [list(range(i, min(i + at_once, len(paths)))) for i in range(0, len(paths), at_once)]
    bodies = [form([(str(i), contents[i]) for i in group]) for group in groups]

    def one(body: tuple[str, bytes]) -> int:
        status, _ = service.ask(service.connect(), "POST", "/v1/score", body[1], body[0])
        return status

    by_service, by_detector = [], []
    for _ in range(rounds):
        begun = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(one, bodies)) == {200}
        by_service.append(len(paths) / (time.perf_counter() - begun))
        begun = time.perf_counter()
        detector.score(paths)
        by_detector.append(len(paths) / (time.perf_counter() - begun))
    service_rate, detector_rate = float(np.median(by_service)), float(np.median(by_detector))
    return {
        "service, pictures a second": service_rate,
        "Detector.score, pictures a second": detector_rate,
        "share": service_rate / detector_rate,
    }


def nonsense(service: Service, contents: list[bytes], count: int) -> dict[str, Any]:
    """Mutated uploads."""
    chance, statuses = random.Random(0), Counter[int]()
    kind, body = form([(f"{i}.png", content) for i, content in enumerate(contents[:2])])
    kinds = [
        kind,
        "multipart/form-data",
        "application/json",
        f"multipart/form-data; boundary={'x' * 300}",
        "text/plain",
    ]
    for number in range(count):
        mutated = bytearray(body)
        for _ in range(chance.choice((1, 4, 30, 200))):
            place, action = chance.randrange(max(1, len(mutated))), chance.random()
            if action < 0.6 and mutated:
                mutated[place] = chance.randrange(256)
            elif action < 0.8:
                del mutated[place : place + chance.randrange(60)]
            else:
                mutated[place:place] = chance.randbytes(chance.randrange(40))
        header = kind if number % 4 else chance.choice(kinds)
        path = "/v1/score" if number % 10 else "/v1/explain"
        statuses[service.ask(service.connect(), "POST", path, bytes(mutated), header)[0]] += 1
    return {"uploads": count, "statuses": dict(sorted(statuses.items())),
            "500 and above": sum(n for status, n in statuses.items() if status >= 500)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="zoo:fashion-mnist/ankle-boot")
    parser.add_argument("--images", nargs="+", default=[str(ROOT / "tests/data/fashion/test")], metavar="DIR")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--mutated", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("serve.json"), metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    use_share_of_processor()
    origin = provenance(arguments.device)
    detector = Detector.load(arguments.model, arguments.device)
    paths = [
        content for content in resolve(arguments.images, "evaluate").contents if isinstance(content, Path)
    ]
    expected, contents = detector.score(paths), [path.read_bytes() for path in paths]
    service = Service(arguments.model, arguments.device)
    try:
        results = {
            "throughput": throughput(service, detector, paths, arguments.at_once, arguments.rounds),
            "load": load(service, contents, expected, arguments.clients, arguments.seconds),
            "nonsense": nonsense(service, contents, arguments.mutated),
        }
    finally:
        service.close()
    content = {**origin, "threads": os.environ.get("OMP_NUM_THREADS"), "results": results}
    write_json(arguments.out, content)
    print(plain(*table(content)))
    if arguments.markdown:
        arguments.markdown.write_text(page(content), encoding="utf-8")


def table(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [[f"{part}: {name}", f"{value:.4g}" if isinstance(value, float) else str(value)]
            for part, values in content["results"].items() for name, value in values.items()]  # fmt: skip
    return ["what", "found"], rows


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    return markdown(content, *table(content), "")


if __name__ == "__main__":
    sys.exit(exit_status(main))
