"""Real images that the tests share; how they were made: tests/make_data.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pad.config import Config

DATA = Path(__file__).parent / "data"


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
