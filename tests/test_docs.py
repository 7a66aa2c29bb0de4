"""The pages: what is measured comes from a result in the tree, links lead somewhere, the site builds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import tables  # noqa: E402

from pad.commands.parser import command_line  # noqa: E402
from pad.errors import PadError  # noqa: E402

LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)|(?:src|srcset)=\"([^\"]*)\"")


BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^(?:pad |python (?=(?:train|evaluate)\.py ))(.*)$")


def commands(page: Path) -> list[str]:
    """What the blocks of a page say to type after `pad`, a line each; a line that is indented goes on."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    lines = [part for block in blocks for part in re.split(r"\n(?! )|&& ", block)]
    return [
        found[1].replace(".py", "", 1) for line in lines if (found := COMMAND.match(" ".join(line.split())))
    ]


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them of plain words."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_measured_number_comes_from_a_result() -> None:
    assert tables.faults() == []


def test_a_changed_number_is_told(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in tables.ARCHIVED:
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index("<!-- from: photographs-in-short -->")
    changed = text[:start] + re.sub(r"0\.\d\d\d", "0.999", text[start:], count=1) + "It takes 12 ms, 0.123.\n"
    (tmp_path / "README.md").write_text(changed, encoding="utf-8")
    told = "\n".join(tables.faults(tmp_path))
    assert "README.md: 'photographs-in-short' is not what its result says" in told
    assert "12 ms' comes from no result" in told
    assert "0.123' comes from no result" in told


def test_numbers_in_a_line_are_means_of_what_is_named() -> None:
    rows = [r for r in tables.result("photographs")["results"]
            if r["task"] == "dogs" and r["normals"] == 60 and r["method"] == "pad"]  # fmt: skip
    expected = 100 * sum(r["found"]["0.05"] for r in rows) / len(rows)
    words = ["photographs", "task=dogs", "normals=60", "method=pad", "found.0.05", ".1%"]
    assert tables.number(words) == f"{expected:.1f} %"
    with pytest.raises(PadError, match="no result that is task=horses"):
        tables.number(["photographs", "task=horses", "roc_auc", ".3f"])
    with pytest.raises(PadError, match=r"nowhere\.json is not there"):
        tables.number(["nowhere", "roc_auc", ".3f"])


def test_results_say_where_they_come_from() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        content = tables.result(path.stem)
        if path.stem == "published":
            assert all(re.search(r"\(.*, \d{4}\)$", row["method"]) for row in content["results"])
            continue
        assert content["command"].startswith("python benchmarks/"), path
        assert re.match(r"[0-9a-f]{7,}", str(content["versions"]["commit"])), path


def test_links_between_pages_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target, anchor, picture in LINK.findall(page.read_text(encoding="utf-8")):
            if re.match(r"https?:", target or picture):
                continue
            found = page.parent / (target or picture or page.name)
            assert found.exists(), f"{page.name}: {target or picture}"
            if anchor and found.suffix == ".md":
                assert anchor[1:] in anchors(found), f"{page.name}: {target}{anchor}"


def test_the_site_builds_without_a_warning_and_asks_nobody(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement of the theme's, no warning
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr.replace("_WARNING", "")  # the name of a variable
    loaded = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|srcset|href)=\"?https?:[^>]*>")
    for page in tmp_path.rglob("*.html"):
        assert not loaded.findall(page.read_text(encoding="utf-8")), page
    assert "Detector" in (tmp_path / "api.html").read_text(encoding="utf-8")


def test_every_command_of_the_pages_is_one() -> None:
    """README.md's are run (test_newcomer.py); these are at least understood."""
    read = 0
    for page in sorted((ROOT / "docs").glob("*.md")):
        for line in commands(page) if page.name != "reference.md" else []:
            command_line().parse_args(shlex.split(line, comments=True))
            read += 1
    assert read > 12


def test_the_reference_names_the_options_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "reference.md"
    listed, named = commands(page), set(re.findall(r"--[a-z-]+", page.read_text(encoding="utf-8")))
    assert len(listed) > 8
    for line in listed:
        name = line.split()[0]
        with pytest.raises(SystemExit):
            command_line().parse_args([name, *(["accept"] if "accept ID" in line else []), "--help"])
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert set(re.findall(r"--[a-z-]+", line)) <= known, line
        assert known - {"--help", "--verbose", "--quiet"} <= named, line
