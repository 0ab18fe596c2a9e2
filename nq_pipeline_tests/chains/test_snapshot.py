"""Snapshots from scripted vendors: who is asked, what is written, what survives."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from nq_pipeline.chains import ask
from nq_pipeline.chains.replay import finish_killed_runs, replay_snapshot
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.result import Snapshot
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import Blocked, LakeError, NotEntitled, NqError, SettingsError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import DECISIONS, FETCHES, OPTION_CHAIN, SOURCE_CHAIN, TABLES, Table
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.spec import BarchartSettings
from nq_pipeline.sources.base import ChainAnswer, ChainRequest
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.sources.polygon.spec import PolygonSettings
from nq_pipeline.transport.vendor_session import VendorSession
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.vendors import NOW, Desk, Vendor, down, failing

TODAY, TOMORROW = "Q2B-2025-06-10", "Q2C-2025-06-11"
PER_SERIES = 42


def rows(desk: Desk, table: Table) -> pl.DataFrame:
    lake = Workspace.of(desk.settings).lake
    return lake.scan(table).sort(table.total_order).collect()


def shown(desk: Desk, query: str) -> list[tuple[object, ...]]:
    """What somebody sees who asks the catalog."""
    with catalog.connect(Workspace.of(desk.settings).lake) as lake:
        return lake.sql(query).fetchall()


# ── who is asked ────────────────────────────────────────────────────────────────────────────────


def test_free_vendors_are_asked_at_the_same_time(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=60)
    names = ("barchart", "polygon", "tradovate")
    desk = Desk(tmp_path, *(Vendor(name, perform=together.wait) for name in names))
    snapshot = desk.snap()
    assert {name: asked.answer.outcome for name, asked in snapshot.results.items()} == dict.fromkeys(
        names, Outcome.OK
    )


def test_a_metered_vendor_is_not_asked_when_nothing_is_missing(tmp_path: Path) -> None:
    metered = Vendor("databento", metered=True)
    desk = Desk(tmp_path, Vendor("barchart"), metered)
    snapshot = desk.snap()
    assert metered.requests == []
    assert list(snapshot.results) == ["barchart"]
    assert list(snapshot.skipped) == ["databento"]
    assert "costs money" in snapshot.skipped["databento"]
    told = rows(desk, FETCHES).select("source", "operation").rows()
    assert sorted(told) == [("barchart", "chain"), ("databento", "price")]


def test_metered_vendor_that_costs_nothing_is_asked_first(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=60)
    included = Vendor("databento", metered=True, price="0", perform=together.wait)
    snapshot = Desk(tmp_path, Vendor("barchart", perform=together.wait), included).snap()
    assert [s.key for s in included.requests[0].series] == [TODAY, TOMORROW]
    assert not snapshot.skipped


def test_a_price_that_cannot_be_told_is_not_taken_for_nothing(tmp_path: Path) -> None:
    metered = Vendor("databento", metered=True, price=None)
    Desk(tmp_path, Vendor("barchart"), metered).snap()
    assert metered.requests == []


def test_a_series_that_a_free_vendor_gives_in_part_is_not_bought(tmp_path: Path) -> None:
    metered = Vendor("databento", metered=True)
    part = Vendor("barchart", outcome=Outcome.PARTIAL)
    snapshot = Desk(tmp_path, part, metered).snap()
    assert metered.requests == []
    assert snapshot.winners == {"barchart": 2 * PER_SERIES}


def test_metered_vendor_is_asked_only_for_missing_series(tmp_path: Path) -> None:
    metered = Vendor("databento", metered=True)
    snapshot = Desk(tmp_path, Vendor("barchart", has={TODAY}), metered).snap()
    (request,) = metered.requests
    assert [s.key for s in request.series] == [TOMORROW]
    assert snapshot.winners == {"barchart": PER_SERIES, "databento": PER_SERIES}
    assert not snapshot.skipped


def test_a_proxy_does_not_spare_the_metered_vendor(tmp_path: Path) -> None:
    metered = Vendor("databento", metered=True)
    snapshot = Desk(tmp_path, Vendor("polygon", proxy=True), metered).snap()
    assert len(metered.requests) == 1
    assert snapshot.winners == {"databento": 2 * PER_SERIES}


def test_second_metered_vendor_is_asked_for_the_rest(tmp_path: Path) -> None:
    first = Vendor("tradovate", metered=True, has={TODAY})
    second = Vendor("databento", metered=True)
    Desk(tmp_path, down("barchart"), first, second).snap()
    assert [s.key for s in first.requests[0].series] == [TODAY, TOMORROW]
    assert [s.key for s in second.requests[0].series] == [TOMORROW]


def test_ask_metered_always_asks_all_vendors_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=60)
    desk = Desk(
        tmp_path,
        Vendor("barchart", perform=together.wait),
        Vendor("databento", metered=True, perform=together.wait),
        ask_metered="always",
    )
    assert desk.snap().results["databento"].answer.outcome is Outcome.OK


# ── what is written ─────────────────────────────────────────────────────────────────────────────


def test_the_lake_has_what_vendors_sent_who_won_and_every_request(tmp_path: Path) -> None:
    desk = Desk(tmp_path, down("barchart", Blocked("a captcha")), Vendor("databento"), Vendor("tradovate"))
    snapshot = desk.snap()
    assert dict(snapshot.rows) == {
        "source_chain": 168, "option_chain": 84, "decisions": 6, "answers": 3, "fetches": 3
    }  # fmt: skip
    assert shown(desk, "select source, count(*) from option_chain_latest group by 1") == [("databento", 84)]
    assert shown(desk, "select distinct source, outcome, reason from decisions where not won order by 1") == [
        ("barchart", "blocked", "a captcha"),
        ("tradovate", "ok", "healthy, but databento has priority"),
    ]
    assert shown(desk, "select source, outcome, detail from fetches order by 1") == [
        ("barchart", "blocked", "a captcha"),
        ("databento", "ok", None),
        ("tradovate", "ok", None),
    ]
    assert shown(desk, "select count(*) from source_chain join fetches using (request_id)") == [(168,)]


def test_what_could_not_be_used_of_an_answer_is_a_row(tmp_path: Path) -> None:
    untidy = Vendor(
        "barchart", dropped={"malformed_cell": 3, "spread": 2}, controls={"rows_equal_total": False}
    )
    desk = Desk(tmp_path, untidy, down("databento", Blocked("a captcha")))
    desk.snap()
    desk.snap()
    assert shown(
        desk, "select source, outcome, reason, contracts, series, cached from answers order by answered_at, 1"
    ) == [
        ("barchart", "ok", None, 84, 2, False),
        ("databento", "blocked", "a captcha", 0, 0, False),
        ("barchart", "ok", None, 84, 2, True),
        ("databento", "blocked", desk.snap().results["databento"].answer.reason, 0, 0, False),
    ]
    told = "select distinct dropped, dropped_by_reason, controls from answers order by all"
    assert shown(desk, told) == [
        (0, None, None),
        (5, '{"malformed_cell":3,"spread":2}', '{"rows_equal_total":false}'),
    ]


def test_the_same_snapshot_again_asks_nobody_and_adds_nothing(tmp_path: Path) -> None:
    vendors = Vendor("barchart"), Vendor("databento")
    desk = Desk(tmp_path, *vendors)
    first, second = desk.snap(), desk.snap()
    assert [vendor.answered for vendor in vendors] == [1, 1]
    assert all(asked.answer.cached for asked in second.results.values())
    assert (second.rows["source_chain"], second.rows["option_chain"]) == (0, 0)
    assert_frame_equal(first.chain.drop("selected_at"), second.chain.drop("selected_at"))
    assert [(asked.hits, asked.misses) for asked in second.results.values()] == [(1, 0), (1, 0)]


def test_refresh_asks_again(tmp_path: Path) -> None:
    vendor = Vendor("barchart")
    desk = Desk(tmp_path, vendor)
    desk.snap()
    assert not desk.snap(refresh=True).results["barchart"].answer.cached
    assert vendor.answered == 2


def test_failure_is_asked_again_and_not_cached(tmp_path: Path) -> None:
    vendor = down("barchart", NotEntitled("the plan lacks it"))
    desk = Desk(tmp_path, vendor)
    for _ in range(4):
        assert desk.snap().results["barchart"].answer.outcome is Outcome.NOT_ENTITLED
    assert len(vendor.requests) == 4


def test_another_question_is_not_served_from_the_cache(tmp_path: Path) -> None:
    vendor = Vendor("barchart")
    Desk(tmp_path, vendor).snap()
    Desk(tmp_path, vendor, horizon_days=2, far_expirations=False).snap()
    Desk(tmp_path, vendor, now=datetime(2025, 6, 10, 15, 1, tzinfo=UTC)).snap()
    Desk(tmp_path, vendor, barchart_delay_s=0).snap()
    assert vendor.answered == 4


def test_without_a_choice_only_what_vendors_sent_is_written(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Vendor("barchart"))
    snapshot = desk.snap(choose=False)
    assert snapshot.rows["source_chain"] == 84
    assert snapshot.chain.is_empty() and snapshot.decisions.is_empty()
    assert rows(desk, OPTION_CHAIN).is_empty() and rows(desk, DECISIONS).is_empty()


def test_nobody_answers_and_the_run_still_writes_why(tmp_path: Path) -> None:
    desk = Desk(tmp_path, down("barchart"), down("databento", metered=True))
    snapshot = desk.snap()
    assert snapshot.winners == {} and snapshot.chain.is_empty()
    assert rows(desk, DECISIONS).select("source", "outcome", "won", "reason").unique().sort(
        "source"
    ).rows() == [
        ("barchart", "unavailable", False, "nobody answers"),
        ("databento", "unavailable", False, "nobody answers"),
    ]


def test_progress_is_told_once_per_vendor(tmp_path: Path) -> None:
    told: list[str] = []
    Desk(tmp_path, Vendor("barchart"), down("databento")).snap(progress=told.append)
    assert sorted(told) == ["barchart: ok, 84 contracts", "databento: unavailable, 0 contracts"]


# ── vendors that misbehave ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """An event that comes only when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_hanging_vendor_is_left_behind(
    tmp_path: Path, never: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "GRACE_S", 0.1)
    hanging = Vendor("barchart", perform=lambda: never.wait(60))
    desk = Desk(tmp_path, hanging, Vendor("databento"), source_deadline_s=5.0)
    snapshot = desk.snap()
    assert not never.is_set()
    answer = snapshot.results["barchart"].answer
    assert answer.outcome is Outcome.UNAVAILABLE
    assert answer.reason == "no answer within 5 s (NQ_SOURCE_DEADLINE_S)"
    assert snapshot.winners == {"databento": 84}


def test_fetches_have_the_requests_of_a_hanging_vendor(
    tmp_path: Path, never: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(Vendor):
        def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
            session.call("listing", {}, lambda: b"all there is")
            return super().ask(request, session)

    monkeypatch.setattr(ask, "GRACE_S", 0.1)
    desk = Desk(tmp_path, Stuck("barchart", perform=lambda: never.wait(60)), source_deadline_s=2.0)
    desk.snap()
    assert shown(desk, "select operation, outcome, detail, bytes from fetches order by requested_at") == [
        ("listing", "ok", None, 12),
        ("chain", "unavailable", "the run went on without an answer", 0),
    ]
    record = Workspace.of(desk.settings).archive.read_run("latest")
    assert len(record["sources"]["barchart"]["used"]) == 1, "the listing can be parsed again"


def test_blocked_vendor_is_not_asked_until_refresh(tmp_path: Path) -> None:
    vendor = down("barchart", Blocked("a captcha"))
    desk = Desk(tmp_path, vendor)
    desk.snap()
    left = desk.snap().results["barchart"]
    assert len(vendor.requests) == 1
    assert left.answer.outcome is Outcome.BLOCKED and "not asked before" in left.answer.reason
    assert set(left.answer.series) == {TODAY, TOMORROW}
    desk.snap(refresh=True)
    assert len(vendor.requests) == 2


def test_cached_answer_is_served_while_the_breaker_is_open(tmp_path: Path) -> None:
    vendor = Vendor("barchart")
    desk = Desk(tmp_path, vendor)
    desk.snap()
    other = Desk(tmp_path, vendor, horizon_days=2, far_expirations=False)
    vendor.perform = failing(Blocked("a captcha"))
    assert other.snap().results["barchart"].answer.outcome is Outcome.BLOCKED
    assert desk.snap().results["barchart"].answer.cached


def test_an_answer_that_cannot_be_cached_is_written_all_the_same(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Vendor("barchart"))
    cache = Workspace.of(desk.settings).cache
    cache.mkdir(parents=True)
    (cache / "answers").write_text("in the way of the folder")
    assert desk.snap().winners == {"barchart": 2 * PER_SERIES}


def test_a_blocked_metered_vendor_is_not_asked_for_its_price(tmp_path: Path) -> None:
    metered = Vendor("databento", metered=True, perform=failing(Blocked("a captcha")))
    desk = Desk(tmp_path, down("barchart", NotEntitled("not in the plan")), metered)
    desk.snap()
    assert len(metered.requests) == 1
    snapshot = desk.snap()
    assert len(metered.requests) == 1
    assert "not asked before" in snapshot.results["databento"].answer.reason
    assert rows(desk, FETCHES).filter(source="databento", operation="price").height == 1


class Listing(Vendor):
    """Gives part of what is asked, and has something to say of the rest."""

    def __init__(self, name: str, said: Outcome) -> None:
        super().__init__(name, has={TODAY}, outcome=Outcome.PARTIAL)
        self._said = said

    def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
        reply = session.call("listing", {}, lambda: b"[]")
        session.reject(reply, self._said, "of the other series")
        return super().ask(request, session)


@pytest.mark.parametrize(("said", "asked"), [(Outcome.EMPTY, 1), (Outcome.BAD_PAYLOAD, 2)])
def test_partial_answer_to_every_request_is_cached(tmp_path: Path, said: Outcome, asked: int) -> None:
    vendor = Listing("tradovate", said)
    desk = Desk(tmp_path, vendor)
    desk.snap()
    again = desk.snap().results["tradovate"].answer
    assert (again.outcome, again.frame.height) == (Outcome.PARTIAL, PER_SERIES)
    assert len(vendor.requests) == asked


def test_fault_raises_after_other_vendors_rows_are_written(tmp_path: Path) -> None:
    desk = Desk(
        tmp_path, Vendor("barchart", perform=failing(ZeroDivisionError("a bug"))), Vendor("databento")
    )
    with pytest.raises(
        NqError, match="barchart: a fault of this program, ZeroDivisionError: a bug"
    ) as raised:
        desk.snap()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert shown(desk, "select source, count(*) from option_chain_latest group by 1") == [("databento", 84)]
    assert ("barchart", "unavailable", "a fault of this program (ZeroDivisionError)") in shown(
        desk, "select source, outcome, reason from decisions"
    )
    assert ("barchart", "unavailable", "ZeroDivisionError") in shown(
        desk, "select source, outcome, detail from fetches"
    )


def test_the_words_of_a_fault_stay_out_of_the_lake(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Vendor("barchart", perform=failing(ValueError("https://x/?apiKey=marked-secret"))))
    with pytest.raises(NqError):
        desk.snap()
    found = [table.name for table in TABLES.values() if "marked-secret" in str(rows(desk, table).rows())]
    assert found == []


def test_a_fault_does_not_open_the_circuit(tmp_path: Path) -> None:
    vendor = Vendor("barchart", perform=failing(ZeroDivisionError("a bug")))
    desk = Desk(tmp_path, vendor)
    for _ in range(4):
        with pytest.raises(NqError):
            desk.snap()
    assert len(vendor.requests) == 4


# ── replay ──────────────────────────────────────────────────────────────────────────────────────

RUN = ("run_id", "selected_at")
"""What a replay gives values of its own."""


def test_a_replay_adds_nothing_to_the_lake_that_has_the_rows(tmp_path: Path) -> None:
    vendors = Vendor("barchart", has={TODAY}), Vendor("databento")
    desk = Desk(tmp_path, *vendors)
    first = desk.snap()
    again = desk.replay()
    assert [vendor.answered for vendor in vendors] == [1, 1]
    assert (again.rows["source_chain"], again.rows["option_chain"]) == (0, 0)
    assert_frame_equal(first.chain.drop(RUN), again.chain.drop(RUN))


def test_a_replay_into_an_empty_lake_gives_the_very_rows(tmp_path: Path) -> None:
    desk = Desk(
        tmp_path, Vendor("barchart", has={TODAY}), Vendor("databento", metered=True), down("tradovate")
    )
    desk.snap()
    before = {table.name: rows(desk, table) for table in (SOURCE_CHAIN, OPTION_CHAIN)}
    shutil.rmtree(Workspace.of(desk.settings).lake.root)
    desk.replay()
    for table in (SOURCE_CHAIN, OPTION_CHAIN):
        assert_frame_equal(
            rows(desk, table).drop(RUN, strict=False), before[table.name].drop(RUN, strict=False)
        )


def test_answers_from_before_a_fault_are_parsed_again(tmp_path: Path) -> None:
    vendor = Vendor("barchart", metered=True)
    desk, ask_vendor = Desk(tmp_path, vendor), vendor.ask

    def break_after_the_answer(request: ChainRequest, session: VendorSession) -> ChainAnswer:
        ask_vendor(request, session)
        raise ZeroDivisionError

    vendor.ask = break_after_the_answer  # type: ignore[method-assign]
    with pytest.raises(NqError, match="ZeroDivisionError"):
        desk.snap()
    vendor.ask = ask_vendor  # type: ignore[method-assign]
    assert desk.replay().winners == {"barchart": 84}
    assert vendor.answered == 1


def test_replay_of_a_run_served_from_the_cache(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Vendor("barchart"))
    desk.snap()
    second = desk.snap()
    assert desk.replay(second.request.run_id).chain.height == 84


def test_replay_uses_the_settings_of_the_run_without_keys(tmp_path: Path) -> None:
    given: list[Settings] = []
    desk = Desk(tmp_path, Vendor("barchart"), polygon_url="https://first.example", barchart_delay_s=7)
    desk.snap()
    later = Desk(tmp_path, *desk.vendors.values(), barchart_delay_s=900)

    def load_later_source(name: str, settings: Settings) -> Vendor:
        given.append(settings)
        return desk.vendors[name]

    replay_snapshot(later.settings, "latest", opener=load_later_source)
    assert given[0].vendor(BarchartSettings).delay_s == 7
    assert (
        given[0].vendor(BarchartSettings).enabled
        and given[0].vendor(PolygonSettings).api_key
        and given[0].vendor(DatabentoSettings).api_key
    )


def test_fault_in_a_replay_costs_no_other_vendors_rows(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Vendor("barchart"), Vendor("databento"))
    desk.snap()
    shutil.rmtree(Workspace.of(desk.settings).lake.root)
    desk.vendors["barchart"].ask = lambda *_: 1 // 0  # type: ignore[method-assign,assignment]
    with pytest.raises(NqError, match="ZeroDivisionError"):
        desk.replay()
    assert shown(desk, "select distinct source from option_chain") == [("databento",)]


@pytest.mark.parametrize("run_id", ["never-was", "../runs/x", "latest"])
def test_a_run_that_is_not_archived_is_an_error_in_one_sentence(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(LakeError, match="no run"):
        Desk(tmp_path, Vendor("barchart")).replay(run_id)


def test_an_archived_body_that_was_tampered_with_is_not_parsed(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Vendor("barchart"))
    desk.snap()
    (body,) = (desk.settings.environment_dir / "raw").rglob("*.zst")
    body.write_bytes(b"something else")
    with pytest.raises(LakeError, match="cannot be read"):
        desk.replay()


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_next_run_completes_a_run_killed_at_any_moment(tmp_path: Path, kills: int) -> None:
    moments = random.Random(kills)
    for n in range(kills):
        data = tmp_path / str(n)
        process = subprocess.Popen(
            [sys.executable, "-m", "nq_pipeline_tests.testing.vendors", str(data)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.wait()

        desk = Desk(data, Vendor("barchart"), Vendor("databento"), ask_metered="always")
        assert shown(desk, "select count(*) from source_chain") in ([(0,)], [(168,)])
        assert shown(desk, "select count(*) from option_chain") in ([(0,)], [(84,)])
        desk.snap()
        assert shown(desk, "select count(*), count(distinct contract_key) from option_chain") == [(84, 84)]
        assert shown(desk, "select source, count(*) from source_chain group by 1 order by 1") == [
            ("barchart", 84),
            ("databento", 84),
        ]
        assert shown(desk, "select count(*) from option_chain_latest") == [(84,)]
        assert Workspace.of(desk.settings).catalog.is_file()


def test_run_that_died_before_the_lake_is_completed(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Vendor("barchart"))
    Workspace.of(desk.settings).lake.root.mkdir(parents=True)
    (Workspace.of(desk.settings).lake.root / "source_chain").write_text("in the way of the table's folder")
    with pytest.raises(OSError, match="source_chain"):
        desk.snap()
    (Workspace.of(desk.settings).lake.root / "source_chain").unlink()
    assert desk.replay().rows["option_chain"] == 84
    assert desk.vendors["barchart"].answered == 1


# ── what is asked for ───────────────────────────────────────────────────────────────────────────

AT_NOW = build_settings(now=NOW)


def test_default_request_is_every_expiration_in_the_horizon() -> None:
    request = build_request(AT_NOW.with_values(horizon_days=2, far_expirations=False))
    assert [s.key for s in request.series] == [TODAY, TOMORROW, "Q2D-2025-06-12"]
    assert request.trade_date == date(2025, 6, 10)
    assert request.snapshot_ts == request.moment == NOW
    assert request.vendor_codes == {}


def test_default_request_has_the_next_monthly_and_quarterly_expiration() -> None:
    within = build_request(AT_NOW.with_values(far_expirations=False)).series
    beyond = [s.key for s in build_request(AT_NOW).series if s not in within]
    assert beyond == ["QNE-2025-06-30", "NQ-2025-09-19"]


@pytest.mark.parametrize("text", ["Q1B-2025-07-01", "q1b-2025-07-01", " Q1B-2025-07-01 "])
@pytest.mark.parametrize("source", [None, "barchart", "databento"])
def test_a_series_is_named_by_its_key_and_that_is_no_vendors_code(text: str, source: str | None) -> None:
    request = build_request(AT_NOW, series=[text], source=source)
    assert request.series == (Series("Q1B", date(2025, 7, 1)),)
    assert request.vendor_codes == {}


@pytest.mark.parametrize("code", ["MM1N5", "MM1N25", "mm1n5"])
def test_barcharts_own_code_names_a_series_when_barchart_is_asked(code: str) -> None:
    request = build_request(AT_NOW, series=[code], source="barchart")
    assert [s.key for s in request.series] == ["Q1B-2025-07-01"]
    assert request.vendor_codes == {"Q1B-2025-07-01": code}


def test_series_are_unique_and_sorted_by_expiration() -> None:
    request = build_request(AT_NOW, series=["Q1B-2025-07-01", TOMORROW, "q1b-2025-07-01", TODAY])
    assert [s.key for s in request.series] == [TODAY, TOMORROW, "Q1B-2025-07-01"]


@pytest.mark.parametrize(
    ("text", "source", "words"),
    [
        ("MM1N5", None, "'MM1N5' is not a series; write ROOT-YYYY-MM-DD, e.g. Q1B-2025-07-01, or give"),
        ("MM1N5", "databento", "with `--source barchart`"),
        ("Q1B-2025-02-30", None, "is not a series"),
        ("", None, "is not a series"),
        ("ZZZ-2025-07-01", None, "ZZZ is not a root of options on futures"),
        ("MQ4-2025-07-25", None, "MQ4 is not a root of options on futures"),
        ("ZZZ-2025-07-01", "barchart", "ZZZ is not a root of options on futures"),
        ("XX1N5", "barchart", "'XX1N5' is not a Barchart series"),
        ("MM1", "barchart", "'MM1' is not a Barchart series"),
    ],
)
def test_invalid_series_is_an_error(text: str, source: str | None, words: str) -> None:
    with pytest.raises(SettingsError) as raised:
        build_request(AT_NOW, series=[text], source=source)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.text(max_size=20), st.sampled_from([None, "barchart", "polygon"]))
def test_any_text_is_a_series_or_an_error_of_ours(text: str, source: str | None) -> None:
    try:
        request = build_request(AT_NOW, series=[text], source=source)
    except SettingsError:
        return
    assert request.series[0].root in ROOTS


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (AT_NOW.with_values(products=("NQ", "XX")), "NQ_PRODUCTS: XX is not in the product table"),
        (AT_NOW.with_values(products=()), "NQ_PRODUCTS: nothing is not in"),
        (
            build_settings(now=datetime(2026, 4, 3, 13, tzinfo=UTC), horizon_days=0, far_expirations=False),
            "raise NQ_HORIZON_DAYS",
        ),
    ],
)
def test_settings_without_any_series_are_an_error(settings: Settings, words: str) -> None:
    with pytest.raises(SettingsError) as raised:
        build_request(settings)
    assert words in str(raised.value)


def test_scheduled_time_is_used_unless_the_clock_is_pinned() -> None:
    scheduled = datetime(2025, 6, 11, 14, 30, tzinfo=UTC)
    assert build_request(build_settings(), scheduled=scheduled).snapshot_ts == scheduled
    assert build_request(build_settings(), scheduled=scheduled).trade_date == date(2025, 6, 11)
    assert build_request(AT_NOW, scheduled=scheduled).snapshot_ts == NOW


def test_after_the_close_the_chain_speaks_of_the_close() -> None:
    evening = datetime(2025, 6, 10, 20, 30, tzinfo=UTC)  # 15:30 in Chicago
    request = build_request(build_settings(now=evening))
    assert request.snapshot_ts == evening
    assert request.moment == datetime(2025, 6, 10, 20, 0, tzinfo=UTC)


def test_the_record_of_a_run_holds_no_secret(tmp_path: Path) -> None:
    secrets = {
        "polygon_api_key": "marked-secret",
        "databento_api_key": "marked-secret",
        "barchart_cookies": "marked-secret",
        "tradovate_password": "marked-secret",
        "tradovate_sec": "marked-secret",
    }
    desk = Desk(tmp_path, *(Vendor(n) for n in ("barchart", "polygon", "tradovate", "databento")), **secrets)
    desk.snap()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if b"marked-secret" in path.read_bytes()] == []
    (record,) = (desk.settings.environment_dir / "raw" / "runs").glob("*.json")
    assert set(orjson.loads(record.read_bytes())["sources"]) == set(desk.vendors)


def test_gateway_address_does_not_affect_the_cache(tmp_path: Path) -> None:
    vendor = Vendor("databento")
    Desk(tmp_path, vendor, databento_gateway="127.0.0.1:1").snap()
    again = Desk(tmp_path, vendor, databento_gateway="127.0.0.1:2").snap()
    assert len(vendor.requests) == 1
    assert again.results["databento"].answer.cached


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def finish(desk: Desk, told: list[str]) -> list[Snapshot]:
    later = NOW + timedelta(minutes=1)
    return finish_killed_runs(desk.settings, before=later, opener=desk.open, progress=told.append)


@pytest.mark.parametrize(
    "where", ["nq_pipeline.chains.snapshot.select_and_store", "nq_pipeline.lake.store.Lake.append_all"]
)
def test_a_killed_run_is_finished_from_its_archived_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    whole = Desk(tmp_path / "whole", Vendor("barchart"), down("polygon"), Vendor("databento", metered=True))
    whole.vendors["barchart"].has = {TODAY}
    whole.snap()
    desk = Desk(tmp_path / "killed", *whole.vendors.values())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, die)
        desk.snap()
    answered = [vendor.answered for vendor in desk.vendors.values()]
    told: list[str] = []
    (finished,) = finish(desk, told)
    assert "was killed; finished from its archived answers" in told[0]
    assert [vendor.answered for vendor in desk.vendors.values()] == answered, "a vendor was asked again"

    volatile = ["run_id", "request_id", "raw_sha256", "selected_at", "decided_at"]
    for table in (SOURCE_CHAIN, OPTION_CHAIN, DECISIONS):
        assert_frame_equal(
            rows(desk, table).drop(volatile, strict=False).drop("reason", strict=False),
            rows(whole, table).drop(volatile, strict=False).drop("reason", strict=False),
        )
    archived = {path.stem for path in (desk.settings.environment_dir / "raw").glob("*/trade_date=*/*.zst")}
    fetched = rows(desk, FETCHES).filter(pl.col("raw_sha256").is_not_null())
    assert set(fetched["request_id"]) <= archived and set(fetched["run_id"]) == {finished.request.run_id}
    assert finish(desk, told) == [] and len(told) == 1


def test_a_killed_run_that_selects_no_chain_is_finished_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, Vendor("barchart"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nq_pipeline.lake.store.Lake.append_all", die)
        desk.snap(choose=False)
    (finished,) = finish(desk, [])
    assert finished.rows["source_chain"] == 84
    assert finished.chain.is_empty() and finished.decisions.is_empty()


def test_a_killed_run_has_the_answers_of_every_metered_vendor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Vendor("tradovate", metered=True, has={TOMORROW})
    vendors = Vendor("barchart", has={TODAY}), first, Vendor("databento", metered=True)
    desk = Desk(tmp_path, *vendors, horizon_days=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nq_pipeline.chains.snapshot.select_and_store", die)
        desk.snap()
    (finished,) = finish(desk, [])
    assert finished.winners == dict.fromkeys(("barchart", "tradovate", "databento"), PER_SERIES)


def test_a_killed_run_of_an_unknown_vendor_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, Vendor("barchart"), Vendor("databento"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nq_pipeline.lake.store.Lake.append_all", die)
        desk.snap()
    del desk.vendors["databento"]
    told: list[str] = []
    assert finish(desk, told) == []
    assert "'databento'" in told[0] and "cannot be finished" in told[0]
    with pytest.raises(LakeError, match="'databento'"):
        desk.replay()


def test_a_run_that_goes_on_or_got_no_answer_is_not_finished(tmp_path: Path) -> None:
    seen: list[object] = []
    desk = Desk(tmp_path, Vendor("barchart", perform=lambda: seen.append(finish(desk, []))))
    desk.snap()
    assert seen == [[]] and not list((tmp_path / "live" / "raw" / "begun").iterdir())
    (tmp_path / "live" / "raw" / "begun" / "dead.json").write_text(
        next((tmp_path / "live" / "raw" / "runs").iterdir()).read_text()
    )
    told: list[str] = []
    shutil.rmtree(tmp_path / "live" / "lake")
    assert len(finish(desk, told)) == 1, "its answers were those of another run, which are archived"
    (tmp_path / "live" / "raw" / "begun" / "torn.json").write_text("{")
    (tmp_path / "live" / "raw" / "begun" / "short.json").write_text('{"sources": {}}')
    assert finish(desk, told) == []
    assert "short.json is damaged" in told[-2] and "torn.json is damaged" in told[-1]


def test_a_killed_run_of_the_same_moment_is_left_to_the_run_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, Vendor("barchart"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nq_pipeline.lake.store.Lake.append_all", die)
        desk.snap()
    assert finish_killed_runs(desk.settings, before=NOW, opener=desk.open) == []
    assert len(finish(desk, [])) == 1


# ── a damaged lake ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["fetches", "answers", "source_chain", "option_chain", "entitlements", "spend"]
)
def test_a_damaged_table_costs_a_run_only_its_own_rows(tmp_path: Path, name: str) -> None:
    desk = Desk(tmp_path, down("polygon", NotEntitled("not in the plan")), Vendor("databento"))
    first = desk.snap()
    lake = Workspace.of(desk.settings).lake
    files = list(map(Path, lake.files(TABLES[name])))
    if not files:  # nothing was spent, so the manifest is what is damaged
        files = [lake.root / name / "manifest.json"]
        files[0].parent.mkdir(exist_ok=True)
    files[0].write_bytes(b"PAR1")
    with pytest.raises(LakeError, match=f"nq repair {name}"):
        desk.snap(refresh=True)

    written = {"fetches": FETCHES, "source_chain": SOURCE_CHAIN, "option_chain": OPTION_CHAIN}
    for other, table in written.items():
        if other != name:
            assert rows(desk, table).height >= first.rows[other], other
            assert shown(desk, f"select count(*) from {other}") == [(rows(desk, table).height,)]
    assert rows(desk, DECISIONS)["run_id"].n_unique() == (1 if name in first.rows else 2)
    assert Workspace.of(desk.settings).catalog.exists()
