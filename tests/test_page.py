"""The page of a watcher: what it shows and decides, in a browser; and whom it answers."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pad.serving.page import served
from pad.watching.features import montage
from pad.watching.online_fdr import OnlineFdr
from pad.watching.state import Event, Kept, State

EVIL = "<img src=x onerror=alert(1)>.png"
EVENTS = 10_000


def jpeg(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (96, 64), (shade, 80, 160)).save(content, "JPEG")
    return content.getvalue()


def flagged(state: State, path: str, cluster: int | None = None) -> int:
    event = Event(path, time.time(), b"", 3.0, 0.01, "anomaly", cluster=cluster, thumbnail=jpeg(200))
    assert state.add_event(event)
    return event.id


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """10,000 events, one in ten flagged; two proposals."""
    state = State(tmp_path / "state", create=True)
    with state.transaction():
        state.set_fact("fpr", 0.05)
        state.set_fact("adopt", "ask")
        state.set_fact("evidence", 12.5)
        for number in range(EVENTS - 26):
            verdict = "anomaly" if number % 10 == 0 else "normal"
            state.add_event(Event(f"in/{number:05d}.png", 1e9 + number, b"", 1.0, 0.3, verdict))
        for kind in ("one", "two"):
            members = [flagged(state, f"in/{kind}-{number}.png") for number in range(12)]
            for event in members:
                state.add_to_buffer(Kept(event, b"", jpeg(100)))
            number = state.propose(members, time.time())
            path = state.montage(number)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(montage([jpeg(100)] * 12))
        state.add_event(Event("broken.png", time.time(), error="the file is empty"))
        flagged(state, f"in/{EVIL}")
        state.add_alarm(500, 120.0, "darker", time.time())
    yield state
    state.close()


@pytest.fixture
def url(state: State) -> Iterator[str]:
    with served(state.folder, 0) as address:
        yield address


def ask(url: str, method: str, path: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        content = response.read()
        kind = response.headers.get("content-type", "")
        return (
            response.status,
            json.loads(content) if "json" in kind else content,
            dict(response.headers.items()),
        )
    finally:
        connection.close()


def test_what_it_answers(url: str, state: State) -> None:
    _, told, _ = ask(url, "GET", "/api/state")
    assert told["counts"]["events"] == EVENTS
    assert [p["id"] for p in told["proposals"]] == [2, 1]
    assert sum(count for _, count, _ in told["rates"]) == EVENTS - 1  # one could not be judged
    assert sum(found for _, _, found in told["rates"]) == told["counts"]["anomaly"]
    assert len(told["rates"]) == 50
    _, latest, _ = ask(url, "GET", "/api/events")
    assert [event["id"] for event in latest] == list(range(EVENTS, EVENTS - 60, -1))
    _, older, _ = ask(url, "GET", f"/api/events?before={latest[-1]['id']}&flagged=true")
    assert all(event["verdict"] == "anomaly" and event["id"] < latest[-1]["id"] for event in older)
    assert ask(url, "GET", f"/api/pictures/{EVENTS}")[1] == state.thumbnail(EVENTS)
    assert ask(url, "GET", "/api/pictures/1")[0] == 404
    assert ask(url, "GET", "/api/proposals/1")[1][:2] == b"\xff\xd8"
    assert ask(url, "GET", "/api/proposals/9")[0] == 404


def test_decisions_and_what_is_refused(url: str, state: State) -> None:
    status, told, _ = ask(url, "POST", "/api/accept/1", **{"X-Pad": "1"})
    assert (status, told["version"], told["normals"]) == (200, 2, [1])
    assert ask(url, "POST", "/api/accept/1", **{"X-Pad": "1"})[0] == 409
    status, told, _ = ask(url, "POST", "/api/reject/2?name=scratched", **{"X-Pad": "1"})
    assert {p["id"]: (p["status"], p["name"]) for p in told["proposals"]} == {
        1: ("accepted", ""),
        2: ("rejected", "scratched"),
    }
    status, told, _ = ask(url, "POST", "/api/rollback", **{"X-Pad": "1"})
    assert told["normals"] == []
    assert [d["what"] for d in told["decisions"]] == ["rollback", "reject", "accept"]
    assert {d["by"] for d in told["decisions"]} == {"page"}
    with state.transaction():
        state.set_fact("adopt", "never")
    assert ask(url, "POST", "/api/accept/1", **{"X-Pad": "1"})[0] == 409
    assert state.version().normals == ()


def test_other_pages_and_other_hosts_are_shut_out(url: str, state: State) -> None:
    assert ask(url, "POST", "/api/accept/1")[0] == 403  # what a form of another page could send
    assert (
        ask(url, "GET", "/api/state", Host="evil.example")[0] == 403
    )  # a name that was bent to this machine
    assert ask(url, "GET", "/api/state", Host="localhost:1")[0] == 200
    assert state.version().normals == ()
    _, _, headers = ask(url, "GET", "/")
    policy = {name.lower(): value for name, value in headers.items()}["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert url.startswith("http://127.0.0.1:")


def test_news_come_as_events(url: str, state: State) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("GET", f"/api/stream?after={EVENTS - 1}")
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")

    def message() -> tuple[str, Any]:
        lines = []
        while line := response.readline().decode().rstrip("\n"):
            lines.append(line)
        fields = dict(line.split(": ", 1) for line in lines)
        return fields["event"], json.loads(fields["data"])

    assert [(kind, len(data)) for kind, data in [message()]] == [("pictures", 1)]
    kind, data = message()
    assert (kind, data["counts"]["events"]) == ("state", EVENTS)
    with state.transaction():
        flagged(state, "new.png")
    kind, data = message()
    assert (kind, data[0]["path"]) == ("pictures", "new.png")
    connection.close()


@pytest.fixture
def ringing(state: State) -> State:
    """The state of a watcher with --online-fdr 0.1: every fifth flagged picture has raised an alarm."""
    rule = OnlineFdr(0.1, 200)
    rule.resume(json.dumps({"rate": 0.1, "n": 200, "seen": 7, "alarms": 1}))
    with state.transaction():
        state.set_fact("online_fdr", rule.dump())
        for event in state.events(limit=EVENTS):
            state.set_alarm(event, event.verdict == "anomaly" and event.id % 50 == 1)
    return state


def test_alarms_are_told(url: str, state: State, ringing: State) -> None:
    _, told, _ = ask(url, "GET", "/api/state")
    rang = [event.id for event in state.events(limit=EVENTS) if event.alarm]
    assert len(rang) == 200
    rule = told["online_fdr"]
    latest = rule.pop("latest")
    # The second alarm of a period takes a rank of at most 2: 0.1 * 201 * 2 / (10 * 11/6) = 2.19.
    assert rule == {"rate": 0.1, "period": 10, "seen": 7, "alarms": 1, "level": 2 / 201, "raised": 200}
    assert [event["id"] for event in latest] == rang[:-21:-1]
    _, found, _ = ask(url, "GET", "/api/events?alarms=true")
    assert [event["id"] for event in found] == rang[:-61:-1]
    assert {event["alarm"] for event in found} == {True}
    with state.transaction():
        state.set_fact("online_fdr", None)
    assert ask(url, "GET", "/api/state")[1]["online_fdr"] is None


def wait_for(what: Callable[[], Any]) -> Any:
    limit = time.monotonic() + 30
    while not (found := what()):
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.05)
    return found


def text(browser: Any, element: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", element)


def press(browser: Any, key: str) -> None:
    browser.execute_script(
        "document.activeElement.dispatchEvent("
        "new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))",
        key,
    )


@pytest.mark.browser
def test_the_page_in_a_browser(browser: Any, url: str, state: State) -> None:
    browser.get_log("browser")
    browser.get(url)
    wait_for(lambda: text(browser, "link") == "live")
    wait_for(lambda: text(browser, "events").replace(",", "") == str(EVENTS))
    assert browser.execute_script("return document.querySelectorAll('#stream .item').length") == 60
    names = browser.execute_script(
        "return [...document.querySelectorAll('#stream .item')].map(i => i.textContent)"
    )
    assert EVIL in names[0]  # as text
    assert "the file is empty" in names[1]
    assert "darker" in text(browser, "history")
    assert "5 %" in text(browser, "rate-words")

    with state.transaction():
        flagged(state, "just-now.png")
    wait_for(lambda: "just-now.png" in text(browser, "stream"))
    browser.execute_script("document.getElementById('only').click()")
    wait_for(lambda: "the file is empty" not in text(browser, "stream"))
    kinds = browser.execute_script(
        "return [...document.querySelectorAll('#stream .item')].map(i => i.className)"
    )
    assert set(kinds) == {"item anomaly"}
    browser.execute_script("document.getElementById('older').click()")
    wait_for(
        lambda: browser.execute_script("return document.querySelectorAll('#stream .item').length") == 120
    )

    press(browser, "p")
    focused = browser.execute_script("return document.activeElement.dataset.id")
    assert focused == "2"
    press(browser, "a")
    wait_for(lambda: state.version().normals == (2,))
    wait_for(lambda: text(browser, "version") == "2")
    browser.execute_script("document.querySelector('.proposal[tabindex] input').value = '<b>torn</b>'")
    press(browser, "p")
    press(browser, "r")
    wait_for(lambda: [p.name for p in state.proposals("rejected")] == ["<b>torn</b>"])
    wait_for(lambda: "<b>torn</b>" in text(browser, "proposals"))
    browser.execute_script("document.getElementById('rollback').click()")
    wait_for(lambda: state.version().normals == ())
    wait_for(lambda: "rollback proposal 2" in text(browser, "history"))
    assert [
        entry
        for entry in browser.get_log("browser")
        if entry["level"] == "SEVERE" and "404" not in entry["message"]
    ] == []


def visible(browser: Any) -> list[bool]:
    """Whether each part of the page that is about alarms can be seen."""
    return browser.execute_script(
        "return [...document.querySelectorAll('[data-alarms]')].map(node => node.offsetHeight > 0)"
    )


@pytest.mark.browser
def test_alarms_in_a_browser(browser: Any, url: str, state: State, ringing: State) -> None:
    browser.get_log("browser")
    browser.get(url)
    wait_for(lambda: text(browser, "raised") == "200")
    assert visible(browser) == [True] * 3
    words = text(browser, "alarms-words")
    assert "At most 10 % of a period's alarms are false" in words
    assert (
        "Picture 7 of 10 of this period, 1 alarm in it; the next one takes a p-value of at most 0.010."
        in words
    )
    assert browser.execute_script("return document.querySelectorAll('#alarms li').length") == 20
    with state.transaction():
        event = Event("now.png", time.time(), b"", 9.0, 0.004, "anomaly", thumbnail=jpeg(200))
        assert state.add_event(event)
        state.set_alarm(event, True)
        quiet = Event("quiet.png", time.time(), b"", 3.0, 0.04, "anomaly")
        assert state.add_event(quiet)
        state.set_alarm(quiet, False)
    wait_for(lambda: text(browser, "raised") == "201" and "quiet.png" in text(browser, "stream"))
    newest = "return [...document.querySelectorAll('#stream .item')].slice(0, 2).map(i => i.textContent)"
    assert [
        "alarm" in shown.split() or shown.endswith("alarm") for shown in browser.execute_script(newest)
    ] == [
        False,
        True,
    ]
    assert "now.png, p-value 0.0040" in text(browser, "alarms")
    press(browser, "l")
    wait_for(lambda: "quiet.png" not in text(browser, "stream"))
    wait_for(lambda: browser.execute_script("return document.querySelectorAll('.item .bell').length") == 60)
    assert browser.execute_script("return document.activeElement.id") == "stream"
    with state.transaction():
        state.set_fact("online_fdr", None)  # a watcher that was started again without
    wait_for(lambda: visible(browser) == [False] * 3)
    wait_for(lambda: "quiet.png" in text(browser, "stream"))
    assert [entry for entry in browser.get_log("browser") if "Error" in entry["message"]] == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone(browser: Any, scheme: str, url: str, ringing: State) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(url)
        wait_for(lambda: text(browser, "raised") == "200")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        shade = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, shade[4:-1].split(","))) < 300) == (scheme == "dark")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_page_ends_with_its_watcher(state: State) -> None:
    """Also while somebody looks at the stream."""
    with served(state.folder, 0) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("GET", "/api/stream")
        response = connection.getresponse()
        assert response.readline()
    connection.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "page"]
