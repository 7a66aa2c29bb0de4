"""The pictures of the report in README.md and docs/: taken in Chromium from an evaluation made for them.

    pip install scikit-image selenium            # and chromium with chromedriver
    python benchmarks/screenshots.py             # docs/report.png, docs/report-dark.png

Gravel is cut from scikit-image's photograph (`zoo/make_surfaces.py`), judged by `zoo:surfaces/gravel`, and
one image with a square pasted in is chosen. All that is shown is CC0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs import exit_status

from pad.errors import PadError

ROOT = Path(__file__).resolve().parent.parent
SCHEMES = {"light": "report.png", "dark": "report-dark.png"}
MODEL = "zoo:surfaces/gravel"
CHOSEN = "pasted/004"  # a part of the path of the image that is shown large
WIDTH, HEIGHT = 1280, 1000  # of what is shown, in pixels


def evaluate(folder: Path) -> Path:
    """The report of all test images of gravel."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (
        [str(ROOT / "zoo" / "make_surfaces.py"), "surfaces"],
        [
            "-m",
            "pad",
            "evaluate",
            "zoo:surfaces/gravel",
            "surfaces/gravel/test",
            "--out",
            "results",
            "--report",
        ],
    ):
        subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True)
    return folder / "results" / "report.html"


def open_browser(profile: Path) -> Any:
    """Headless Chromium without a scroll bar."""
    from selenium import webdriver

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        raise PadError("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless", "no-sandbox", "hide-scrollbars", f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def take(browser: Any, report: Path, scheme: str, out: Path) -> None:
    """The top of the report, with CHOSEN beside it, in a light or a dark scheme."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    screen = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(report.as_uri())
    search = browser.find_element("id", "search")
    search.send_keys(CHOSEN)
    browser.execute_async_script(
        "const done = arguments[0]; setTimeout(() => {"
        "document.querySelector('.item').click();"
        "const search = document.getElementById('search');"
        "search.value = ''; search.dispatchEvent(new Event('input', {bubbles: true}));"
        "document.activeElement.blur(); window.scrollTo(0, 0); setTimeout(done, 500); }, 500);"
    )
    browser.save_screenshot(str(out))


def run(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = evaluate(Path(folder))
        browser = open_browser(Path(folder) / "profile")
        try:
            for scheme, name in SCHEMES.items():
                take(browser, report, scheme, arguments.out / name)
        finally:
            browser.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR")
    run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(exit_status(main))
