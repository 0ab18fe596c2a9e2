"""`nq` as a stranger meets it: help, exit codes, JSON, one sentence where something is wrong."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import nq_pipeline
from nq_pipeline import cli
from nq_pipeline.chains.request import build_request
from nq_pipeline.cli import exit_codes, help, run
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import Blocked, LakeError, NoLake
from nq_pipeline.lake import catalog, results
from nq_pipeline.lake.tables import OPTION_CHAIN
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.listing import expirations
from nq_pipeline.market.symbology import parse_barchart_code
from nq_pipeline.sources.barchart.source import QUOTES
from nq_pipeline_tests.testing import barchart_boards
from nq_pipeline_tests.testing.http_server import FAULTS, Answer, Asked, Server, serve

NOW = "2025-06-10T15:00:00Z"
SERIES = "Q2C-2025-06-11"
BOARD = 6
"""Contracts of the small board."""


def nq(*words: str, **settings: str) -> Result:
    """Run one command in this process."""
    result = CliRunner().invoke(cli.main, list(words), env={"NQ_NOW": NOW, **settings})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def live(*words: str, **settings: str) -> Result:
    """Run one command in live, where without credentials nobody is asked."""
    return nq(*words, NQ_ENVIRONMENT="live", **settings)


@pytest.fixture(autouse=True)
def _empty_lakes(tmp_path: Path) -> None:
    """The data folder has a lake without a row; there is one that has none at NQ_DATA_DIR=nowhere."""
    for environment in ("live", "sandbox"):
        (tmp_path / "data" / environment / "lake").mkdir(parents=True)


@pytest.fixture
def barchart() -> Iterator[Server]:
    """A site with one small board."""

    def answer(asked: Asked) -> Answer:
        if asked.path != QUOTES:
            return Answer(status=404, content_type="text/html")
        if "symbols" in asked.query:
            return Answer(barchart_boards.futures(NQM25=21745.25))
        if asked.query["symbol"] != "MC2M25":
            return Answer(barchart_boards.chain([]))
        return Answer(barchart_boards.chain(barchart_boards.board("MC2M5")))

    with serve(answer) as server:
        yield server


def from_site(server: Server, *words: str, **settings: str) -> Result:
    site = {"NQ_BARCHART_URL": server.url, "NQ_BARCHART_SPACING_S": "0", "NQ_BARCHART_PAGES": "false"}
    return live(*words, **site, **settings)


@pytest.fixture
def filled(barchart: Server) -> Iterator[None]:
    """A lake with the board, in the working directory."""
    assert from_site(barchart, "run", "--source", "barchart", "--series", SERIES).exit_code == 0
    yield


# ── help ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        ([], ["sandbox", "NQ_ENVIRONMENT=live", ".env.example", "Exit codes", "run", "sql", "doctor"]),
        (["run"], ["Q3B-2025-06-17", "--source barchart", "MM3M5", "barchart, polygon"]),
        (["run"], ["--from-raw", "latest", "--json", "--refresh"]),
        (["sql"], ["read-only", "option_chain_latest", "source_chain", "nq sql", "--csv"]),
        (["doctor"], ["configured", "reachable", "entitled", "fix"]),
        (["sandbox"], ["loopback", "--fault barchart=blocked", "--list-faults", "Ctrl-C"]),
        (["tables"], ["column"]),
        (["settings"], ["secrets", "--markdown"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_what_a_new_user_needs(words: list[str], mentions: list[str], flag: str) -> None:
    result = nq(*words, flag)
    assert result.exit_code == 0
    flat = " ".join(result.stdout.split())
    assert [mention for mention in mentions if mention not in flat] == []


def test_examples_in_the_help_are_listed_on_the_day_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(3 * 365):
        now = datetime(2024, 12, 1, 15, tzinfo=UTC) + timedelta(days=day)
        monkeypatch.setenv("NQ_NOW", now.isoformat())
        series, code, _ = help.examples().values()
        found = Series.parse(series)
        assert now.date() < found.expiration_date < now.date() + timedelta(days=20)
        assert found in expirations("NQ", found.expiration_date, found.expiration_date), now
        assert parse_barchart_code(code, on=now.date()) == found


def test_what_the_help_shows_can_be_asked_for() -> None:
    lines = [line.split() for line in nq("run", "--help").stdout.splitlines() if "nq run" in line]
    named = [words[words.index("--series") + 1] for words in lines if "--series" in words]
    settings = build_settings(now=datetime.fromisoformat(NOW))
    asked = [build_request(settings, series=[one], source="barchart").series for one in named]
    assert len(asked) == 2 and asked[0] == asked[1]


def test_help_works_where_a_setting_does_not() -> None:
    assert "--series" in nq("run", "--help", NQ_NOW="1999-01-04T15:00:00Z", NQ_HORIZON_DAYS="many").stdout


def test_help_names_every_exit_code() -> None:
    text = " ".join(nq("--help").stdout.split())
    codes = {
        exit_codes.OK,
        exit_codes.FAULT,
        exit_codes.USAGE,
        exit_codes.NO_CHAIN,
        exit_codes.SQL_FAILED,
        exit_codes.UNHEALTHY,
        exit_codes.NO_LAKE,
    }
    assert codes == set(range(7))
    assert [code for code in codes if f"{code} " not in text.partition("Exit codes:")[2]] == []


def test_the_version_is_shown() -> None:
    assert nq("--version").stdout.startswith("nq, version ")


@pytest.mark.parametrize("words", [["fly"], ["run", "--fly"], ["sql"], ["run", "--series"]])
def test_wrong_usage_is_exit_code_2_and_on_stderr(words: list[str]) -> None:
    result = nq(*words)
    assert (result.exit_code, result.stdout) == (exit_codes.USAGE, "")
    assert "Error: " in result.stderr


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "settings", "named"),
    [
        (["run"], {"NQ_HORIZON_DAYS": "many"}, ["NQ_HORIZON_DAYS", "integer"]),
        (["doctor"], {"NQ_ENVIRONMENT": "prod"}, ["NQ_ENVIRONMENT", "'sandbox' or 'live'"]),
        (["sql", "select 1"], {"NQ_NOW": "now"}, ["NQ_NOW"]),
        (["settings"], {"NQ_SOURCES": "x"}, ["NQ_SOURCES"]),
        (["run", "--source", "bloomberg"], {}, ["--source bloomberg", "barchart"]),
        (["run", "--series", "soon"], {}, ["'soon'", "ROOT-YYYY-MM-DD"]),
        (["run", "--series", "MM1N5"], {}, ["MM1N5", "--source barchart"]),
        (["run", "--series", "MM1N5", "--source", "barchart", "--source", "polygon"], {}, ["barchart`"]),
        (["run", "--series", "ZZZ-2025-07-01"], {}, ["ZZZ"]),
        (["run", "--series", "Q1B-2025-06-03"], {}, ["expired on 2025-06-03"]),
        (["run", "--series", "Q2A-2025-06-09"], {}, ["Q2A-2025-07-14"]),
        (["run", "--series", "MM1M5", "--source", "barchart"], {}, ["'MM1M5'", "2025-06-03"]),
        (["run", "--series", "Q1B-2025-07-02"], {}, ["Q1B-2025-07-01"]),
        (["run"], {"NQ_PRODUCTS": "XX"}, ["NQ_PRODUCTS", "XX"]),
        (["run"], {"NQ_NOW": "1999-01-04T15:00:00Z"}, ["NQ_NOW", "1999-01-04"]),
        (["doctor"], {"NQ_NOW": "2018-12-05T18:00:00Z"}, ["NQ_NOW", "2018-12-05"]),
        (["report"], {"NQ_NOW": "2018-12-31T23:59:59Z"}, ["2019-01-01 to 2098-12-31"]),
        (["capture"], {"NQ_NOW": "2099-01-01T00:00:00Z"}, ["NQ_NOW", "2099-01-01"]),
        (["run", "--from-raw", "latest", "--refresh"], {}, ["--series, --source and --refresh"]),
        (["run", "--from-raw", "latest", "--series", SERIES], {}, ["--series"]),
    ],
)  # fmt: skip
def test_a_mistake_of_the_user_is_one_sentence_and_exit_code_2(
    words: list[str], settings: dict[str, str], named: list[str]
) -> None:
    result = nq(*words, **{"NQ_ENVIRONMENT": "live", **settings})
    assert result.exit_code == exit_codes.USAGE
    assert [word for word in named if word not in result.stderr] == []
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_an_unknown_variable_is_reported_and_ignored() -> None:
    result = nq("settings", NQ_HORIZON_DAY="3")
    assert result.exit_code == exit_codes.OK and "NQ_HORIZON_DAYS=14" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "nq: NQ_HORIZON_DAY, in the environment, is not a setting and has no effect; did you"
    )


def test_an_error_of_the_disk_is_one_sentence_and_exit_code_1() -> None:
    result = live("run", "--from-raw", "never-was")
    assert result.exit_code == exit_codes.FAULT
    assert result.stderr.startswith("nq: no run 'never-was' is archived in ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["run"], ["sql", "select 1"]])
def test_an_unusable_data_folder_is_exit_code_1(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    result = live(*words, NQ_DATA_DIR=str(tmp_path / "a-file"))
    assert result.exit_code == exit_codes.FAULT, result.output
    assert result.stderr.splitlines()[-1].startswith(f"nq: cannot use {tmp_path / 'a-file'}")
    assert "NQ_DATA_DIR" in result.stderr


def test_every_error_raised_on_purpose_ends_as_one_sentence() -> None:
    for error in (LakeError("the disk is full"), Blocked("a captcha")):

        @exit_codes.report_errors
        def command(error: Exception = error) -> None:
            raise error

        with pytest.raises(SystemExit) as ended:
            command()
        assert ended.value.code == exit_codes.FAULT


def test_a_process_shows_no_traceback_for_a_mistake(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nq_pipeline", "run", "--series", "soon"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (exit_codes.USAGE, "")
    assert done.stderr.startswith("nq: 'soon' is not a series") and len(done.stderr.splitlines()) == 1


# ── run ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_with_a_chain_is_exit_code_0_and_shows_next_steps(barchart: Server) -> None:
    result = from_site(barchart, "run", "--source", "barchart", "--series", SERIES)
    assert result.exit_code == exit_codes.OK, result.output
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("barchart")]
    assert row.split()[:3] == ["barchart", "ok", str(BOARD)]
    assert f"Winner: barchart ({BOARD} contracts)" in result.stdout
    assert "SANDBOX" not in result.stdout
    assert f"barchart: ok, {BOARD} contracts" in result.stderr
    report, sql = result.stdout.splitlines()[-2:]
    assert report.split()[-1] == "report"
    assert live("sql", sql.partition(" sql ")[2].strip().strip('"')).exit_code == exit_codes.OK
    by_make = from_site(barchart, "run", "--source", "barchart", "--series", SERIES, MAKELEVEL="1")
    assert by_make.stdout.splitlines()[-2] == "  make report"


def test_a_run_as_json_is_one_object_and_nothing_else(barchart: Server) -> None:
    result = from_site(barchart, "run", "--source", "barchart", "--series", SERIES, "--json")
    report = json.loads(result.stdout)
    assert result.stderr == ""
    assert set(report) == {
        "environment", "run_id", "trade_date", "snapshot_ts", "moment", "sources", "skipped", "winners",
        "lost", "rows", "lake", "priced", "gamma_levels",
    }  # fmt: skip
    assert (report["environment"], report["trade_date"]) == ("live", "2025-06-10")
    assert datetime.fromisoformat(report["snapshot_ts"]) == datetime.fromisoformat(NOW)
    assert report["winners"] == {"barchart": BOARD}
    assert report["rows"]["source_chain"] == report["rows"]["option_chain"] == BOARD
    site = report["sources"]["barchart"]
    assert (site["outcome"], site["contracts"], site["series"], site["cached"]) == ("ok", BOARD, 1, False)
    assert site["misses"] > 0 and site["age_s"] > 0


def test_the_same_run_again_is_a_hit_and_asks_nobody(barchart: Server, filled: None) -> None:
    asked = len(barchart.asked)
    report = json.loads(
        from_site(barchart, "run", "--source", "barchart", "--series", SERIES, "--json").stdout
    )
    assert report["sources"]["barchart"]["cached"] is True
    assert report["rows"]["source_chain"] == 0 and report["winners"] == {"barchart": BOARD}
    assert len(barchart.asked) == asked
    from_site(barchart, "run", "--source", "barchart", "--series", SERIES, "--refresh")
    assert len(barchart.asked) > asked


def test_the_code_of_the_site_names_a_series(barchart: Server) -> None:
    result = from_site(barchart, "run", "--source", "barchart", "--series", "mc2m5", "--json")
    assert {asked.query.get("symbol") for asked in barchart.asked} >= {"MC2M5"}
    assert json.loads(result.stdout)["sources"]["barchart"]["outcome"] == "empty"
    assert result.exit_code == exit_codes.NO_CHAIN


def test_archived_answers_are_parsed_again_without_an_opt_in(barchart: Server, filled: None) -> None:
    asked = len(barchart.asked)
    for words in (["run", "--from-raw", "latest"], ["run", "--from-raw", "latest", "--json"]):
        result = live(*words)
        assert result.exit_code == exit_codes.OK, result.output
    report = json.loads(result.stdout)
    assert report["winners"] == {"barchart": BOARD} and report["rows"]["source_chain"] == 0
    assert len(barchart.asked) == asked


def test_a_proxy_that_wins_is_named_one() -> None:
    """In the sandbox: no other vendor is asked, so the stand-in for NDX is all there is."""
    result = nq("run", "--source", "polygon", NQ_HORIZON_DAYS="1", NQ_FAR_EXPIRATIONS="0")
    assert result.exit_code == exit_codes.OK, result.output
    (winner,) = [line for line in result.stdout.splitlines() if line.startswith("Winner: ")]
    assert winner.startswith("Winner: polygon (") and winner.endswith(", a proxy: options on NDX, not on NQ)")


@pytest.mark.parametrize(
    ("left_out", "why"), [(0, "no open interest was sent"), (7, "7 open contracts could not be priced")]
)
def test_an_unknown_gamma_exposure_says_why(left_out: int, why: str) -> None:
    level = {"product": "NQ", "source": "databento", "gex_per_pct": None, "zero_gamma": None}
    line = run.gamma_line({**level, "open_interest_left_out": left_out})
    assert line == f"Gamma exposure of NQ by databento: unknown; {why}."


def test_a_vendor_that_sends_only_dates_has_no_age_in_hours() -> None:
    closed = datetime(2025, 6, 10, 21, 30, tzinfo=UTC)
    assert run.age_of(datetime(2025, 6, 10, tzinfo=UTC), closed) == "from 06-10"
    assert run.age_of(datetime(2025, 6, 10, 20, 0, tzinfo=UTC), closed) == "90 min"
    assert run.age_of(datetime(2025, 6, 10, 0, 30, tzinfo=UTC), closed) == "21 h"
    assert run.age_of(None, closed) == "-"


def test_live_without_credentials_asks_nobody() -> None:
    result = live("run")
    assert result.exit_code == exit_codes.NO_CHAIN
    assert "Winner: none; every source failed" in result.stdout
    for name in ("barchart", "polygon", "tradovate", "databento"):
        (row,) = [line for line in result.stdout.splitlines() if line.startswith(f"{name} ")]
        assert row.split()[1] == "not_configured"
    assert "Traceback" not in result.output


def test_a_run_without_a_chain_says_in_json_who_failed_and_how() -> None:
    result = live("run", "--source", "databento", "--json")
    assert result.exit_code == exit_codes.NO_CHAIN
    report = json.loads(result.stdout)
    assert report["winners"] == {}
    assert report["sources"]["databento"]["outcome"] == "not_configured"
    assert "DATABENTO_API_KEY" in report["lost"]["databento"]


def test_naming_barchart_is_the_opt_in_and_names_nobody_else(barchart: Server) -> None:
    result = from_site(barchart, "run", "--series", SERIES, "--json")
    assert json.loads(result.stdout)["sources"]["barchart"]["outcome"] == "not_configured"
    assert barchart.asked == []
    result = from_site(barchart, "run", "--source", "barchart", "--series", SERIES, "--json")
    assert list(json.loads(result.stdout)["sources"]) == ["barchart"]


def test_text_of_a_vendor_is_no_markup_and_no_control_code() -> None:
    hostile = Answer(b'{"status":"ERROR","error":"[/red][bold]\\u001b[2Jgone"}', status=418)
    with serve(lambda asked: hostile) as server:
        result = live("run", "--source", "polygon", NQ_POLYGON_URL=server.url, POLYGON_API_KEY="not-a-key")
    assert result.exit_code == exit_codes.NO_CHAIN
    assert "\x1b" not in result.output


# ── sql ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_query_is_shown_as_a_table_json_or_csv(filled: None) -> None:
    query = "select source, count(*) as n, max(snapshot_ts) as snapshot from option_chain_latest group by 1"
    assert str(BOARD) in live("sql", query).stdout
    (row,) = json.loads(live("sql", query, "--json").stdout)
    assert (row["source"], row["n"]) == ("barchart", BOARD)
    assert datetime.fromisoformat(row["snapshot"]) == datetime.fromisoformat(NOW)
    assert live("sql", query, "--csv").stdout.splitlines()[0] == "source,n,snapshot"


def test_a_table_has_every_column_or_says_what_is_missing(filled: None) -> None:
    result = live("sql", "select * from option_chain_latest")
    assert all(name in result.stdout for name in OPTION_CHAIN.schema)
    assert result.stderr == ""
    assert "--csv or --json prints every row" in live("sql", "from range(1000)").stderr


def test_json_is_strict_also_where_a_number_is_none() -> None:
    result = live(
        "sql", "select 'nan'::double as a, 'inf'::double as b, null as c, 1.5::decimal(4,2) as d", "--json"
    )
    (row,) = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
    assert (row["a"], row["b"], row["c"], float(row["d"])) == (None, None, None, 1.5)


@pytest.mark.parametrize(
    "query",
    [
        "select nothing from nowhere",
        "selct 1",
        "select 1; select 2",
        "",
        "delete from option_chain",
        "create table t (a int)",
        "copy (select 1) to 'x.csv'",
        "select * from read_csv('/etc/passwd')",
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_query_that_fails_is_exit_code_4_and_on_stderr(query: str, form: list[str], tmp_path: Path) -> None:
    result = live("sql", query, *form)
    assert result.exit_code == exit_codes.SQL_FAILED
    assert result.stderr.startswith("nq: the query failed: ")
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert not (tmp_path / "x.csv").exists()


ODD = {
    "interval": ("interval '1 month 2 days'", "1 month 2 days"),
    "infinite": ("'-infinity'::timestamptz", "-infinity"),
    "endless": ("'infinity'::date", "infinity"),
    "before_christ": ("'0044-03-15 (BC)'::date", "0044-03-15 (BC)"),
    "either": ("union_value(num := 2)", {"num": 2}),
    "several": ("[1, null, 'nan'::double]", [1.0, None, None]),
    "pair": ("{'a': 1, 'b': 'é\"'}", {"a": 1, "b": 'é"'}),
    "keyed": ("map {[1]: interval 1 day}", {"[1]": "1 day"}),
    "bytes": (r"'\xAA\x00a'::blob", r"\xAA\x00a"),
    "bits": ("'101'::bit", "101"),
    "large": ("170141183460469231731687303715884105727::hugeint", "170141183460469231731687303715884105727"),
    "zoned": ("'12:00:00+02'::timetz", "12:00:00+02"),
    "exact": ("'2025-01-01 00:00:00.123456789'::timestamp_ns", "2025-01-01 00:00:00.123456789"),
    "nothing": ("null::int[]", None),
}
"""Values that JSON and CSV have no form for: SQL, and what is written."""


def test_a_value_of_any_type_is_written() -> None:
    query = f"select {', '.join(f'{sql} as {name}' for name, (sql, _) in ODD.items())} from range(2)"
    shown = live("sql", query, "--json")
    rows = json.loads(shown.stdout, parse_constant=lambda name: pytest.fail(name))
    assert (rows, shown.stderr) == ([{name: value for name, (_, value) in ODD.items()}] * 2, "")
    first, last = csv.DictReader(live("sql", query, "--csv").stdout.splitlines())
    assert first == last
    for name, (_, value) in ODD.items():
        nested = isinstance(value, list | dict)
        assert (json.loads(first[name]) if nested else first[name]) == ("" if value is None else value)
    assert live("sql", query).exit_code == exit_codes.OK


def test_an_infinite_instant_leaves_the_others_as_they_are() -> None:
    query = "from (values ('infinity'::timestamptz), ('2025-06-10 15:00:00.5'), (null)) as t(a)"
    assert [row["a"] for row in json.loads(live("sql", query, "--json").stdout)] == [
        "infinity", "2025-06-10T15:00:00.500000+00:00", None,
    ]  # fmt: skip
    assert live("sql", query, "--csv").stdout.startswith("a\ninfinity\n2025-06-10T15:00:00.500000+00:00\n")


def test_a_result_of_several_batches_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "BATCH_ROWS", 2)
    query = "select range as a, range as a from range(5)"
    rows = json.loads(live("sql", query, "--json").stdout)
    assert rows == [{"a": n, "a_1": n} for n in range(5)]
    assert live("sql", query, "--csv").stdout == "a,a_1\n0,0\n1,1\n2,2\n3,3\n4,4\n"
    assert live("sql", "select 1 as a where false", "--csv").stdout == "a\n"
    assert live("sql", "select 1 as a where false", "--json").stdout == "[]\n"


ENDLESS = "select sum(a.range * b.range) from range(1000000) as a, range(1000000) as b"


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_query_ends_after_its_time(form: list[str]) -> None:
    result = live("sql", ENDLESS, *form, NQ_SQL_TIMEOUT_S="0.1")
    assert result.exit_code == exit_codes.SQL_FAILED and result.stdout == ""
    assert "NQ_SQL_TIMEOUT_S allows (0.1 s)" in result.stderr


@pytest.mark.parametrize(
    ("query", "form"),
    [
        ("select list(range) from range(100000000)", []),
        ("select list(range) from range(100000000)", ["--csv"]),
        ("select repeat('x', 100000) as x from range(1000)", ["--csv"]),
        ("select repeat('x', 100000) as x from range(1000)", ["--json"]),
    ],
)
def test_a_query_takes_no_more_than_its_memory(query: str, form: list[str]) -> None:
    result = live("sql", query, *form, NQ_SQL_MEMORY_MB="64")
    assert result.exit_code == exit_codes.SQL_FAILED and result.stdout == ""
    assert "NQ_SQL_MEMORY_MB allows (64 MB)" in result.stderr


def test_ctrl_c_interrupts_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = catalog.query

    def begun(*words: Any) -> Any:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return begin(*words)

    monkeypatch.setattr(catalog, "query", begun)
    result = live("sql", ENDLESS, "--json")
    assert (result.exit_code, result.stdout) == (exit_codes.FAULT, "")
    assert "Aborted!" in result.stderr


def test_the_sandbox_says_that_no_price_is_real() -> None:
    assert nq("sql", "select 1").stdout.startswith("SANDBOX: ")
    assert "SANDBOX" not in nq("sql", "select 1", "--json").stdout
    assert "SANDBOX" not in live("sql", "select 1").stdout


def test_recompute_refuses_trade_dates_in_the_wrong_order() -> None:
    result = nq("lake", "recompute", "--from", "2025-06-10", "--to", "2025-06-09")
    assert result.exit_code == exit_codes.USAGE
    assert "2025-06-10 is after" in result.stderr


def test_a_folder_without_a_lake_has_its_own_exit_code(tmp_path: Path) -> None:
    for words in (
        ["sql", "from option_chain_latest"],
        ["sql", "select 1", "--json"],
        ["report", "--no-open"],
        ["lake", "recompute"],
        ["repair"],
    ):
        result = live(*words, NQ_DATA_DIR="nowhere")
        assert (result.exit_code, result.stdout) == (exit_codes.NO_LAKE, ""), words
        assert result.stderr.startswith(f"nq: there is no lake in {tmp_path / 'nowhere' / 'live'};")
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_without_a_lake_raises_no_lake_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQ_DATA_DIR", "nowhere")
    for call in (nq_pipeline.chain, nq_pipeline.connect):
        with pytest.raises(NoLake, match="nowhere/sandbox"):
            call()
    monkeypatch.setenv("NQ_DATA_DIR", "data")
    assert nq_pipeline.chain().is_empty()


# ── the others ──────────────────────────────────────────────────────────────────────────────────


def test_the_doctor_finds_what_is_missing_and_is_exit_code_5() -> None:
    result = live("doctor", "--json")
    assert result.exit_code == exit_codes.UNHEALTHY
    report = json.loads(result.stdout)
    assert set(report) == {"environment", "market", "sources", "ladder"}
    assert report["market"].startswith("open (regular hours), trade date 2025-06-10")
    assert list(report["sources"]) == ["barchart", "polygon", "tradovate", "databento"]
    for probe in report["sources"].values():
        assert set(probe) == {"configured", "reachable", "entitled", "detail", "mend", "used"}
        assert probe["configured"] is False and probe["mend"]
    text = live("doctor").stdout
    assert "Market: open (regular hours)" in text
    assert all(f"To fix {name}: " in text for name in report["sources"])


def test_the_doctor_succeeds_when_the_vendors_in_use_are_ready(barchart: Server) -> None:
    well = {"NQ_SOURCES": "barchart", "NQ_BARCHART_ENABLED": "true", "NQ_BARCHART_URL": barchart.url}
    result = live("doctor", "--json", **well)
    report = json.loads(result.stdout)["sources"]
    assert result.exit_code == exit_codes.OK, report["barchart"]
    assert report["barchart"]["used"] is True and report["polygon"]["used"] is False
    assert "polygon (not in" in " ".join(live("doctor", **well).stdout.split())


@pytest.mark.parametrize("fault", ["http_403", "http_429", "hang_up", "html"])
def test_the_doctor_says_how_to_fix_a_vendor_that_refuses(fault: str) -> None:
    with serve(lambda asked: FAULTS[fault](Answer(b"{}"))) as server:
        settings = {"NQ_SOURCES": "barchart", "NQ_BARCHART_ENABLED": "true", "NQ_BARCHART_URL": server.url}
        result = live("doctor", "--json", **settings)
    probe = json.loads(result.stdout)["sources"]["barchart"]
    assert result.exit_code == exit_codes.UNHEALTHY
    assert probe["configured"] is True and probe["detail"] and probe["mend"]


def test_settings_are_shown_without_secrets() -> None:
    result = nq("settings", DATABENTO_API_KEY="marked-secret", NQ_HORIZON_DAYS="3")
    assert result.exit_code == exit_codes.OK
    assert "NQ_HORIZON_DAYS=3" in result.stdout.splitlines()
    assert "DATABENTO_API_KEY=(set, hidden)" in result.stdout.splitlines()
    assert "marked-secret" not in result.output


def test_tables_are_listed_with_every_column() -> None:
    from nq_pipeline.lake.tables import TABLES

    text = nq("tables").stdout
    assert [c.name for table in TABLES.values() for c in table.columns if c.name not in text] == []


def test_tables_and_views_are_listed_by_name() -> None:
    named = nq("tables", "bars", "gaps").stdout.splitlines()
    assert [line for line in named if line and not line.startswith(" ")] == [
        "gaps (unique by gap_id, revision)", "bars(width)",
    ]  # fmt: skip
    unknown = nq("tables", "gaps", "gasp")
    assert unknown.exit_code == exit_codes.USAGE and "gasp: not a table or view" in unknown.stderr


def test_faults_of_the_sandbox_are_listed_with_their_meaning() -> None:
    lines = nq("sandbox", "--list-faults").stdout.splitlines()
    assert {"blocked", "stale", "malformed"} <= {line.split()[0] for line in lines}
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_retention_and_repair_print_one_json_object(filled: None) -> None:
    swept = json.loads(live("retention", "--dry-run", "--json").stdout)
    assert swept["dry_run"] and "reports" in [part["what"] for part in swept["swept"]]
    [table] = json.loads(live("repair", "option_chain", "--json").stdout)["tables"]
    assert table["table"] == "option_chain" and not table["why"]


def test_an_unknown_table_is_not_repaired() -> None:
    done = live("repair", "option_chains")
    assert done.exit_code == exit_codes.USAGE and "nq tables" in done.stderr


@pytest.mark.parametrize("fault", ["barchart", "barchart=tired", "bloomberg=blocked"])
def test_an_unknown_fault_is_refused_before_serving(fault: str) -> None:
    result = nq("sandbox", "--fault", fault)
    assert result.exit_code == exit_codes.USAGE
    assert fault in result.stderr and "Traceback" not in result.output
