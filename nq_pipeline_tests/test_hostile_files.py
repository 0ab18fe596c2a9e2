"""Every file below a data folder, damaged in every way: one sentence at most, no row lost or changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import polars as pl
import pytest
from click.testing import CliRunner

from nq_pipeline import cli
from nq_pipeline.alerts.message import Alert
from nq_pipeline.alerts.notifier import Notifier
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.cli import exit_codes
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import NqError
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import TABLES
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.source import QUOTES
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing import barchart_boards
from nq_pipeline_tests.testing.feeds import DATASET, Feed, market
from nq_pipeline_tests.testing.http_server import Answer, Asked, Server, serve

NOW, SERIES = "2025-06-10T15:00:00Z", "Q2C-2025-06-11"


def json_with(value: object) -> Callable[[bytes], bytes]:
    """Every value at the first two levels becomes this one."""

    def spoil(content: bytes) -> bytes:
        try:
            known = orjson.loads(content)
        except orjson.JSONDecodeError:
            return orjson.dumps(value)
        return orjson.dumps(dict.fromkeys(known, value) if isinstance(known, dict) else value)

    return spoil


SPOILS: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) * 2 // 3],
    "garbage": lambda content: bytes(byte ^ 0xA5 for byte in content),
    "a hole": lambda content: content[: len(content) // 3] + b"\xff" * (len(content) - len(content) // 3),
    "number": json_with(7),
    "text": json_with("x"),
    "list": json_with([None]),
    "null": json_with(None),
    "object": json_with({"a": {}}),
}
JSON_ONLY = ("number", "text", "list", "null", "object")
COMMANDS: dict[str, list[str]] = {
    "sql": ["sql", "select (select count(*) from option_chain), (select count(*) from trades)"],
    "run": ["run", "--source", "barchart", "--series", SERIES],
    "refresh": ["run", "--source", "barchart", "--series", SERIES, "--refresh"],
    "replay": ["run", "--from-raw", "latest"],
    "report": ["report", "--no-open"],
    "budget": ["budget"],
    "retention": ["retention"],
    "alert": ["alert"],
    "repair": ["repair"],
}


def settings_of(data: Path) -> Settings:
    return build_settings(environment="live", data_dir=data)


def lake_of(data: Path) -> Lake:
    return Workspace(data / "live").lake


def publish(data: Path) -> None:
    lake = lake_of(data)
    Publisher(data / "live" / "capture" / DATASET, lake, run_id="again").publish()


@pytest.fixture(scope="module")
def site() -> Iterator[Server]:
    def answer(asked: Asked) -> Answer:
        if asked.path != QUOTES:
            return Answer(status=404, content_type="text/html")
        if "symbols" in asked.query:
            return Answer(barchart_boards.futures(NQM25=21745.25))
        return Answer(
            barchart_boards.chain(barchart_boards.board("MC2M5") if asked.query["symbol"] == "MC2M25" else [])
        )

    with serve(answer) as server:
        yield server


@pytest.fixture(scope="module")
def whole(site: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a snapshot, a capture, a ledger, an alert and caches."""
    data = tmp_path_factory.mktemp("whole") / "data"
    assert nq(data, site, "run") == (0, "")
    with Feed(data / "live" / "capture") as feed:
        feed.session(market(40))
    publish(data)
    alert = Alert(key="k", what="w", so_what="s", what_to_do="d", severity="error")
    Notifier(settings_of(data)).fire(alert)
    return data


def nq(data: Path, site: Server, command: str) -> tuple[int, str]:
    """Run a command; its exit code and what it said on stderr. A traceback fails the test."""
    environment = {
        "NQ_NOW": NOW, "NQ_ENVIRONMENT": "live", "NQ_DATA_DIR": str(data), "NQ_BARCHART_URL": site.url,
        "NQ_BARCHART_SPACING_S": "0", "NQ_BARCHART_PAGES": "false",
    }  # fmt: skip
    result = CliRunner().invoke(cli.main, COMMANDS[command], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    said = [line for line in result.stderr.splitlines() if line.startswith("nq: ")]
    if result.exit_code:
        assert len(said) == 1 or result.exit_code == exit_codes.NO_CHAIN, result.stderr
    assert "Traceback" not in result.output
    return result.exit_code, said[0] if said else ""


def rows(data: Path) -> dict[str, pl.DataFrame]:
    lake = lake_of(data)
    return {name: lake.scan(table).collect() for name, table in TABLES.items()}


def files(data: Path) -> list[str]:
    found = (path.relative_to(data).as_posix() for path in sorted(data.rglob("*")) if path.is_file())
    return [name for name in found if not name.endswith((".lock", "-wal", "-shm", ".sending"))]


def check(
    whole: Path, data: Path, site: Server, name: str, spoil: str, commands: list[str]
) -> dict[str, int]:
    """Damage one file of a copy, run commands, put the file back: every row is there as it was."""
    shutil.copytree(whole, data)
    victim, content = data / name, (whole / name).read_bytes()
    spoiled = SPOILS[spoil](content)
    if spoiled is None:
        victim.unlink()
    else:
        victim.write_bytes(spoiled)
    codes = {command: nq(data, site, command)[0] for command in commands}
    if name == "live/ledger.sqlite" and "budget" in codes:
        assert codes["budget"] == (0 if content == spoiled else exit_codes.FAULT), (
            "a lost ledger counts as an empty one"
        )
    try:
        publish(data)
    except NqError as error:
        assert "\n" not in str(error)

    for path in whole.rglob("*"):
        kept = data / path.relative_to(whole)
        if (
            path.suffix in (".parquet", ".zst", ".dbn", ".html")
            and path != whole / name
            and "cache" not in path.parts
        ):
            assert kept.read_bytes() == path.read_bytes(), f"{kept} was changed"
    if name.startswith("live/lake/") and "repair" not in commands:
        victim.write_bytes(content)
    after = rows(data)
    for table, before in rows(whole).items():
        key = TABLES[table].key
        lost = before.join(after[table], on=list(before.columns), how="anti", nulls_equal=True)
        if "repair" in commands and name.startswith(f"live/lake/{table}/trade_date="):
            continue
        assert lost.is_empty(), f"{lost.height} rows of {table} are lost or changed"
        assert after[table].select(key).is_unique().all(), f"a row of {table} is there twice"
    return codes


SHORT = [
    ("live/lake/source_chain/manifest.json", "missing", ["run", "sql", "report"]),
    ("live/lake/option_chain/*/*.parquet", "cut", ["refresh", "sql", "report", "retention"]),
    ("live/lake/fetches/*/*.parquet", "garbage", ["refresh", "repair"]),
    ("live/lake/trades/*/*.parquet", "missing", ["sql", "retention"]),
    ("live/lake/trades/*.published", "garbage", ["retention"]),
    ("live/lake/decisions/manifest.json", "number", ["report"]),
    ("live/ledger.sqlite", "garbage", ["run", "budget"]),
    ("live/ledger.sqlite", "missing", ["budget"]),
    ("live/alerts.json", "list", ["alert"]),
    ("live/cache/answers/*.json", "object", ["run"]),
    ("live/raw/barchart/newest/*.json", "garbage", ["refresh"]),
    ("live/raw/barchart/trade_date=*/*.zst", "empty", ["replay"]),
    ("live/raw/runs/*.json", "text", ["replay", "retention"]),
    ("live/capture/*/*/*.dbn", "cut", ["retention"]),
    ("live/nq.duckdb", "garbage", ["sql"]),
]
"""One file of every kind, one kind of damage, and the commands that meet it."""


@pytest.mark.parametrize(("pattern", "spoil", "commands"), SHORT)
def test_a_damaged_file_costs_no_row_and_no_traceback(
    whole: Path, site: Server, tmp_path: Path, pattern: str, spoil: str, commands: list[str]
) -> None:
    name = next(iter(sorted(whole.glob(pattern)))).relative_to(whole).as_posix()
    check(whole, tmp_path / "data", site, name, spoil, commands)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("spoil", [*SPOILS, "read-only"])
def test_every_file_damaged_in_every_way(whole: Path, site: Server, tmp_path: Path, spoil: str) -> None:
    """All files and all commands; every fault is told at the end."""
    faults: list[str] = []
    everything = [command for command in COMMANDS if command != "repair"]
    for number, name in enumerate(files(whole)):
        if spoil in JSON_ONLY and not name.endswith((".json", ".jsonl", ".published")):
            continue
        data = tmp_path / str(number)
        try:
            if spoil == "read-only":
                shutil.copytree(whole, data)
                (data / name).chmod(0o444)
                for command in everything:
                    nq(data, site, command)
            else:
                check(whole, data, site, name, spoil, everything)
        except Exception as error:
            faults.append(f"{name} {spoil}: {type(error).__name__}: {str(error)[:300]}")
        shutil.rmtree(data)
    assert faults == []
