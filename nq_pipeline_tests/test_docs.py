"""The documentation does what it says: every query runs, every command exists, every link leads somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nq_pipeline import configuration
from nq_pipeline.cli import main
from nq_pipeline.configuration import load
from nq_pipeline.lake import catalog, reference
from nq_pipeline.runtime import endpoints
from nq_pipeline.workspace import Workspace

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOW = "2026-03-17T15:00:00Z"
"""A day that no page names: whoever reads them does so later."""
MAY_BE_EMPTY = (
    "from trades_enriched",
    "from pressure",
    "from bars",
    "from gaps",
    "from backfills",
    "from surface_arbitrage",
    "from open_interest_change",
    "from continuous",
    "from volatility_cone",
    "from iv_rank",
    "from surface_fit\nwhere not inside",
)
"""Queries on what one run of the chains does not bring; the catalog's own tests give them rows."""


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of every fenced block in that language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, code) for page in PAGES for code in pattern.findall(page.read_text())]


def command_lines() -> dict[str, str]:
    """Every different command line, and the pages it stands on."""
    found: dict[str, str] = {}
    for page, code in blocks("sh"):
        for line in code.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                found[line] = f"{found[line]}, {page}" if line in found else page
    return found


def nq(line: str, **environment: str) -> str:
    """Run a command line of ours in this process; what it printed."""
    words = shlex.split(line)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    assert words[0] == "nq", f"what is {line!r}?"
    done = CliRunner().invoke(main, words[1:], env=environment, catch_exceptions=False)
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a user who has run `nq run` once in the sandbox, whose stand-ins go on serving."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("NQ_")]:
            patch.delenv(name)
        stand_in_for_the_user(patch, folder)
        with endpoints(load()):
            nq("nq run")
            yield folder


def stand_in_for_the_user(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("NQ_DATA_DIR", str(folder))
    patch.setenv("NQ_NOW", NOW)
    patch.setenv("NQ_HORIZON_DAYS", "1")
    patch.setenv("NQ_FAR_EXPIRATIONS", "0")
    patch.setenv("NQ_SOURCE_DEADLINE_S", "100")  # whatever else the machine has to do
    patch.chdir(folder)


@pytest.fixture
def lake(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of that user; the folder of what the sandbox has written."""
    stand_in_for_the_user(monkeypatch, home)
    return home / "sandbox"


@pytest.mark.parametrize(("page", "query"), blocks("sql"), ids=lambda value: value[:40].replace("\n", " "))
def test_every_documented_query_finds_rows(lake: Path, page: str, query: str) -> None:
    with catalog.connect(Workspace(lake).lake, guarded=True) as connection:
        rows = catalog.query(connection, query).fetchall()
    assert rows or any(words in query for words in MAY_BE_EMPTY)


@pytest.mark.parametrize(("page", "code"), blocks("python"), ids=lambda value: value[:40].replace("\n", " "))
def test_every_python_block_runs(lake: Path, page: str, code: str) -> None:
    exec(compile(code, page, "exec"), {"__name__": page})


@pytest.mark.parametrize("line", command_lines(), ids=lambda value: value[:60])
def test_every_command_in_the_documentation_works(lake: Path, line: str) -> None:
    words = line.split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif words[0] in ("git", "cd", "cp", "dagster", "ls"):
        return  # not ours to test
    elif words[:2] in (["nq", "sandbox"], ["nq", "board"], ["nq", "serve"]):
        assert words[1] in main.commands  # serves until it is stopped; its own tests start it
    elif words[:2] == ["nq", "verify"]:  # judges clock and latency, too; the tests of `proof` run it
        main.commands["verify"].make_context("nq verify", words[2:])
    else:
        nq(line)


def test_the_generated_pages_are_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == configuration.markdown() + "\n"
    assert (ROOT / "docs" / "tables.md").read_text() == reference.markdown() + "\n"


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_site_builds_strictly_and_loads_nothing_remote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict: a page outside the navigation, a dead link or a dead anchor fails."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))
    pages = list((tmp_path / "site").rglob("*.html"))
    assert (tmp_path / "site" / "search" / "search_index.js").is_file()  # the index of a page from the disk
    assert len(pages) > len(PAGES) - 3
    for page in pages:
        tags = re.findall(r"<(?:script|img|iframe|link)[^>]*>", page.read_text())
        loaded = [tag for tag in tags if "http" in tag and 'rel="canonical"' not in tag]
        assert not loaded, f"{page.name}: {loaded}"


def test_a_backup_as_in_the_runbook_answers_like_the_original(lake: Path, tmp_path: Path) -> None:
    """Cursor, manifests, files in this order; the catalog is made anew."""
    original, restored = lake, tmp_path / "restored" / "sandbox"
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
    catalog.publish(Workspace(restored).lake)
    query = "select count(*), max(snapshot_ts), sum(open_interest) from option_chain"
    answers = []
    for folder in (original, restored):
        with catalog.connect(Workspace(folder).lake) as connection:
            answers.append(connection.sql(query).fetchall())
    assert answers[0] == answers[1] and answers[0][0][0] > 0
    month = [
        json.loads(nq("nq budget --json", NQ_DATA_DIR=str(folder.parent))) for folder in (original, restored)
    ]
    assert month[0]["total_usd"] == month[1]["total_usd"]


def test_every_package_is_on_the_architecture_page() -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    for package in (ROOT / "nq_pipeline").glob("*/__init__.py"):
        assert f"`{package.parent.name}/`" in page, package.parent.name


def test_every_stop_of_the_architecture_page_exists() -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    stops = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| `([\w.]+)` \|", page, re.MULTILINE)
    assert len(stops) == 21 and max(int(number) for number, _, _ in stops) == 12
    for _, file, function in stops:
        source = (ROOT / "nq_pipeline" / file).read_text()
        *owner, name = function.split(".")
        assert re.search(rf"\bdef {name}\(", source), f"{file}: {function}"
        assert all(f"class {one}" in source for one in owner), f"{file}: {function}"


def test_every_place_that_contributing_names_exists() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text()
    places = re.findall(r"^\| [^|]+ \| `([\w/.]+)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(places) == page.count("\n| ") - 2
    for path, name in places:
        place = ROOT / "nq_pipeline" / path
        files = place.rglob("*.py") if place.is_dir() else [place]
        defined = rf"(\b(def|class) {name}\b|^ *(const )?{name}( =|: ))"
        assert any(re.search(defined, file.read_text(), re.MULTILINE) for file in files), f"{path}: {name}"


def test_the_units_of_the_runbook_start_what_is_installed() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    (home,) = re.findall(r"^WorkingDirectory=(.*)$", page, re.MULTILINE)
    assert f"DAGSTER_HOME={home}\n" in page and (ROOT / "dagster.yaml").is_file()
    started = re.findall(rf"ExecStart={home}/\.venv/bin/(\S+)", page)
    assert started == ["dagster-daemon", "dagster-webserver"]
    assert all((Path(sys.executable).parent / program).is_file() for program in started)


def test_every_command_is_documented_and_has_help() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for name, command in main.commands.items():
        assert isinstance(command, click.Command) and command.help, name
        assert f"nq {name}" in text, f"`nq {name}` stands in no page"


def test_every_setting_named_in_the_documentation_exists() -> None:
    known = set(re.findall(r"[A-Z_]{4,}", configuration.markdown()))
    for page in PAGES:
        for name in re.findall(r"\bNQ_[A-Z_]+\b", page.read_text()):
            assert name in known, f"{page.name}: {name}"
