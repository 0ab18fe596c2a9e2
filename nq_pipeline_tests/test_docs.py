"""The documentation does what it says: every query runs, every command exists, every link leads somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest

from nq_pipeline import settings_reference
from nq_pipeline.cli import main
from nq_pipeline.lake import catalog, reference
from nq_pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOW = "2025-06-10T15:00:00Z"
MAY_BE_EMPTY = (
    "from trades_enriched",
    "from pressure",
    "from bars",
    "from gaps",
    "not quotes_overlap",
    "from optopsy_chain",
)
"""Queries on what one run of the chains does not bring; the catalog's own tests give them rows."""


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of every fenced block in that language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, code) for page in PAGES for code in pattern.findall(page.read_text())]


def command_lines() -> list[tuple[str, str]]:
    return [
        (page, line)
        for page, code in blocks("sh")
        for line in code.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user who has run `nq run` once in the sandbox."""
    data = tmp_path_factory.mktemp("data")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("NQ_")},
        "NQ_DATA_DIR": str(data),
        "NQ_NOW": NOW,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    subprocess.run(["nq", "run"], env=environment, cwd=data, check=True, capture_output=True, timeout=100)
    yield environment


@pytest.mark.parametrize(("page", "query"), blocks("sql"), ids=lambda value: value[:40].replace("\n", " "))
def test_every_query_in_the_documentation_runs_and_finds_something(
    lake: dict[str, str], page: str, query: str
) -> None:
    settings = Settings(data_dir=Path(lake["NQ_DATA_DIR"]))
    with catalog.connect(settings.environment_dir, guarded=True) as connection:
        rows = catalog.query(connection, query).fetchall()
    assert rows or any(words in query for words in MAY_BE_EMPTY)


def test_every_python_block_runs(lake: dict[str, str]) -> None:
    for page, code in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=lake, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{page}: {done.stderr}"


@pytest.mark.parametrize(("page", "line"), command_lines(), ids=lambda value: value[:60])
def test_every_command_in_the_documentation_works(lake: dict[str, str], page: str, line: str) -> None:
    words = shlex.split(line)
    while "=" in words[0]:
        words.pop(0)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif words[0] in ("git", "cd", "cp", "dagster", "ls"):
        return  # not ours to test
    elif words[:2] == ["nq", "sandbox"]:
        assert "sandbox" in main.commands  # serves until it is stopped; the sandbox's own tests start it
    else:
        assert words[0] == "nq", f"{page}: what is {line!r}?"
        done = subprocess.run(
            line, shell=True, env=lake, cwd=lake["NQ_DATA_DIR"], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, f"{page}: {line}\n{done.stdout}{done.stderr}"


def test_the_generated_pages_are_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == settings_reference.markdown() + "\n"
    assert (ROOT / "docs" / "tables.md").read_text() == reference.markdown() + "\n"


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Strict: a page outside the navigation, a dead link or a dead anchor fails."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        tags = re.findall(r"<(?:script|img|iframe|link)[^>]*>", page.read_text())
        loaded = [tag for tag in tags if "http" in tag and 'rel="canonical"' not in tag]
        assert not loaded, f"{page.name}: {loaded}"


def test_a_backup_taken_as_the_runbook_says_answers_as_the_original(
    lake: dict[str, str], tmp_path: Path
) -> None:
    """Cursor, manifests, files in this order; the catalog is made anew."""
    original = Path(lake["NQ_DATA_DIR"]) / "sandbox"
    restored = tmp_path / "restored" / "sandbox"
    for pattern in ("*.published", "manifest.json", "*.parquet"):
        for file in (original / "lake").rglob(pattern):
            copy = restored / file.relative_to(original)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
    with (
        closing(sqlite3.connect(original / "ledger.sqlite")) as ledger,
        closing(sqlite3.connect(restored / "ledger.sqlite")) as copied,
    ):
        ledger.backup(copied)
    catalog.publish(restored)
    query = "select count(*), max(snapshot_ts), sum(open_interest) from option_chain"
    answers = []
    for folder in (original, restored):
        with catalog.connect(folder) as connection:
            answers.append(connection.sql(query).fetchall())
    assert answers[0] == answers[1] and answers[0][0][0] > 0
    moved = {**lake, "NQ_DATA_DIR": str(restored.parent)}
    month = [
        json.loads(
            subprocess.run(
                ["nq", "budget", "--json"], env=environment, check=True, capture_output=True
            ).stdout
        )
        for environment in (lake, moved)
    ]
    assert month[0]["total_usd"] == month[1]["total_usd"]


def test_every_command_is_documented_and_has_help() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for name, command in main.commands.items():
        assert isinstance(command, click.Command) and command.help, name
        assert f"nq {name}" in text, f"`nq {name}` stands in no page"


def test_every_setting_named_in_the_documentation_exists() -> None:
    known = set(re.findall(r"[A-Z_]{4,}", settings_reference.markdown()))
    for page in PAGES:
        for name in re.findall(r"\bNQ_[A-Z_]+\b", page.read_text()):
            assert name in known, f"{page.name}: {name}"
