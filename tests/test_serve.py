"""`pad serve` on 127.0.0.1, asked as clients ask: right answers, limits, a token, nonsense, a graceful
stop."""

from __future__ import annotations

import base64
import concurrent.futures
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import forked
import pytest
from PIL import Image
from serve_process import ENVIRONMENT, MODEL, TOKEN, Server, close_to, multipart, serve_without, serving

import pad
from pad.detector import Detector


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        "--max-megabytes", "2", "--max-megapixels", "0.5", "--max-images", "40", "--max-queue", "200"
    ) as it:
        yield it


@pytest.fixture(scope="module")
def detector() -> Detector:
    return pad.load(MODEL, device="cpu")


@pytest.fixture(scope="module")
def pictures(fashion: Path) -> list[Path]:
    kinds = [sorted((fashion / "test" / kind).glob("*.png"))[:10] for kind in ("normal", "bag")]
    return kinds[0] + kinds[1]


def test_answers_are_those_of_the_detector(server: Server, detector: Detector, pictures: list[Path]) -> None:
    answer = server.score(*[(path.name, path.read_bytes()) for path in pictures])
    assert answer.status == 200
    close_to(answer.body["results"], pictures, detector)
    images = [{"name": p.name, "image": base64.b64encode(p.read_bytes()).decode()} for p in pictures]
    answer = server.score_json({"images": images})
    close_to(answer.body["results"], pictures, detector)
    assert {row["verdict"] for row in answer.body["results"]} == {"normal", "anomaly"}


def test_a_bad_picture_has_its_own_error(server: Server, detector: Detector, pictures: list[Path]) -> None:
    good = pictures[0].read_bytes()
    files = [
        ("a.png", good),
        ("b.png", b"no picture"),
        ("c.png", good[:200]),
        ("d.png", b""),
        (pictures[0].name, good),
    ]
    found = server.score(*files).body["results"]
    assert [bool(row["error"]) for row in found] == [False, True, True, True, False]
    assert [row["verdict"] for row in found[1:4]] == [""] * 3
    assert found[1]["score"] is None
    assert found[0]["score"] == pytest.approx(found[4]["score"], rel=2e-2)
    given = {
        "images": [
            {"name": "x", "image": "no base64!"},
            {"name": "y"},
            7,
            {"image": base64.b64encode(good).decode()},
        ]
    }
    found = server.score_json(given).body["results"]
    assert [row["error"] for row in found] == [
        '"image" is not base64',
        'no "image" in base64',
        'no "image" in base64',
        "",
    ]


def test_explanations_are_pictures(server: Server, pictures: list[Path], tmp_path: Path) -> None:
    found = server.score(
        (pictures[-1].name, pictures[-1].read_bytes()), ("bad", b"x"), path="/v1/explain"
    ).body["results"]
    (tmp_path / "why.png").write_bytes(base64.b64decode(found[0]["picture"]))
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 3 * 28
    assert found[0]["views"]["generator"] == found[0]["p_value"]
    assert found[1]["picture"] == ""
    assert found[1]["error"]
    many = [("x.png", pictures[0].read_bytes())] * 9
    assert server.score(*many, path="/v1/explain").status in (400, 413)


def big(width: int, height: int) -> bytes:
    import io

    content = io.BytesIO()
    Image.new("L", (width, height)).save(content, "PNG")
    return content.getvalue()


def test_limits(server: Server, pictures: list[Path]) -> None:
    content = pictures[0].read_bytes()
    (row,) = server.score(("big.png", big(800, 800))).body["results"]
    assert row["error"] == "too large: 800x800 pixels, at most 0.5 million"
    assert server.score(*[("a.png", content)] * 41).status in (400, 413)
    assert server.score(("x.png", b"\0" * 2_100_000)).status == 413
    assert server.score().status == 400
    assert server.ask("POST", "/v1/score", b"text", {"Content-Type": "text/plain"}).status == 415
    for body in (b"{", b"[]", b'{"images": 3}', b'{"images": []}', b"[" * 100_000, b"\xff"):
        assert server.score_json(body).status == 400
    assert server.ask("GET", "/v1/score").status == 405
    assert server.ask("GET", "/nothing").status == 404


def test_bytes_are_counted_whatever_the_header_says(server: Server) -> None:
    """Chunks, without a length."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        sock.sendall(
            b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        answer = b""
        try:
            for _ in range(100):
                sock.sendall(chunk)
        except OSError:  # it hangs up
            pass
        with suppress(OSError):
            answer = sock.recv(1000)
    assert answer.startswith(b"HTTP/1.1 413") or not answer


def test_health_metrics_and_the_interface_in_words(server: Server, pictures: list[Path]) -> None:
    assert server.ask("GET", "/healthz").body == {"status": "ok"}
    assert server.ask("GET", "/readyz").body == {"status": "ready"}
    server.score(("a.png", pictures[0].read_bytes()))
    told = server.ask("GET", "/metrics").body
    assert re.search(r'pad_requests_total\{path="/v1/score",status="200"\} [1-9]', told)
    assert re.search(r'pad_images_total\{verdict="normal"\} [1-9]', told)
    assert "pad_batch_images_sum" in told
    assert "pad_waiting_images 0.0" in told
    paths = server.ask("GET", "/openapi.json").body["paths"]
    assert set(paths["/v1/score"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
    }
    assert server.ask("GET", "/docs").status == 200


def test_nonsense_is_no_fault_of_ours(server: Server, pictures: list[Path]) -> None:
    """Mutated uploads: no answer of 500 and up, and the server answers as before after them."""
    random.seed(0)
    kind, body = multipart(*[(p.name, p.read_bytes()) for p in pictures[:2]])
    statuses = set()
    for number in range(300):
        mutated = bytearray(body)
        for _ in range(random.choice((1, 4, 30))):
            place = random.randrange(len(mutated))
            action = random.random()
            if action < 0.6:
                mutated[place] = random.randrange(256)
            elif action < 0.8:
                del mutated[place : place + random.randrange(60)]
            else:
                mutated[place:place] = random.randbytes(random.randrange(40))
        kinds = (
            kind,
            "multipart/form-data",
            "application/json",
            "multipart/form-data; boundary=" + "x" * 300,
        )
        header = kind if number % 4 else random.choice(kinds)
        statuses.add(server.ask("POST", "/v1/score", bytes(mutated), {"Content-Type": header}).status)
    assert max(statuses) < 500
    assert 200 in statuses
    assert server.score(("a.png", pictures[0].read_bytes())).body["results"][0]["error"] == ""


def test_many_clients_get_their_own_answers(server: Server, detector: Detector, pictures: list[Path]) -> None:
    expected = detector.score(pictures)

    def client(number: int) -> list[tuple[int, str, float]]:
        found = []
        for turn in range(3):
            index = (number + turn) % len(pictures)
            answer = server.score((f"{number}-{turn}", pictures[index].read_bytes()))
            assert answer.status == 200, answer
            (row,) = answer.body["results"]
            found.append((index, row["name"] == f"{number}-{turn}", row["score"]))
        return found

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for found in pool.map(client, range(32)):
            for index, named, score in found:
                assert named
                assert score == pytest.approx(float(expected[index]), rel=2e-2)


def test_what_waits_is_bounded(pictures: list[Path]) -> None:
    content = pictures[0].read_bytes()
    with serving("--max-queue", "4", "--max-images", "4", "--batch-size", "1") as server:
        start = threading.Barrier(24)

        def client(_: int) -> int:
            start.wait()
            return server.score(*[("a.png", content)] * 4).status

        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            statuses = list(pool.map(client, range(24)))
        assert set(statuses) == {200, 429}
        assert server.score(("a.png", content)).status == 200


def test_a_request_has_its_time() -> None:
    """One that sends half of what it has announced, and then nothing."""
    with (
        serving("--timeout", "1") as server,
        socket.create_connection(("127.0.0.1", server.port), 60) as sock,
    ):
        sock.sendall(
            b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        assert sock.recv(1000).startswith(b"HTTP/1.1 504")
        assert server.ask("GET", "/healthz").status == 200


def test_a_token_is_asked_for_and_never_told(pictures: list[Path], tmp_path: Path) -> None:
    file = (pictures[0].name, pictures[0].read_bytes())
    with serving("-vv", token=TOKEN) as server:
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": TOKEN},
            {"Authorization": f"Basic {TOKEN}"},
        ):
            answer = server.score(file, **header)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert server.score(file, Authorization=f"Bearer {TOKEN}").status == 200
        assert server.ask("GET", "/healthz").status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stderr is not None
        said = server.process.stderr.read()
        server.process.wait(60)
    assert TOKEN not in said
    assert "Traceback" not in said


def test_what_was_begun_is_finished_when_it_is_stopped(pictures: list[Path]) -> None:
    file = ("a.png", pictures[0].read_bytes())
    with serving() as server:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(server.score, *[file] * 200) for _ in range(4)]
            while "pad_waiting_images 0.0" in server.ask("GET", "/metrics").body and not all(
                a.done() for a in answers
            ):
                pass
            server.process.send_signal(signal.SIGTERM)
            assert [len(answer.result().body["results"]) for answer in answers] == [200] * 4
        assert server.process.wait(60) in (0, 128 + signal.SIGTERM, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (["serve", "nowhere"], "", "nowhere"),
        (["serve", MODEL, "--fpr", "0.0001"], "", "cannot hold a false-alarm rate"),
        (["serve", MODEL, "--port", "99999"], "", "--port takes a number"),
        (["serve", MODEL, "--host", "192.0.2.1", "--port", "0"], "", "cannot listen on 192.0.2.1:0"),
        (["serve", MODEL, "--max-queue", "3"], "", "--max-queue must be at least --max-images"),
        (["serve", MODEL], "short", "PAD_SERVE_TOKEN must be"),
    ],
)
def test_mistakes_are_told_in_a_line(words: list[str], token: str, message: str) -> None:
    environment = {**ENVIRONMENT, **({"PAD_SERVE_TOKEN": token} if token else {})}
    done = forked.run(["-m", "pad", *words], env=environment)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_extra_is_named() -> None:
    done = serve_without("fastapi")
    assert done.returncode == 2
    assert done.stderr == "pad: fastapi is not installed: python -m pip install 'pad-anomaly[serve]'\n"
