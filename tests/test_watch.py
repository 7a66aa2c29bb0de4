"""`pad watch` as people run it: what comes is judged once, whatever happens; what keeps coming back is
proposed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import forked
import pytest
from PIL import Image

import pad
from pad.commands.parser import main
from pad.watching.online_fdr import OnlineFdr
from pad.watching.state import FILE, State

ROOT = Path(__file__).parent.parent
SECRET = "a secret of the tests"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PAD_WEBHOOK_SECRET": SECRET,
}


@pytest.fixture(scope="module")
def model(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quick views of boots."""
    folder = tmp_path_factory.mktemp("watched") / "model"
    pad.fit(boots, steps=0, device="cpu").save(folder)
    return folder


def command(*words: object) -> list[str]:
    return ["-m", "pad", "watch", *map(str, words)]


def watch(
    *words: object, status: int = 0, stdin: bytes = b"", fresh: bool = False
) -> tuple[list[dict[str, Any]], str]:
    """The lines of standard output, and what was said besides."""
    done = forked.run(command(*words), env=ENVIRONMENT, input=stdin, fresh=fresh)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.encode().splitlines()], done.stderr


def decide(*words: object, status: int = 0) -> str:
    """What `pad watch accept` and the like say."""
    done = forked.run(command(*words), env=ENVIRONMENT, timeout=100)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def running() -> Iterator[Callable[..., forked.Process]]:
    """Starts watchers that do not outlive the test."""
    started: list[forked.Process] = []

    def start(*words: object) -> forked.Process:
        started.append(
            forked.Process(command(*words), env=ENVIRONMENT, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stderr):
            if stream:
                stream.close()


def wait_for(what: Callable[[], Any], process: forked.Process | None = None) -> Any:
    """What `what` returns as soon as that is something."""
    limit = time.monotonic() + 100
    while not (found := what()):
        assert process is None or process.poll() is None, "the watcher has ended"
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.02)
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def fill(folder: Path, *kinds: Path, most: int = 100) -> list[Path]:
    """Copies pictures into a folder; the copies, in the order in which they come."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for kind in kinds:
        for path in sorted(kind.glob("*.png"))[:most]:
            copies.append(folder / f"{len(copies):03d}-{kind.name}.png")
            shutil.copy(path, copies[-1])
            os.utime(copies[-1], (1_700_000_000 + len(copies),) * 2)
    return copies


def test_a_line_for_each_picture_with_what_the_detector_says(
    model: Path, fashion: Path, tmp_path: Path
) -> None:
    paths = fill(tmp_path / "in", fashion / "test" / "normal", fashion / "test" / "sandal", most=12)
    words = [model, tmp_path / "in", "--state", tmp_path / "state", "--once", "--device", "cpu"]
    found, said = watch(*words, fresh=True)
    assert [line["path"] for line in found] == [str(path) for path in paths]
    assert [line["id"] for line in found] == list(range(1, 25))
    detector = pad.load(model, device="cpu")
    assert [line["score"] for line in found] == pytest.approx(detector.score(paths).tolist(), rel=1e-4)
    flagged = detector.predict(paths, fpr=0.05)
    assert [line["verdict"] == "anomaly" for line in found] == flagged.tolist()
    p_values = detector.view_p_values(paths)
    assert set(found[0]["views"]) == set(p_values)
    assert flagged[12:].sum() >= 11
    again, _ = watch(model, tmp_path / "in", "--state", tmp_path / "state", "--once", "--device", "cpu")
    assert again == []
    assert "watching" in said


def test_pictures_that_appear_while_it_runs(
    model: Path, fashion: Path, tmp_path: Path, running: Callable[..., forked.Process]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out.jsonl"
    (source / "sub").mkdir(parents=True)
    sandal = next((fashion / "test" / "sandal").glob("*.png"))
    process = running(model, source, "--state", tmp_path / "state", "--out", out)
    wait_for(lambda: (tmp_path / "state" / FILE).exists() and out.exists(), process)

    half = source / "half.png"
    content = sandal.read_bytes()
    half.write_bytes(content[: len(content) // 2])  # a slow writer
    hidden = source / ".copying.png"
    hidden.write_bytes(content)
    (source / "upload.png.part").write_bytes(content)
    (source / "notes.txt").write_text("no picture")
    hidden.rename(source / "sub" / "renamed.png")
    wait_for(lambda: lines_of(out), process)
    assert [Path(line["path"]).name for line in lines_of(out)] == ["renamed.png"]
    time.sleep(1)  # the slow writer pauses for longer than a file takes to settle
    with half.open("ab") as file:
        file.write(content[len(content) // 2 :])
    wait_for(lambda: len(lines_of(out)) == 2, process)
    os.link(sandal, source / "linked.png") if sandal.stat().st_dev == source.stat().st_dev else shutil.copy2(
        sandal, source / "linked.png"
    )
    wait_for(lambda: len(lines_of(out)) == 3, process)
    (source / "damaged.png").write_bytes(content[:100])
    wait_for(lambda: len(lines_of(out)) == 4, process)
    (source / "upload.png.part").rename(source / "upload.png")
    wait_for(lambda: len(lines_of(out)) == 5, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    found = lines_of(out)
    names = [Path(line["path"]).name for line in found]
    assert names == ["renamed.png", "half.png", "linked.png", "damaged.png", "upload.png"]
    assert len({line["score"] for line in found if not line["error"]}) == 1  # the same picture
    assert "truncated" in found[3]["error"] or "damaged" in found[3]["error"]
    assert found[3]["verdict"] == ""
    assert found[3]["score"] is None


def test_a_folder_that_goes_and_comes_back(
    model: Path, fashion: Path, tmp_path: Path, running: Callable[..., forked.Process]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out.jsonl"
    fill(source, fashion / "test" / "sandal", most=2)
    process = running(model, source, "--state", tmp_path / "state", "--out", out)
    wait_for(lambda: len(lines_of(out)) == 2, process)
    source.rename(tmp_path / "away")
    time.sleep(0.6)
    (tmp_path / "away").rename(source)
    shutil.copy2(source / "000-sandal.png", source / "later.png")
    wait_for(lambda: len(lines_of(out)) == 3, process)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(60) == 130
    assert b"waiting for it" in said
    assert b"is back" in said
    assert len(lines_of(out)) == 3


def test_standard_input_takes_paths_and_json(model: Path, fashion: Path, tmp_path: Path) -> None:
    path = next((fashion / "test" / "sandal").glob("*.png"))
    encoded = base64.b64encode(path.read_bytes()).decode()
    given = [
        str(path),
        json.dumps({"image": encoded, "name": "camera 1", "id": 7}),
        json.dumps({"path": str(path), "id": "a"}),
        json.dumps({"image": encoded, "id": 7}),  # sent again
        json.dumps({"image": "no base64!", "name": "bad"}),
        "{ no json",
        json.dumps({"nothing": 1}),
        str(tmp_path / "none.png"),
        "",
        str(path),  # without an id it is another picture
    ]
    text = "\n".join(given).encode()
    found, _ = watch(model, "-", "--state", tmp_path / "state", "--device", "cpu", stdin=text)
    assert [line["path"] for line in found] == [
        str(path), "camera 1", str(path), "bad", "line", "line", str(tmp_path / "none.png"), str(path)
    ]  # fmt: skip
    assert [line["error"] for line in found] == [
        "", "", "", '"image" is not base64', "not JSON", 'JSON without "path" or "image" (base64)',
        "no such file", "",
    ]  # fmt: skip
    scores = [line["score"] for line in found if not line["error"]]
    assert scores == pytest.approx([scores[0]] * 4, rel=1e-5)  # in batches of any number
    again, _ = watch(model, "-", "--state", tmp_path / "state", "--device", "cpu", stdin=text)
    assert [line["path"] for line in again if not line["error"]] == [str(path), str(path)]
    assert [line["id"] for line in again] == list(range(9, 9 + len(again)))


def test_a_new_normal_is_proposed_accepted_beside_the_watcher_and_rolled_back(
    model: Path, fashion: Path, tmp_path: Path, running: Callable[..., forked.Process]
) -> None:
    source, state, out = tmp_path / "in", tmp_path / "state", tmp_path / "out.jsonl"
    trousers = sorted((fashion / "test" / "trouser").glob("*.png"))
    fill(source, fashion / "test" / "normal", most=10)
    for index, path in enumerate(trousers[:15]):
        shutil.copy2(path, source / f"first-{index:02d}.png")
    process = running(model, source, "--state", state, "--out", out, "--device", "cpu")
    wait_for(lambda: len(lines_of(out)) == 25, process)
    assert all(line["verdict"] == "anomaly" for line in lines_of(out)[10:])
    listed = wait_for(lambda: decide("proposals", "--state", state), process)
    number, status, pictures = listed.split()[:3]
    assert (number, status) == ("1", "open")
    assert 12 <= int(pictures) <= 15
    with Image.open(state / "proposals" / "1.jpg") as montage:
        assert montage.size == (4 * 96, 4 * 96 if int(pictures) > 12 else 3 * 96)

    assert "proposal 1" in decide("accept", 1, "--state", state)
    for index, path in enumerate(trousers[15:]):
        shutil.copy2(path, source / f"then-{index:02d}.png")
    fill(source / "others", fashion / "test" / "bag", fashion / "test" / "normal", most=10)
    wait_for(lambda: len(lines_of(out)) == 50, process)
    found = lines_of(out)[25:]
    assert {line["version"] for line in found} == {2}
    now_normal = [line for line in found if "then-" in line["path"]]
    assert sum(line["verdict"] == "normal" for line in now_normal) >= 3
    assert {line["cluster"] for line in now_normal if line["verdict"] == "normal"} == {1}
    assert all(line["verdict"] == "anomaly" for line in found if line["path"].endswith("bag.png"))
    assert sum(line["verdict"] == "anomaly" for line in found if line["path"].endswith("normal.png")) <= 3

    assert "already" in decide("accept", 1, "--state", state, status=2)
    assert "trained on\n" in decide("rollback", "--state", state)
    shutil.copy(trousers[16], source / "last.png")
    wait_for(lambda: len(lines_of(out)) == 51, process)
    last = lines_of(out)[-1]
    assert (last["verdict"], last["version"], last["cluster"]) == ("anomaly", 3, 1)
    assert decide("proposals", "--state", state).split()[1] == "open"

    decide("reject", 1, "--name", "trousers", "--state", state)
    shutil.copy(trousers[17], source / "very-last.png")
    wait_for(lambda: len(lines_of(out)) == 52, process)
    last = lines_of(out)[-1]
    assert (last["verdict"], last["cluster"], last["name"]) == ("anomaly", 1, "trousers")
    assert "1  rejected" in decide("proposals", "--state", state)
    assert "nothing was accepted" in decide("rollback", "--state", state, status=2)
    told = [(d["what"], d["proposal"], d["by"]) for d in State(state).decisions()]
    assert told == [(what, 1, "command line") for what in ("accept", "rollback", "reject")]


def test_what_was_accepted_is_normal_after_a_new_start(model: Path, fashion: Path, tmp_path: Path) -> None:
    source, state = tmp_path / "in", tmp_path / "state"
    fill(source, fashion / "test" / "trouser", most=15)
    words = (model, source, "--state", state, "--once", "--device", "cpu")
    _, said = watch(*words)
    assert "proposal 1:" in said
    decide("accept", 1, "--state", state)
    fill(source / "more", fashion / "test" / "trouser")
    found, _ = watch(*words)
    assert len(found) == 20
    assert sum(line["verdict"] == "normal" for line in found) >= 18


def test_policies(model: Path, fashion: Path, tmp_path: Path) -> None:
    fill(tmp_path / "in", fashion / "test" / "trouser")
    words = (model, tmp_path / "in", "--once", "--device", "cpu")
    found, _ = watch(*words, "--state", tmp_path / "never", "--adopt", "never")
    assert all(line["verdict"] == "anomaly" and line["version"] == 1 for line in found)
    assert decide("proposals", "--state", tmp_path / "never") == ""
    assert "--adopt never" in decide("accept", 1, "--state", tmp_path / "never", status=2)
    found, _ = watch(*words, "--state", tmp_path / "after", "--adopt", "after:14")
    assert found[-1]["version"] == 2
    assert State(tmp_path / "after").decisions()[0]["by"] == "policy after:14"
    before = [line for line in found if line["version"] == 1]
    assert sum(line["verdict"] == "anomaly" for line in before) >= 14


def test_single_flagged_pictures_are_never_adopted(model: Path, fashion: Path, tmp_path: Path) -> None:
    kinds = [fashion / "test" / kind for kind in ("bag", "sandal", "shirt", "trouser")]
    fill(tmp_path / "in", *kinds, most=5)
    found, _ = watch(model, tmp_path / "in", "--state", tmp_path / "s", "--once", "--adopt", "after:12")
    assert {line["version"] for line in found} == {1}
    assert decide("proposals", "--state", tmp_path / "s") == ""


def test_killed_at_any_moment_no_event_is_lost_or_doubled(model: Path, fashion: Path, tmp_path: Path) -> None:
    source, state, lines = tmp_path / "in", tmp_path / "state", tmp_path / "out.jsonl"
    kinds = [fashion / "test" / kind for kind in ("trouser", "bag", "normal")]
    pictures = fill(source, *kinds, most=13)
    words = [model, source, "--state", state, "--once", "--device", "cpu", "--adopt", "after:12"]
    words += ["--out", lines, "--online-fdr", 0.2]
    chance, done, kills = random.Random(0), False, 0
    while not done:
        process = forked.Process(command(*words), env=ENVIRONMENT)
        known = _events(state)
        # Killed soon after it has judged something, so that there is progress; the last one lives.
        while process.poll() is None and (kills == 6 or _events(state) == known or chance.random() < 0.5):
            time.sleep(0.01)
        done = process.poll() == 0
        process.kill()
        process.wait()
        kills += not done
    assert kills >= 3
    events = State(state).events()
    assert sorted(event.path for event in events) == sorted(map(str, pictures))
    assert [event.id for event in events] == list(range(1, len(pictures) + 1))
    # A line says of the cluster what was known when it was written.
    written = [line | {"cluster": 0} for line in lines_of(lines)]
    assert written == [json.loads(event.line()) | {"cluster": 0} for event in events]
    with sqlite3.connect(state / FILE) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    flagged = {event.id for event in events if event.verdict == "anomaly"}
    found = State(state)
    kept = [*found.buffered(), *(e for p in found.proposals() for e in found.member_events(p.id))]
    assert sorted(kept) == sorted(flagged)
    # Alarms are those of the rule that sees each event once.
    rule = OnlineFdr(0.2, len(pad.load(model, device="cpu").calibrated()))
    alarms = [rule.see(event.p_value, event.id in flagged) for event in events]
    assert [event.alarm for event in events] == alarms
    assert any(alarms)
    assert found.fact("online_fdr") == rule.dump()


def _events(state: Path) -> int:
    if not (state / FILE).exists():
        return 0
    database = sqlite3.connect(state / FILE, timeout=10)
    try:
        return int(database.execute("SELECT COUNT(*) FROM events").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return 0
    finally:
        database.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none", "in", "--state", "s"], "none"),
        (["MODEL", "nowhere", "--state", "s"], "nowhere: no such folder or video to watch"),
        (["MODEL", "--state", "s"], "name a SOURCE"),
        (["MODEL", "in", "--state", "file"], "file is a file; name a folder"),
        (["MODEL", "in", "--state", "s", "--adopt", "after:2"], "--adopt takes ask, never, or after:N"),
        (["MODEL", "in", "--state", "s", "--keep", "3 weeks"], "--keep takes days or bytes"),
        (["MODEL", "in", "--state", "s", "--fpr", "0.001"], "cannot hold a false-alarm rate"),
        (["MODEL", "in", "--state", "s", "--out", "file"], "holds something else"),
        (["MODEL", "in", "--state", "other"], "is the state of another model"),
        (["accept", "1", "--state", "nowhere"], "holds no state"),
        (["accept", "--state", "other"], "takes the id of a proposal"),
        (["accept", "x", "--state", "other"], "takes the id of a proposal"),
        (["accept", "5", "--state", "other"], "there is no proposal 5"),
        (["rollback", "--state", "other"], "nothing was accepted"),
        (["proposals", "in", "--state", "other"], "takes no 'in'"),
        (["accept", "1", "--name", "x", "--state", "other"], "--name goes with"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file").write_text("something else\n")
    other = State(tmp_path / "other", create=True)
    with other.transaction():
        other.set_fact("model", "of another")
    other.close()
    monkeypatch.chdir(tmp_path)
    assert main(["watch", *(str(model) if word == "MODEL" else word for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1, said


def test_the_page_and_the_webhook_of_a_watcher(
    model: Path, fashion: Path, tmp_path: Path, running: Callable[..., forked.Process]
) -> None:
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            signed = self.headers["X-Pad-Timestamp"].encode() + b"." + body
            expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
            assert self.headers["X-Pad-Signature"] == f"sha256={expected}"
            got.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    fill(tmp_path / "in", fashion / "test" / "trouser", most=15)
    address = f"http://127.0.0.1:{receiver.server_port}/hook"
    state = tmp_path / "state"
    process = running(model, tmp_path / "in", "--state", state, "--port", 0, "--webhook", address)
    assert process.stderr is not None
    while not (found := re.search(rb"page: (http\S+)", line := process.stderr.readline())):
        assert line, "no page"
    url = found[1].decode()

    def ask(path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(url + path, method=method, headers={"X-Pad": "1"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    (proposal,) = wait_for(lambda: ask("/api/state")["proposals"], process)
    assert proposal["status"] == "open"
    assert ask("/api/accept/1", "POST")["version"] == 2
    fill(tmp_path / "in" / "more", fashion / "test" / "trouser", most=5)
    wait_for(lambda: len(ask("/api/events")) == 20, process)
    assert {event["version"] for event in ask("/api/events")[:5]} == {2}
    wait_for(lambda: any(message["kind"] == "proposal" for message in got), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    receiver.shutdown()
    receiver.server_close()
    kinds = {kind: [m for m in got if m["kind"] == kind] for kind in ("anomaly", "proposal", "drift")}
    flagged = [event for event in State(state).events() if event.verdict == "anomaly"]
    assert sorted(m["id"] for m in kinds["anomaly"]) == sorted(f"event-{event.id}" for event in flagged)
    assert [m["proposal"] for m in kinds["proposal"]] == [1]
    assert len(kinds["drift"]) == len(State(state).alarms()) >= 1


def test_a_state_has_one_watcher(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with State(tmp_path / "state", create=True).locked():
        _, said = watch(model, tmp_path / "in", "--state", tmp_path / "state", status=2)
    assert "another `pad watch` is at work" in said
