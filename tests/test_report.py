"""The report: one self-contained file, safe whatever the files are called, and usable in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pad.config import Config
from pad.errors import PadError
from pad.judging.calibration import Calibration
from pad.judging.map_scale import MapScale
from pad.judging.summary import Row, make_row, summarize
from pad.showing.report import ReportWriter, project

EVIL = "<script>alert(1)</script>.png"
NAMES = [EVIL, "</script><img src=x onerror=alert(2)>.png", "a\u2028b & 'c' \"d\".png",
         os.fsdecode(b"latin-\xe9.png"), "deep/folder/図.png",
         "{{ 7 * 7 }}.png", "javascript:alert(3)", "\u202egnp.exe"]  # fmt: skip


def texture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    noise = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def write(
    path: Path, images: int = 120, *, labels: bool = True, calibrated: bool = True, **options: object
) -> list[Row]:
    """A report of made-up images, the last two of them unreadable."""
    rng = np.random.default_rng(0)
    calibration = Calibration(rng.gamma(20, 0.05, 199)) if calibrated else None
    rows = []
    with ReportWriter(path, calibration=calibration, fpr=0.05, config=Config(size=32, channels=3),
                      scale=MapScale(0.5, 2.0), model="a <b>model</b>", card={"recipe": {"note": EVIL}},
                      command="python evaluate.py '<script>'", **options) as report:  # fmt: skip
        for i in range(images):
            anomalous = i % 4 == 0
            score = float(rng.gamma(20, 0.05)) * (1.7 if anomalous else 1)
            name = NAMES[i // 4] if anomalous and i // 4 < len(NAMES) else f"images/{i:04d}.png"
            kind = ("<i>hole</i>", "cut")[i // 4 % 2] if anomalous else "good"
            row = make_row(name, score, calibration, 0.05, "", *((anomalous, kind) if labels else ()))
            anomaly_map = rng.gamma(2, 0.2, (32, 32)).astype(np.float32)
            report.add(
                row,
                texture(rng, 60 + i % 60, 90),
                np.zeros((3, 32, 32)),
                anomaly_map,
                rng.normal(size=(8, 1, 1)),
            )
            rows.append(row)
        for name in (f"broken {EVIL}", "empty.png"):
            rows.append(make_row(name, None, calibration, 0.05, error="is <b>truncated</b>"))
            report.add(rows[-1])
        report.finish(summarize(rows, calibration, 0.05, resamples=50))
    return rows


def data_of(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_names_are_text_everywhere(tmp_path: Path):
    rows = write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "alert(1)</script>" not in text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "\u2028" not in text
    assert "broken &lt;script&gt;alert(1)" in text
    assert "is &lt;b&gt;truncated&lt;/b&gt;" in text
    assert "a &lt;b&gt;model" in text
    raw = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert not set(raw) & set("<>&\u2028")
    data = data_of(text)
    assert sorted(data["paths"]) == sorted(row.path for row in rows if row.score is not None)


def test_nothing_in_it_points_to_the_network(tmp_path: Path):
    write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not a link
    assert not re.findall(r"<(?:link|script|img|iframe|object|embed)[^>]*(?:src|href)=\"(?!data:)[^\"]", text)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1].replace(
        "&#39;", "'"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_data_is_sorted_and_complete(tmp_path: Path):
    rows = write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    data = data_of(text)
    assert data["scores"] == sorted(data["scores"], reverse=True)
    assert [rows[i].path for i in data["row"]] == data["paths"]
    assert data["labels"] == [int(rows[i].anomalous) for i in data["row"]]
    assert [data["kinds"][k] for k in data["kind"]] == [rows[i].kind for i in data["row"]]
    assert data["unreadable"] == 2
    assert len(data["xy"][0]) == len(data["paths"]) == 120
    assert min(data["xy"][0]) == 0
    assert max(data["xy"][1]) == 1
    flagged = sum(score >= data["threshold"] for score in data["scores"])
    assert flagged == sum(row.verdict == "anomaly" for row in rows)


def test_thumbnails_are_strips_of_three(tmp_path: Path):
    rows = write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    lines = [
        line
        for block in re.findall(r'class="thumbnails">(.*?)</script>', text, re.DOTALL)
        for line in block.split("\n")
    ]
    assert len(lines) == 120
    order = data_of(text)["row"]
    for line, index in zip(lines[:10], order, strict=False):
        strip = Image.open(io.BytesIO(base64.b64decode(line)))
        width, height = 60 + index % 60, 90
        wanted = 3 * round(width * 96 / max(width, height)), round(height * 96 / max(width, height))
        assert strip.size == pytest.approx(wanted, abs=3) or max(width, height) < 96
    large = re.search(r'id="large">(.*?)</script>', text, re.DOTALL)[1].split("\n")
    assert len(large) == 48
    assert len(rows) == 122


def test_ten_thousand_images_fit_into_sixty_megabytes(tmp_path: Path):
    """Measured here on pure noise, which nothing can compress; in full by benchmarks/report.py."""
    rng = np.random.default_rng(0)
    rows = []
    with ReportWriter(tmp_path / "r.html", calibration=None, fpr=0.05, config=Config(channels=3)) as report:
        start = time.perf_counter()
        for i in range(100):
            image = Image.fromarray(rng.integers(0, 255, (100, 100, 3), dtype=np.uint8))
            rows.append(Row(f"a/quite/long/path/to/some/image-{i}.png", float(i)))
            report.add(
                rows[-1], image, rng.uniform(-1, 1, (3, 32, 32)), rng.random((32, 32)), rng.normal(size=32)
            )
        seconds = time.perf_counter() - start
        report.finish(summarize(rows, None, 0.05))
    text = (tmp_path / "r.html").read_text("utf-8")
    thumbnails = "".join(re.findall(r'class="thumbnails">(.*?)</script>', text, re.DOTALL))
    assert len(thumbnails) / 100 < 4900
    rest = len(text) - len(thumbnails) - len(re.search(r'id="large">(.*?)</script>', text, re.DOTALL)[1])
    assert 4900 * 10_000 + rest / 100 * 10_000 < 58e6
    assert seconds < 10  # 1.0 s measured
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_pictures_of_the_most_anomalous_only(tmp_path: Path):
    write(tmp_path / "report.html", limit=10)
    text = (tmp_path / "report.html").read_text("utf-8")
    blocks = re.findall(r'class="thumbnails">(.*?)</script>', text, re.DOTALL)
    assert sum(len(block.split("\n")) for block in blocks) == 10
    assert "pictures are shown of the 10 most anomalous images" in text
    assert len(data_of(text)["scores"]) == 120


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("calibrated", [True, False])
def test_few_images(tmp_path: Path, images: int, calibrated: bool):
    write(tmp_path / "report.html", images, labels=False, calibrated=calibrated)
    data = data_of((tmp_path / "report.html").read_text("utf-8"))
    assert data["labels"] is None
    assert data["xy"] is None
    assert (data["threshold"] is None) != calibrated


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    with (
        pytest.raises(RuntimeError),
        ReportWriter(tmp_path / "report.html", calibration=None, fpr=0.05, config=Config()),
    ):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(PadError, match="cannot write"):
        ReportWriter(tmp_path / "file" / "report.html", calibration=None, fpr=0.05, config=Config())


def test_projections(tmp_path: Path):
    with pytest.raises(PadError, match="pca or umap, not 'tsne'"):
        ReportWriter(tmp_path / "r.html", calibration=None, fpr=0.05, config=Config(), projection="tsne")
    rng = np.random.default_rng(0)
    clusters = np.repeat(rng.normal(0, 10, (2, 16)), 20, axis=0) + rng.normal(size=(40, 16))
    points, caption = project(clusters.astype(np.float32), "pca")
    assert abs(points[:20, 0].mean() - points[20:, 0].mean()) > 10 * points[:20, 0].std()
    assert "% of the variance" in caption
    assert project(np.ones((5, 1), np.float32), "pca")[0].shape == (5, 2)
    try:
        import umap  # noqa: F401
    except ImportError:
        with pytest.raises(PadError, match=r"pad-anomaly\[umap\]"):
            ReportWriter(tmp_path / "r.html", calibration=None, fpr=0.05, config=Config(), projection="umap")


# In a browser --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory: pytest.TempPathFactory):
    """The browser with a report opened from disk, and its rows, the most anomalous first."""
    folder = tmp_path_factory.mktemp("report")
    rows = write(folder / "report.html", 400)
    browser.get((folder / "report.html").as_uri())
    return browser, sorted((r for r in rows if r.score is not None), key=lambda r: -r.score), folder


def names(browser) -> list[str]:
    """The names in view, in the order of the gallery."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.item')].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)"
        ".map((item) => item.title)"
    )


def tile(browser, name: str) -> str:
    return browser.execute_script(
        "return document.querySelector(`[data-name='${arguments[0]}'] b`).textContent", name
    )


def choose(browser, element: str, value: str) -> None:
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "for (const name of ['input', 'change']) e.dispatchEvent(new Event(name, {bubbles: true}));",
        element,
        value,
    )


@pytest.mark.browser
def test_gallery_sorts_and_filters(opened):
    browser, rows, _ = opened
    browser.execute_script("document.getElementById('toolbar').scrollIntoView()")
    time.sleep(0.2)
    shown = names(browser)
    assert 6 <= len(shown) < 120  # nodes only for what is in view
    expected = [r.path.encode("utf-8", "replace").decode().replace("?", "") for r in rows]
    assert [s.replace("\ufffd", "") for s in shown] == expected[: len(shown)]
    choose(browser, "sort", "low")
    assert names(browser)[:5] == [r.path for r in rows[::-1][:5]]
    choose(browser, "sort", "name")
    assert names(browser)[1:] == sorted(names(browser)[1:])
    choose(browser, "sort", "high")
    choose(browser, "show", "false")
    wrong = [r.path for r in rows if r.verdict == "anomaly" and r.anomalous is False]
    assert names(browser)[: len(wrong)] == wrong[: len(names(browser))]
    choose(browser, "show", "all")
    choose(browser, "kind", "cut")
    assert all(r.kind == "cut" for r in rows if r.path in names(browser))
    choose(browser, "kind", "")
    choose(browser, "search", "ALERT(1)")
    assert names(browser) == [EVIL]
    choose(browser, "search", "no such image")
    assert names(browser) == []
    assert browser.find_element("id", "empty").is_displayed()
    choose(browser, "search", "")


@pytest.mark.browser
def test_threshold_moves_and_recounts_at_once(opened):
    browser, rows, _ = opened
    flagged = sum(r.verdict == "anomaly" for r in rows)
    assert tile(browser, "flagged") == str(flagged)
    false = sum(r.verdict == "anomaly" and not r.anomalous for r in rows)
    assert tile(browser, "false alarms") == str(false)
    slider = browser.find_element("id", "slider")
    slider.send_keys("\ue014" * 30)  # the right arrow key
    threshold = float(browser.find_element("id", "threshold").get_attribute("value"))
    assert tile(browser, "flagged") == str(sum(r.score >= threshold for r in rows)) != str(flagged)
    for percent in ("1", "20", "0.1"):
        choose(browser, "rate", percent)
        assert tile(browser, "flagged") == str(sum(r.p_value <= float(percent) / 100 for r in rows))
    assert tile(browser, "flagged") == "0"
    choose(browser, "threshold", "0.9")
    assert tile(browser, "flagged") == str(sum(r.score >= 0.9 for r in rows))
    browser.find_element("id", "reset").click()
    assert tile(browser, "flagged") == str(flagged)


@pytest.mark.browser
def test_keyboard_reaches_every_image(opened):
    browser, rows, _ = opened
    arrow = {"right": "\ue014", "left": "\ue012", "down": "\ue015", "end": "\ue010", "home": "\ue011"}
    gallery = browser.find_element("id", "list")

    def chosen() -> int:
        facts = browser.find_element("id", "facts").text
        return int(re.search(r"rank\n(\d+) of 400", facts)[1])

    gallery.send_keys(arrow["home"])
    assert chosen() == 1
    gallery.send_keys(arrow["right"] * 3)
    assert chosen() == 4
    gallery.send_keys(arrow["left"])
    assert chosen() == 3
    gallery.send_keys(arrow["down"])
    assert chosen() > 4
    gallery.send_keys(arrow["end"])
    assert chosen() == 400
    time.sleep(0.2)
    active = gallery.get_attribute("aria-activedescendant")
    box = browser.find_element("id", active).rect
    top = browser.execute_script("return window.scrollY")
    assert top <= box["y"]
    assert box["y"] + box["height"] <= top + 1000
    assert names(browser)[-1] == rows[-1].path
    gallery.send_keys(arrow["home"])
    browser.find_element("id", "next").click()
    assert chosen() == 2
    assert f"{rows[1].score:.4g}"[:5] in browser.find_element("id", "facts").text
    browser.find_element("id", "scatter").send_keys(arrow["right"])
    assert chosen() != 2


@pytest.mark.browser
def test_a_region_of_the_map_filters_the_gallery(opened):
    browser, _, _ = opened
    from selenium.webdriver import ActionChains

    canvas = browser.find_element("id", "scatter")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(browser).move_to_element_with_offset(canvas, -120, -100).click_and_hold().move_by_offset(
        150, 120
    ).release().perform()
    shown = browser.find_element("id", "shown").text
    inside = int(shown.split(" of ")[0])
    assert 0 < inside < 400
    browser.find_element("id", "clear-brush").click()
    assert browser.find_element("id", "shown").text == "400 images"


@pytest.mark.browser
def test_no_request_leaves_the_file_and_no_error_is_logged(opened):
    browser, _, folder = opened
    until = time.monotonic() + 30  # the gallery is drawn after the page, a picture after its place
    shown = (
        "document.getElementById('list').scrollIntoView();"  # what is not seen is not drawn
        "return document.images.length > 6 && [...document.images].every((i) => i.complete)"
    )
    while not browser.execute_script(shown) and time.monotonic() < until:
        time.sleep(0.1)
    assert browser.execute_script("return document.images.length") > 6
    assert browser.execute_script(
        "return [...document.querySelectorAll('.item img')].every((i) => i.complete && i.naturalWidth)"
    )
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [url for url in urls if not url.startswith("chrome:")]  # the browser's own first page
    assert (folder / "report.html").as_uri() in urls
    assert {url.split(":")[0] for url in urls} <= {"file", "data", "blob"}
    assert [url for url in urls if url.startswith("file:")] == [(folder / "report.html").as_uri()]
    assert browser.get_log("browser") == []


def write_scores_of(
    path: Path,
    scores: list[float],
    calibrated: int,
    fpr: float = 0.05,
    views: list[dict[str, float]] | None = None,
    **options: object,
) -> None:
    """A report of pictures of 300x200 pixels with these scores and p-values in the views; calibrated on so
    many."""
    rng = np.random.default_rng(0)
    calibration = Calibration(rng.gamma(20, 0.05, calibrated)) if calibrated else None
    rows = []
    with ReportWriter(path, calibration=calibration, fpr=fpr, config=Config(size=32, channels=1),
                      **{"scale": MapScale(0.5, 2.0), **options}) as report:  # fmt: skip
        for i, score in enumerate(scores):
            of_views = views[i] if views else {}
            rows.append(make_row(f"images/{i}.png", score, calibration, fpr, views=of_views))
            report.add(
                rows[-1], texture(rng, 300, 200), np.zeros((1, 32, 32)), np.ones((32, 32)), rng.normal(size=8)
            )
        report.finish(summarize(rows, calibration, fpr))


@pytest.fixture
def phone(browser) -> Iterator[object]:
    """The browser with the screen of a phone: a function that sets its width."""

    def set_width(width: int) -> None:
        screen = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    yield set_width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 360, 390])
def test_a_phone_shows_it_without_scrolling_sideways(browser, phone, tmp_path: Path, width: int):
    write(tmp_path / "r.html", 40)
    phone(width)
    browser.get((tmp_path / "r.html").as_uri())
    panel = browser.find_element("id", "chosen")
    assert not panel.is_displayed()
    for _ in range(2):
        assert browser.execute_script("return document.documentElement.scrollWidth") == width
        browser.execute_script("document.getElementById('list').scrollIntoView()")
        time.sleep(0.2)
        browser.execute_script("document.querySelector('.item').click()")
        assert panel.is_displayed()
    browser.find_element("id", "close").click()
    assert not panel.is_displayed()
    browser.find_element("css selector", "#list").send_keys("\ue007")  # the Enter key: enlarged
    assert browser.find_element("id", "viewer").is_displayed()
    assert browser.execute_script(
        "const box = document.getElementById('viewer'); return box.scrollWidth <= box.clientWidth"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


@pytest.mark.browser
def test_a_rate_that_cannot_be_held_says_why(browser, tmp_path: Path):
    write_scores_of(tmp_path / "r.html", [1.0, 2.0, 9.0], 50, fpr=0.01)
    browser.get((tmp_path / "r.html").as_uri())
    sentence = browser.find_element("id", "sentence")
    why = Calibration(np.arange(50)).note(0.01)
    assert sentence.text == f"{why}."
    assert tile(browser, "false-alarm rate") == "0 %"
    choose(browser, "rate", "0.4")
    assert sentence.text == (
        "50 calibration images cannot hold a false-alarm rate of 0.4 %, so nothing is flagged; the lowest "
        "they can hold is 2 %. For 0.4 %, calibrate on at least 249 normal images."
    )
    assert Calibration(np.arange(50)).note(0.004).endswith("calibrate on at least 249 normal images")
    choose(browser, "rate", "2")
    assert tile(browser, "flagged") != "0"
    assert "score at least" in sentence.text
    browser.find_element("id", "slider").send_keys("\ue010")  # the End key: by hand, no rate is asked for
    assert sentence.text == "Nothing is flagged."
    browser.find_element("id", "reset").click()
    assert sentence.text == f"{why}."
    write_scores_of(tmp_path / "r.html", [1.0, 2.0], 0)
    browser.get((tmp_path / "r.html").as_uri())
    assert "the model has no calibration" in browser.find_element("id", "sentence").text


@pytest.mark.browser
@pytest.mark.parametrize(
    ("scores", "expected"),
    [([], "linear"), ([12.0, 9.0], "logarithmic"), ([9e4, 8e4], "zoomed"), ([-50.0, 900.0], "zoomed")],
)
def test_a_few_extreme_scores_do_not_squash_the_rest(
    browser, tmp_path: Path, scores: list[float], expected: str
):
    rng = np.random.default_rng(1)
    write_scores_of(tmp_path / "r.html", [*rng.gamma(20, 0.05, 60), *scores], 100)
    browser.get((tmp_path / "r.html").as_uri())
    assert browser.find_element("id", "scale").get_attribute("value") == expected

    def bars() -> int:
        return browser.execute_script("return document.querySelectorAll('#histogram .f-normal').length")

    shown = bars()
    assert shown >= 8
    threshold, flagged = (
        browser.find_element("id", "threshold").get_attribute("value"),
        tile(browser, "flagged"),
    )
    if scores:
        choose(browser, "scale", "linear")
        assert bars() <= shown / 2
    # The axis changes what is seen, and nothing of the result.
    assert browser.find_element("id", "threshold").get_attribute("value") == threshold
    assert tile(browser, "flagged") == flagged
    for scale in browser.execute_script(
        "return [...document.getElementById('scale').options].map((o) => o.value)"
    ):
        choose(browser, "scale", scale)
        texts = browser.execute_script(
            "return [...document.querySelectorAll('#histogram text')].map((t) => t.textContent)"
        )
        assert ("and above" in texts) == (scale == "zoomed")
        browser.find_element("id", "slider").send_keys("\ue014")  # the right arrow key
        moved = float(browser.find_element("id", "threshold").get_attribute("value"))
        assert tile(browser, "flagged") == str(sum(s >= moved for s in [*rng_scores(60), *scores]))
    assert browser.get_log("browser") == []


def rng_scores(count: int) -> list[float]:
    return [float(np.float32(s)) for s in np.random.default_rng(1).gamma(20, 0.05, count)]


@pytest.mark.browser
def test_the_views_that_speak_are_named(browser, tmp_path: Path):
    views = [{"whole": 0.5, "parts": 0.01}, {"whole": 0.25, "parts": 0.25}, {"whole": 0.04, "parts": 0.7}]
    write_scores_of(tmp_path / "r.html", [3.0, 1.0, 2.0], 20, views=views)
    assert data_of((tmp_path / "r.html").read_text("utf-8"))["views"] == {
        "whole": [0.5, 0.04, 0.25], "parts": [0.01, 0.7, 0.25]
    }  # fmt: skip
    browser.get((tmp_path / "r.html").as_uri())
    facts = browser.find_element("id", "facts").text
    assert "by parts\np 0.01 · speaks\nby whole\np 0.5\n" in facts
    browser.find_element("id", "next").click()
    assert "by whole\np 0.04 · speaks" in browser.find_element("id", "facts").text
    write_scores_of(tmp_path / "r.html", [3.0], 20, views=[{"whole": 0.5}])
    assert (
        data_of((tmp_path / "r.html").read_text("utf-8"))["views"] is None
    )  # of one there is nothing to say


@pytest.mark.browser
def test_a_picture_is_shown_with_its_size_its_scale_and_enlarged(browser, tmp_path: Path):
    write_scores_of(tmp_path / "r.html", [3.0, 1.0, 2.0], 20)
    browser.get((tmp_path / "r.html").as_uri())
    facts = browser.find_element("id", "facts").text
    assert "picture\n300 × 200 px" in facts
    assert "the model sees\nits centre, 200 × 200 px, as 32 × 32 px, grey" in facts
    bar = browser.find_element("css selector", "#chosen .bar")
    assert bar.text.split() == ["0.5", "2"]
    assert len(bar.find_elements("css selector", "rect")) == 32
    viewer = browser.find_element("id", "viewer")
    assert not viewer.is_displayed()
    browser.find_element("css selector", "#panes .pane").click()
    assert viewer.is_displayed()
    name = browser.find_element("id", "viewer-name")
    assert name.text == "0.png"

    def drawn() -> tuple[float, float]:
        """The map's opacity, and the proportions of the pane that it lies in."""
        return browser.execute_script(
            "const p = document.getElementById('viewer-input'), box = p.getBoundingClientRect();"
            "return [+getComputedStyle(p.lastChild).opacity, box.width / box.height]"
        )

    time.sleep(0.2)
    assert drawn() == pytest.approx([0.5, 1.5], abs=0.03)
    for percent in ("0", "100"):
        choose(browser, "opacity", percent)
        assert drawn()[0] == float(percent) / 100
    viewer.send_keys("\ue014")  # the right arrow key
    assert name.text == "2.png"
    assert drawn()[0] == 1
    viewer.send_keys("\ue014")
    assert name.text == "1.png"
    assert not browser.find_element("id", "viewer-next").is_enabled()
    viewer.send_keys("\ue012")  # left
    assert name.text == "2.png"
    viewer.send_keys("\ue00c")  # Escape
    assert not viewer.is_displayed()
    browser.find_element("tag name", "body").send_keys("\ue014")  # without a gallery in focus
    assert browser.find_element("id", "chosen-name").text == "1.png"
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_edge_cases_open_without_an_error(browser, tmp_path: Path):
    for images, calibrated in ((0, True), (1, False), (3, True)):
        write(tmp_path / "r.html", images, labels=images == 3, calibrated=calibrated)
        browser.get((tmp_path / "r.html").as_uri())
        assert tile(browser, "flagged").isdigit()
        assert browser.get_log("browser") == []
