"""What a service does under load: right answers, how long they take, its memory; what nonsense makes of it;
and whether it ever tells its token.

    python benchmarks/serve.py [--model MODEL] [--images DIR ...] [--clients 64] [--seconds 60] [--mutated
    2000]
                               [--out FILE] [--markdown FILE]

`pad serve` is started on this machine, with a token and with `-vv`. Each client asks for one picture after
the other, and every answer is compared with what `Detector.score` says of it; so are pictures a second, with
those of `Detector.score` on the same files, `--at-once` in a request and as many clients as keep it busy, in
turns and in the same run. Then uploads are mutated: no answer may be 500 or above. At the end the token is
looked for in all that the service has said. Exits with status 1 if there was a wrong answer, one of 500 or
above, or the token in the log.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jobs import exit_status, use_share_of_processor
from provenance import markdown, plain, provenance, write_json

from pad.config import FPR
from pad.detector import Detector
from pad.errors import PadError, one_line
from pad.images.resolve import resolve
from pad.judging.calibration import Calibration
from pad.judging.rows import ANOMALY, NORMAL

ROOT = Path(__file__).resolve().parent.parent
CLOSE = 0.02  # of scores, relative: how many are scored together changes the rounding


class Service:
    """A running `pad serve` on a free port, which asks for a token and writes all it says into `log`."""

    def __init__(self, model: str, device: str, log: Path) -> None:
        words = [sys.executable, "-m", "pad", "serve", model, "--port", "0", "--device", device]
        words += ["--max-queue", "4096", "-vv"]
        self.token, self.log = secrets.token_hex(16), log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                words, stdout=file, stderr=file, env={**os.environ, "PAD_SERVE_TOKEN": self.token}
            )
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+) ", log.read_text())):
            self._wait()
        self.port = int(found[1])
        while self.ask(self.connect(), "GET", "/readyz")[0] != 200:
            self._wait()

    def _wait(self) -> None:
        """Raises PadError if it has ended."""
        if self.process.poll() is not None:
            raise PadError(f"pad serve has ended: {one_line(self.log.read_text())}")
        time.sleep(0.1)

    def ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "",
    ) -> tuple[int, bytes]:
        """Status and body; status 0 where it hangs up."""
        headers = {"Authorization": f"Bearer {self.token}"} | ({"Content-Type": kind} if kind else {})
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return 0, b""

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


def is_right(row: dict[str, Any], name: str, score: float, calibration: Calibration) -> bool:
    """Whether an answer is that of the detector: the score, and p-value and verdict of the score."""
    flagged = row["p_value"] is not None and row["p_value"] <= calibration.p_limit(FPR)
    return (
        row["name"] == name
        and not row["error"]
        and abs(row["score"] / score - 1) < CLOSE
        and abs(row["p_value"] / float(calibration.p_values(row["score"])) - 1) < 1e-6
        and row["verdict"] == (ANOMALY if flagged else NORMAL)
    )


def load(
    service: Service,
    contents: list[bytes],
    expected: np.ndarray,
    calibration: Calibration,
    clients: int,
    seconds: float,
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
            told = f"status {status}" if status else "hung up"
            if status == 200:
                (row,) = json.loads(body)["results"]
                told = "right" if is_right(row, name, expected[index], calibration) else "wrong"
            with lock:
                times.append(taken)
                counts[told] += 1
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
        "answers that are not right": counts.total() - counts["right"],
        "pictures a second": len(times) / seconds,
        "p50, ms": 1000 * float(np.quantile(times, 0.5)),
        "p99, ms": 1000 * float(np.quantile(times, 0.99)),
        "memory after a quarter, MB": quarter[0],
        "memory at the end, MB": quarter[-1],
        "memory at most, MB": max(memory),
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
    return {"uploads": count, "statuses": dict(sorted(statuses.items())), "hung up": statuses[0],
            "500 and above": sum(n for status, n in statuses.items() if status >= 500)}  # fmt: skip


def secrecy(service: Service, contents: list[bytes]) -> dict[str, Any]:
    """Asks with wrong tokens, ends the service, and reads all that it has said."""
    token, refused = service.token, Counter[int]()
    for given in (token[:-1], token + "0", token.upper() + "x", ""):
        service.token = given
        kind, body = form([("a.png", contents[0])])
        refused[service.ask(service.connect(), "POST", "/v1/score", body, kind)[0]] += 1
    service.token = token
    service.close()
    said = service.log.read_bytes()
    return {"wrong tokens": dict(refused), "bytes of log": len(said),
            "token in them": said.count(token.encode())}  # fmt: skip


def main() -> int:
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
    return run(parser.parse_args())


def run(arguments: argparse.Namespace) -> int:
    use_share_of_processor()
    origin = provenance(arguments.device)
    detector = Detector.load(arguments.model, arguments.device)
    calibration = detector.calibrated()
    paths = [
        content for content in resolve(arguments.images, "evaluate").contents if isinstance(content, Path)
    ]
    expected, contents = detector.score(paths), [path.read_bytes() for path in paths]
    with TemporaryDirectory() as folder:
        service = Service(arguments.model, arguments.device, Path(folder) / "log")
        try:
            results = {
                "throughput": throughput(service, detector, paths, arguments.at_once, arguments.rounds),
                "load": load(service, contents, expected, calibration, arguments.clients, arguments.seconds),
                "nonsense": nonsense(service, contents, arguments.mutated),
                "token": secrecy(service, contents),
            }
        finally:
            service.close()
    content = {**origin, "threads": torch.get_num_threads(), "results": results}
    write_json(arguments.out, content)
    print(plain(*table(content)))
    if arguments.markdown:
        arguments.markdown.write_text(page(content), encoding="utf-8")
    found = results["load"]["answers that are not right"] + results["nonsense"]["500 and above"]
    return int(bool(found + results["token"]["token in them"]))


def table(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what was asked for, and what was found."""
    load, rate, nonsense, token = (
        content["results"][part] for part in ("load", "throughput", "nonsense", "token")
    )
    before, after = load["memory after a quarter, MB"], load["memory at the end, MB"]
    answers = f"{sum(load['answers'].values()):,}"
    statuses = ", ".join(f"{status}: {count}" for status, count in nonsense["statuses"].items())
    rows = [
        [f"answers to {load['clients']} clients in {load['seconds']:g} s", answers],
        ["of these not right", str(load["answers that are not right"])],
        ["a client's wait for a picture, median", f"{load['p50, ms']:.0f} ms"],
        ["and in 99 of 100 cases at most", f"{load['p99, ms']:.0f} ms"],
        ["memory after a quarter of it, MB", f"{before:.0f}"],
        ["memory at the end, MB", f"{after:.0f} ({after / before - 1:+.1%})"],
        ["pictures/s, many in a request", f"{rate['service, pictures a second']:.0f}"],
        ["`Detector.score` in turns with it", f"{rate['Detector.score, pictures a second']:.0f}"],
        ["share", f"{rate['share']:.0%}"],
        ["mutated uploads", f"{nonsense['uploads']:,}"],
        ["of these answered with 500 or above", str(nonsense["500 and above"])],
        ["with what status", statuses],
        [f"the token in the log ({token['bytes of log']:,} bytes)", f"{token['token in them']} times"],
    ]  # fmt: skip
    return ["what", "found"], rows


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    return markdown(content, *table(content), f"{content['threads']} threads.")


if __name__ == "__main__":
    sys.exit(exit_status(main))
