"""Real images that the tests share; how they were made: tests/make_data.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest

from pad.config import Config

DATA = Path(__file__).parent / "data"


def pytest_sessionfinish() -> None:
    forked.stop()


@pytest.fixture(scope="session")
def fashion() -> Path:
    """`train/ankle-boot`: 120 normal images; `test`: a labelled folder, 40 normal and 100 others."""
    return DATA / "fashion"


@pytest.fixture(scope="session")
def boots(fashion: Path) -> Path:
    """A plain folder of 120 normal images, 28x28 grey."""
    return fashion / "train" / "ankle-boot"


@pytest.fixture(scope="session")
def photographs() -> Path:
    """A plain folder of four colour photographs, up to 96 pixels wide."""
    return DATA / "photographs"


@pytest.fixture(scope="session")
def grey() -> Config:
    return Config(size=32, channels=1)


@pytest.fixture(scope="session")
def colour() -> Config:
    return Config(size=32, channels=3)


@pytest.fixture(scope="module")
def browser(one_browser) -> object:
    """The browser, with no page of another module open and none of its messages left."""
    one_browser.get("about:blank")
    for log in ("browser", "performance"):
        one_browser.get_log(log)
    return one_browser


@pytest.fixture(scope="session")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if not chromium or not driver_path:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                     "disable-background-networking", "disable-component-update", "hide-scrollbars",
                     "window-size=1400,1000", f"user-data-dir={profile}"):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()
