"""What is published: one version, one name, and messages that install what they say."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest

import pad

ROOT = Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
NAME = SETUP["metadata"]["name"]
EXTRA = re.compile(r"([\w-]+)\[(\w+)\]['\"`]")


def texts() -> list[Path]:
    """What users read: code with its messages, pages, scripts."""
    folders = ("pad", "examples", "benchmarks", "docs", "zoo")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [p for p in [*ROOT.glob("*.md"), *found] if p.suffix in (".py", ".md", ".ipynb", ".sh", ".j2")]


def test_the_changelog_begins_with_this_version() -> None:
    head = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert head is not None
    assert head[1] == pad.__version__


def test_a_tag_is_that_of_this_version() -> None:
    """A release is a commit tagged vVERSION; nothing else may be tagged so."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: there are no tags")
    tags = subprocess.run(
        ["git", "tag", "--points-at", "HEAD", "v*"], cwd=ROOT, capture_output=True, text=True
    )
    assert tags.returncode == 0, tags.stderr
    assert set(tags.stdout.split()) <= {f"v{pad.__version__}"}


def test_extras_are_asked_for_by_the_name_of_the_distribution() -> None:
    asked = [
        (path.name, name, extra)
        for path in texts()
        for name, extra in EXTRA.findall(path.read_text(encoding="utf-8"))
    ]
    assert not [where for where in asked if where[1] == "pad"]
    extras = [where for where in asked if where[1] == NAME]
    assert not [where for where in extras if where[2] not in SETUP["options.extras_require"]]
    assert len(extras) > 8


def test_all_packages_of_the_tree_are_published() -> None:
    listed = SETUP["options"]["packages"].split()
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "pad").rglob("__init__.py")}
    assert set(listed) == found | {"pad.zoo"}
