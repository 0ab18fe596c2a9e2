"""A day of history: bought once, proven, in the lake; whatever the vendor or a crash does."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import zstandard

from nq_pipeline.backfill.day import BackfillDay, backfill_day
from nq_pipeline.backfill.plan import budget_refusal, plan_backfill
from nq_pipeline.backfill.scope import HOURS_PER_QUERY, SCHEMAS
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.errors import NotEntitled, SettingsError
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import BACKFILLS, BBO_1M, DEFINITION, ENTITLEMENTS, MBO, STATISTICS, TRADES
from nq_pipeline.sandbox.synthetic.instruments import universe
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.sandbox.synthetic.records import minute_quote_records
from nq_pipeline.sandbox.synthetic.tape import tape
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.gap_history import DatabentoHistory
from nq_pipeline.sources.databento.history_store import HistoryStore
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.money import ZERO
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.backfill_vendor import (
    CONDITION,
    COUNT,
    METERED,
    STREAM,
    SUBMIT,
    Change,
    Vendor,
    form,
    only,
    refused,
    vendor,
)
from nq_pipeline_tests.testing.dbn_samples import head
from nq_pipeline_tests.testing.feeds import publisher
from nq_pipeline_tests.testing.gateway_client import gateway, log_session, unlimited
from nq_pipeline_tests.testing.http_server import Answer, Asked, serve

MONDAY, TUESDAY, WEDNESDAY = date(2025, 6, 9), date(2025, 6, 10), date(2025, 6, 11)
OPEN, CLOSE = datetime(2025, 6, 8, 22, tzinfo=UTC), datetime(2025, 6, 9, 21, tzinfo=UTC)


def lake(settings: Settings) -> Lake:
    return Workspace.of(settings).lake


def history_store(settings: Settings) -> HistoryStore:
    return HistoryStore.of(settings)


def backfill(settings: Settings, schema: str = "trades", day: date = MONDAY, **more: Any) -> BackfillDay:
    return backfill_day(settings, schema, day, **more)


# What a day holds


@pytest.mark.parametrize("schema", [schema for schema in SCHEMAS if schema != "bbo-1m"])
def test_a_day_has_as_many_rows_as_the_vendor_counts(
    schema: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HOURS_PER_QUERY, "mbo", 6)
    with vendor(data) as databento:
        settings = databento.settings()
        day = backfill(settings, schema)
        assert day.state == "complete" and day.records > 0
        rows = {"trades": TRADES, "mbo": MBO, "definition": DEFINITION, "statistics": STATISTICS}
        if schema in rows:
            assert lake(settings).scan(rows[schema]).collect().height == day.records
        (row,) = lake(settings).scan(BACKFILLS).collect().iter_rows(named=True)
        assert (row["state"], row["records"], row["schema"]) == ("complete", day.records, schema)
        assert row["cost_usd"] == day.cost_usd > 0
        assert day.dropped == 0


def test_trades_are_the_markets_with_symbol_and_contract(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        backfill(settings)
        frame = lake(settings).scan(TRADES).sort("ts_event", "sequence", "ordinal").collect()
    truth = tape(market(7)).records("trades", to_ns(OPEN), to_ns(CLOSE))
    ids = frame["instrument_id"].unique()
    mine = truth[pl.Series(truth["instrument_id"]).is_in(ids.implode()).to_numpy()]
    assert Counter(zip(mine["instrument_id"].tolist(), mine["ts_event"].tolist(), strict=True)) == Counter(
        zip(frame["instrument_id"], frame["ts_event"].dt.epoch("ns"), strict=True)
    )
    assert frame["raw_symbol"].null_count() == 0 and set(frame["root"]) == {"Q2B"}
    assert set(frame["trade_date"]) == {MONDAY} and frame["publish_latency_ns"].null_count() == frame.height


def test_settlements_are_of_their_own_trade_date(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        backfill(settings, "statistics")
        frame = lake(settings).scan(STATISTICS).collect()
        settlements = frame.filter(stat_type=3)
        assert settlements["ts_ref"].dt.date().unique().to_list() == [MONDAY]
        assert (
            settlements["price"].null_count() == 0
            and settlements["quantity"].null_count() == settlements.height
        )


def test_rows_in_the_lake_are_not_added_again(data: Path) -> None:
    with vendor(data) as databento:
        few = backfill(databento.settings())
        more = backfill(databento.settings(backfill_symbols="Q2B.OPT,Q2C.OPT"))
        assert (few.known, more.known) == (0, few.rows)
        assert more.records == more.rows + few.rows
        rows = lake(databento.settings()).scan(TRADES).collect()
        assert rows.height == more.records == rows.select(TRADES.key).unique().height


def test_a_captured_trade_stays_one_row_after_a_backfill(data: Path) -> None:
    noon = datetime(2025, 6, 10, 15, tzinfo=UTC)
    with vendor(data) as databento:
        settings = databento.settings()
        root = Workspace.of(settings).capture
        with (
            gateway(now=noon, load=None, limits=unlimited()).serve_in_thread() as served,
            CaptureLog(root, settings.vendor(DatabentoSettings).dataset, sync_every_s=0) as log,
        ):
            log_session(log, served, "trades", to_ns(noon) - 30 * 60 * NS_PER_S, most=2_000)
        publisher(root).publish()
        captured = lake(settings).scan(TRADES).filter(root="Q2B").sort(TRADES.key).collect()
        day = backfill(settings, day=TUESDAY)
        bought = lake(settings).scan(TRADES).filter(root="Q2B").sort(TRADES.key).collect()
    assert 0 < captured.height == day.known < day.records == bought.height
    assert bought.select(TRADES.key).is_unique().all()
    assert bought.filter(run_id="run").equals(captured)  # as they were received


def test_quotes_and_orders_are_bought_by_the_hour() -> None:
    assert HOURS_PER_QUERY == {"bbo-1m": 1, "mbo": 1}


def test_a_part_of_a_day_is_bought_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HOURS_PER_QUERY, "bbo-1m", 4)  # six parts instead of 24
    begin = datetime(2025, 6, 9, 10, tzinfo=UTC)
    late = iter([refused("data_time_range_invalid")])

    def once(asked: Asked, good: Answer) -> Answer:
        return next(late, good) if form(asked)["start"] == str(to_ns(begin)) else good

    with vendor(data, only(STREAM, once)) as databento:
        settings = databento.settings(backfill_symbols="Q1A.OPT")
        assert backfill(settings, "bbo-1m").state == "failed"
        before = len(databento.metered)
        day = backfill(settings, "bbo-1m")
        spans = [(int(asked["start"]), int(asked["end"])) for asked in databento.metered]
        rows = lake(settings).scan(BBO_1M).sort(BBO_1M.key).collect()
    assert (day.state, day.records, day.dropped) == ("complete", rows.height, 0), day.reason
    assert spans[before - 1] == spans[before] and len(set(spans)) == len(spans) - 1 == 6
    truth = minute_quote_records(
        market(7), universe(market(7), MONDAY).filter(parent="Q1A.OPT"), *spans[before]
    )
    mine = rows.filter(pl.col("ts_recv").is_between(begin, begin + timedelta(hours=4), closed="left")).sort(
        "ts_recv", "instrument_id"
    )
    assert mine["ask_sz_00"].to_list() == truth["ask_sz_00"].tolist()


# Asking once


def test_a_complete_day_is_not_requested_again(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        first, before = backfill(settings), len(databento.server.asked)
        again = backfill(settings)
        assert again.state == "complete" and again.already and again.cost_usd == 0
        assert len(databento.server.asked) == before
        assert backfill(databento.settings(backfill_symbols="Q2B.OPT,Q2C.OPT")).already is False
        assert first.cost_usd > 0


def test_concurrent_backfills_of_a_day_buy_once(data: Path) -> None:
    together = threading.Barrier(2)

    def counted(asked: Asked, good: Answer) -> Answer:
        with suppress(threading.BrokenBarrierError):  # the other one waits for the lock
            together.wait(0.5)
        return good

    with vendor(data, only(COUNT, counted)) as databento, ThreadPoolExecutor() as both:
        settings = databento.settings()
        days = list(both.map(lambda _: backfill(settings), range(2)))
        assert {day.state for day in days} == {"complete"} and len(databento.metered) == 1
    assert lake(settings).scan(TRADES).collect().height == days[0].records == days[1].records


def test_a_day_without_its_row_is_not_bought_again(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        first = backfill(settings)
        for table in (BACKFILLS, TRADES):  # as if it had been killed before they were written
            shutil.rmtree(lake(settings).folder(table))
        again = backfill(settings)
        assert (again.state, again.rows, again.cost_usd) == ("complete", first.rows, ZERO)
        assert len(databento.metered) == 1


def test_a_complete_interrupted_download_is_used(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        backfill(settings)
        (file,) = history_store(settings).folder.rglob("*.dbn.zst")
        file.with_suffix("").with_suffix(".json").unlink()
        file.rename(file.with_suffix("").with_suffix(".part"))
        for table in (BACKFILLS, TRADES):
            shutil.rmtree(lake(settings).folder(table))
        assert backfill(settings).state == "complete"
        assert len(databento.metered) == 1


@pytest.mark.parametrize("name", [".part", ".dbn.zst"])
def test_a_partial_download_is_bought_again(name: str, data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        backfill(settings)
        (file,) = history_store(settings).folder.rglob("*.dbn.zst")
        file.with_suffix("").with_suffix(".json").unlink()
        part = file.read_bytes()[:-9]
        file.unlink()
        file.with_suffix("").with_suffix(name).write_bytes(part)
        shutil.rmtree(lake(settings).folder(BACKFILLS))
        assert backfill(settings).state == "complete"
        assert len(databento.metered) == 2


def test_a_file_without_its_proof_is_not_bought_again(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        backfill(settings)
        (file,) = history_store(settings).folder.rglob("*.dbn.zst")
        proof = file.with_suffix("").with_suffix(".json")
        shutil.rmtree(lake(settings).folder(BACKFILLS))
        proof.write_bytes(b"{")
        assert "proof" in backfill(settings).summary and len(databento.metered) == 1
        proof.unlink()
        assert backfill(settings).state == "complete" and len(databento.metered) == 1
        assert proof.exists()


def test_a_missing_purchased_file_needs_a_person(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        backfill(settings)
        (file,) = history_store(settings).folder.rglob("*.dbn.zst")
        file.unlink()
        shutil.rmtree(lake(settings).folder(BACKFILLS))
        assert f"purchased file {file} is missing" in backfill(settings).summary
        assert len(databento.metered) == 1


@pytest.mark.parametrize("schema", ["trades", "definition"])
def test_a_damaged_purchased_file_fails_its_day_alone(schema: str, data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        backfill(settings, schema)
        (file,) = history_store(settings).folder.rglob("*.dbn.zst")
        file.write_bytes(file.read_bytes()[:-9])
        shutil.rmtree(lake(settings).folder(BACKFILLS))
        day = backfill(settings, schema)
        assert day.state == "failed" and file.name in day.reason
        assert backfill(settings, schema, TUESDAY).state == "complete"


# What cannot be trusted


def half_clean(asked: Asked, good: Answer) -> Answer:
    """A zstd frame that has no end, in a body that has."""
    return replace(good, body=good.body[: len(good.body) // 2])


def short(asked: Asked, good: Answer) -> Answer:
    """A perfect file that lacks its last record."""
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(good.body)
    return replace(good, body=zstandard.compress(plain[:-48]))


@pytest.mark.parametrize(
    ("broken", "words", "held"),
    [
        (lambda asked, good: replace(good, cut=True), "cut off", True),
        (half_clean, "cut off", True),
        (short, "the vendor counts", False),  # it came whole, so it is paid
        (lambda asked, good: replace(good, body=zstandard.compress(head("mbo"))), "of schema mbo", True),
        (lambda asked, good: Answer(b"<html>", content_type="text/html"), "not a DBN file", True),
        (lambda asked, good: Answer(b"oops", 500), "failed", True),
        (lambda asked, good: refused("data_time_range_invalid"), "refused", False),
    ],
)
def test_an_unproven_body_makes_no_rows_and_its_cost_is_booked(
    broken: Change, words: str, held: bool, data: Path
) -> None:
    with vendor(data, only(STREAM, broken)) as databento:
        settings = databento.settings()
        day = backfill(settings)
    assert day.state == "failed" and words in day.reason
    assert lake(settings).manifest(TRADES).rows == 0
    ledger = open_ledger(settings)
    assert bool(ledger.open_reservations()) is held
    month = ledger.month()
    assert day.cost_usd == month.metered_usd + month.reserved_usd
    with vendor(data) as healthy:
        settings = healthy.settings()
        assert backfill(settings).state == "complete"


def test_each_retry_has_its_own_reservation(data: Path) -> None:
    faults = iter([Answer(b"oops", 503), Answer(hang_up=True)])
    with vendor(data, only(STREAM, lambda asked, good: next(faults, good))) as databento:
        settings = databento.settings(http_attempts=3)
        day = backfill(settings)
        assert day.state == "complete" and len(databento.metered) == 3
    assert len(open_ledger(settings).open_reservations()) == 2
    assert (
        day.cost_usd == open_ledger(settings).month().metered_usd + open_ledger(settings).month().reserved_usd
    )


# Where a day begins and ends


def included(asked: Asked) -> Answer:
    """A vendor whose plan includes everything."""
    reach = {"start": "2010-06-06T00:00:00Z", "end": "2026-01-01T00:00:00Z"}
    return Answer(orjson.dumps(reach) if asked.path.endswith("get_dataset_range") else b"0")


SUMMER, THANKS = (date(2025, 3, 7), date(2025, 3, 10)), (date(2025, 11, 28), date(2025, 12, 1))


@pytest.mark.parametrize(
    ("days", "schema", "edges"),
    [
        # Summer time begins on the Sunday: Friday opened at 23:00 UTC, Monday opens at 22:00.
        (SUMMER, "trades", ["06T23:00", "07T23:00", "09T22:00", "10T22:00"]),
        (SUMMER, "statistics", ["06T23:00", "09T22:00", "09T22:00", "10T22:00"]),
        # Thanksgiving is of the Friday's trade date, which closes at 12:15 in Chicago.
        (THANKS, "trades", ["26T23:00", "28T19:15", "30T23:00", "01T23:00"]),
        (THANKS, "statistics", ["26T23:00", "30T23:00", "30T23:00", "01T23:00"]),
    ],
)
def test_spans_of_trade_dates_at_clock_changes_and_holidays(
    days: tuple[date, date], schema: str, edges: list[str], data: Path
) -> None:
    with serve(included) as server:
        settings = Vendor(server, data).settings(now="2026-01-01T00:00:00Z")
        assert [day.usd for day in plan_backfill(settings, schema, *days)] == [0, 0]
        asked = [form(one) for one in server.asked if one.path.endswith("get_cost")]
    found = [from_ns(int(one[edge])) for one in asked for edge in ("start", "end")]
    assert [f"{instant:%dT%H:%M}" for instant in found] == edges


# Days that are none


def test_a_day_without_a_session_is_empty_and_asks_nobody(data: Path) -> None:
    with vendor(data) as databento:
        for day in (date(2025, 6, 7), date(2025, 7, 4), date(2025, 4, 18)):
            assert backfill(databento.settings(), day=day).state == "empty"
        assert not databento.server.asked


def test_a_day_without_listings_is_empty_and_free(data: Path) -> None:
    nothing: Change = lambda asked, good: (  # noqa: E731
        refused("symbology_invalid_request")
        if asked.path.startswith("/v0/metadata.get_") and asked.body
        else good
    )
    with vendor(data, nothing) as databento:
        settings = databento.settings()
        day = backfill(settings)
        assert (day.state, day.cost_usd) == ("empty", ZERO) and not databento.metered


def test_a_day_that_is_not_over_is_pending(data: Path) -> None:
    with vendor(data) as databento:
        day = backfill(databento.settings(), day=WEDNESDAY)
        assert day.state == "pending" and "not over" in day.reason and not databento.metered


@pytest.mark.parametrize(
    ("condition", "state", "bought"),
    [
        ("degraded", "complete", 1),
        ("missing", "complete", 1),
        ("pending", "pending", 0),
        ("available", "complete", 1),
    ],
)
def test_the_condition_of_a_day_is_recorded(condition: str, state: str, bought: int, data: Path) -> None:
    def worse(asked: Asked, good: Answer) -> Answer:
        return replace(good, body=good.body.replace(b"available", condition.encode(), 1))

    with vendor(data, only(CONDITION, worse)) as databento:
        day = backfill(databento.settings())
        assert (day.condition, day.state, len(databento.metered)) == (condition, state, bought)
        assert (f"the vendor calls it {condition}" in day.summary) is (condition in ("degraded", "missing"))


def test_a_missing_day_without_records_is_missing(data: Path) -> None:
    def missing(asked: Asked, good: Answer) -> Answer:
        if asked.path == CONDITION:
            return replace(good, body=good.body.replace(b"available", b"missing"))
        return Answer(b"0") if asked.path == COUNT else good

    with vendor(data, missing) as databento:
        assert backfill(databento.settings()).state == "missing"
        assert not databento.metered


# Money


def test_the_plan_prices_every_trade_date_and_buys_nothing(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        days = plan_backfill(settings, "trades", date(2025, 6, 6), WEDNESDAY)
        assert [day.trade_date for day in days] == [date(2025, 6, 6), MONDAY, TUESDAY, WEDNESDAY]
        assert [day.state for day in days] == [None, None, None, "pending"]
        assert all(day.usd > 0 and day.size and day.at for day in days[:3]) and not databento.metered
        assert backfill(settings, max_usd=days[1].usd).cost_usd == days[1].usd  # to the billionth
        assert plan_backfill(settings, "trades", MONDAY, MONDAY)[0].state == "complete"


def test_without_a_budget_nothing_metered_is_asked(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings(budget_daily_usd=0)
        day = backfill(settings)
        assert day.state == "over_budget" and "NQ_BUDGET_DAILY_USD" in day.reason
        sentence = budget_refusal(settings, plan_backfill(settings, "trades", MONDAY, TUESDAY))
        assert sentence is not None and "NQ_BUDGET_DAILY_USD" in sentence
        assert (
            budget_refusal(databento.settings(), plan_backfill(settings, "trades", MONDAY, TUESDAY)) is None
        )
        assert not databento.metered


def test_no_more_is_committed_than_was_reserved(data: Path) -> None:
    cheaper = only(
        "/v0/metadata.get_cost",
        lambda asked, good: replace(good, body=repr(float(good.body) * 0.992).encode()),
    )
    with vendor(data, cheaper) as databento:
        settings = databento.settings()
        day = backfill(settings)
    (held,) = (line for line in open_ledger(settings).lines() if line.kind.value == "reserved")
    assert 0 < day.cost_usd <= held.reserved_usd


@pytest.mark.parametrize("schema", ["trades", "mbo"])
def test_a_call_stays_within_max_usd(schema: str, data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        (price,) = plan_backfill(settings, schema, MONDAY, MONDAY)  # of mbo: of many questions
        day = backfill(settings, schema, max_usd=price.usd * Decimal("0.9"))
        assert day.state == "over_budget" and "--max-usd" in day.reason and not databento.metered


def test_the_limit_counts_what_a_failure_left_reserved(data: Path) -> None:
    faults = iter([Answer(hang_up=True)])
    with vendor(data, only(STREAM, lambda asked, good: next(faults, good))) as databento:
        settings = databento.settings(http_attempts=2)
        (price,) = plan_backfill(settings, "trades", MONDAY, MONDAY)
        day = backfill(settings, max_usd=price.usd)
        assert day.state == "over_budget" and len(databento.metered) == 1
        assert open_ledger(settings).month().reserved_usd == day.cost_usd >= price.usd
        assert backfill(settings, max_usd=price.usd).state == "complete"


def test_purchases_have_their_purpose_and_their_request(data: Path) -> None:
    with vendor(data) as databento:
        settings = databento.settings()
        day = backfill(settings, run_id="this-run")
    lines = [line for line in open_ledger(settings).lines() if line.kind.value == "committed"]
    assert [(line.purpose, line.run_id, line.request_id) for line in lines] == [
        ("backfill", "this-run", day.request_ids[0])
    ]


# Batch jobs


def test_a_large_day_is_bought_as_a_batch_job(data: Path, tmp_path: Path) -> None:
    with vendor(data) as databento:
        streamed = backfill(databento.settings())
    with vendor(tmp_path / "other") as databento:
        settings = databento.settings(backfill_batch_mb=1, backfill_symbols="Q2B.OPT,NQ.FUT")
        assert plan_backfill(settings, "trades", MONDAY, MONDAY)[0].batch
        day = backfill(settings)
        assert (day.state, day.mode) == ("complete", "historical")
        assert [asked.path for asked in databento.server.asked if asked.path in METERED] == [SUBMIT]
        options = lake(settings).scan(TRADES).filter(instrument_kind="option").collect()
        assert options.height == streamed.rows
        assert open_ledger(settings).month().metered_usd == day.cost_usd > 0
        assert (day.request_ids[0],) == tuple(
            line.request_id for line in open_ledger(settings).lines() if line.kind.value == "committed"
        )


BATCH: dict[str, Any] = {"backfill_batch_mb": 1, "backfill_symbols": "Q2B.OPT,NQ.FUT"}


def test_a_job_of_a_crashed_run_is_found_and_not_paid_again(data: Path, tmp_path: Path) -> None:
    lost = only(SUBMIT, lambda asked, good: Answer(hang_up=True))  # accepted, and the answer lost
    with vendor(data, lost) as databento:
        settings = databento.settings(**BATCH)
        day = backfill(settings)
        assert day.state == "failed" and day.cost_usd > 0
        assert len(open_ledger(settings).open_reservations()) == 1
    with vendor(data) as databento:
        settings = databento.settings(**BATCH)
        assert backfill(settings).state == "complete"
        assert not databento.metered


def test_an_unconfirmed_submission_is_not_repeated_at_once(data: Path) -> None:
    unknown: Change = lambda asked, good: (  # noqa: E731
        Answer(hang_up=True) if asked.path == SUBMIT else Answer(b"[]") if "list_jobs" in asked.path else good
    )
    with vendor(data, unknown) as databento:
        settings = databento.settings(**BATCH)
        backfill(settings)
        again = backfill(settings)
        assert again.state == "failed" and "not paid twice" in again.reason
        assert len(databento.metered) == 1


def test_the_next_call_waits_for_a_slow_job(data: Path) -> None:
    slow = only(
        "/v0/batch.get_job_details",
        lambda asked, good: replace(good, body=good.body.replace(b'"done"', b'"queued"')),
    )
    with vendor(data, slow) as databento:
        day = backfill(databento.settings(**BATCH, backfill_wait_s=0.3))
        assert day.state == "failed" and "it is paid" in day.reason
    with vendor(data) as databento:
        assert backfill(databento.settings(**BATCH)).state == "complete"
        assert not databento.metered


def test_an_expired_job_is_paid_again_only_on_a_persons_word(data: Path) -> None:
    expired = only(
        "/v0/batch.get_job_details",
        lambda asked, good: replace(good, body=good.body.replace(b'"done"', b'"expired"')),
    )
    with vendor(data, expired) as databento:
        settings = databento.settings(**BATCH)
        for _ in range(2):
            day = backfill(settings)
            assert day.state == "failed" and "expired" in day.reason
        assert len(databento.metered) == 1
    (job,) = history_store(settings).folder.rglob("*.job")
    assert str(job) in day.reason


def test_a_job_file_of_something_else_is_named(data: Path) -> None:
    with vendor(data, only(SUBMIT, lambda asked, good: Answer(hang_up=True))) as databento:
        settings = databento.settings(**BATCH)
        backfill(settings)
        (job,) = history_store(settings).folder.rglob("*.job")
        job.write_bytes(b"[1]")
        day = backfill(settings)
        assert day.state == "failed" and f"{job} names no batch job" in day.reason
        job.unlink()
        assert backfill(databento.settings(**BATCH)).state == "complete"
        assert len(databento.metered) == 1


def test_a_job_with_too_few_records_is_no_day(data: Path) -> None:
    more = only(COUNT, lambda asked, good: Answer(str(int(good.body) + 1).encode()))
    with vendor(data, more) as databento:
        day = backfill(databento.settings(**BATCH))
        assert day.state == "failed" and "free to download again" in day.reason
    with vendor(data) as databento:
        assert backfill(databento.settings(**BATCH)).state == "complete"
        assert not databento.metered


def test_a_damaged_job_file_is_not_used(data: Path) -> None:
    def damaged(asked: Asked, good: Answer) -> Answer:
        if "/batch/download/" not in asked.path:
            return good
        return replace(good, body=good.body[:-4] + b"\0\0\0\0")

    with vendor(data, damaged) as databento:
        day = backfill(databento.settings(**BATCH))
        assert day.state == "failed" and "differs from" in day.reason
    with vendor(data) as databento:
        assert backfill(databento.settings(**BATCH)).state == "complete"
        assert not databento.metered


def test_a_paid_job_needs_no_budget(data: Path) -> None:
    slow = only(
        "/v0/batch.get_job_details",
        lambda asked, good: replace(good, body=good.body.replace(b'"done"', b'"queued"')),
    )
    with vendor(data, slow) as databento:
        paid = backfill(databento.settings(**BATCH, backfill_wait_s=0.3)).cost_usd
    with vendor(data) as databento:
        settings = databento.settings(**BATCH, budget_daily_usd=paid)
        (price,) = plan_backfill(settings, "trades", MONDAY, MONDAY)
        assert (price.usd, price.batch) == (ZERO, True) and budget_refusal(settings, [price]) is None
        assert backfill(settings, max_usd=Decimal(0)).state == "complete"
        assert paid > 0 and not databento.metered


def test_a_day_bought_as_a_job_is_not_bought_in_hours(data: Path) -> None:
    with vendor(data) as databento:
        assert backfill(databento.settings(**BATCH), "mbo").mode == "historical"
        settings = databento.settings(**{**BATCH, "backfill_batch_mb": 1_000_000})
        for table in (BACKFILLS, MBO):  # as if it had been killed before they were written
            shutil.rmtree(lake(settings).folder(table))
        again = backfill(settings, "mbo")
        assert (again.state, again.cost_usd) == ("complete", ZERO)
        assert len(databento.metered) == 1


def test_a_job_with_another_encoding_is_not_ours(data: Path) -> None:
    def otherwise(asked: Asked, good: Answer) -> Answer:
        if asked.path != "/v0/batch.list_jobs":
            return Answer(hang_up=True) if asked.path == SUBMIT else good
        return replace(good, body=good.body.replace(b'"zstd"', b'"none"'))

    with vendor(data, otherwise) as databento:
        settings = databento.settings(**BATCH)
        backfill(settings)
        assert "not listed yet" in backfill(settings).reason


def test_a_refused_submission_may_be_repeated_at_once(data: Path) -> None:
    with vendor(data, only(SUBMIT, lambda asked, good: refused("batch_unknown"))) as databento:
        day = backfill(databento.settings(**BATCH))
        assert (day.state, day.cost_usd) == ("failed", ZERO) and "batch_unknown" in day.reason
    unlisted = only("/v0/batch.list_jobs", lambda asked, good: Answer(b"[]"))
    with vendor(data, unlisted) as databento:
        assert backfill(databento.settings(**BATCH)).state == "complete"
        assert len(databento.metered) == 1


# Entitlement


def test_a_refusal_stands_for_that_date_and_later_ones(data: Path) -> None:
    with vendor(data, only(STREAM, lambda asked, good: refused("dataset_unavailable_range"))) as databento:
        settings = databento.settings()
        assert [backfill(settings, day=day).state for day in (MONDAY, TUESDAY, MONDAY)] == [
            "not_entitled"
        ] * 3
        assert len(databento.metered) == 1
        (row,) = lake(settings).scan(ENTITLEMENTS).collect().iter_rows(named=True)
        assert (row["schema"], row["mode"], row["entitled"]) == ("trades", "historical", False)
        assert "dataset_unavailable_range" in row["text"] and row["ask_again"] == date(2025, 6, 12)
        assert open_ledger(settings).open_reservations() == []
        backfill(settings, day=date(2025, 6, 6))  # older data may be granted
        assert len(databento.metered) == 2
    with vendor(data) as databento:
        later = databento.settings(now="2025-06-11T23:00:00Z")
        assert backfill(later).state == "complete"


def test_a_backfill_honours_a_refusal_to_gap_repair(data: Path) -> None:
    with vendor(data, only(STREAM, lambda asked, good: refused("dataset_unavailable_range"))) as databento:
        settings = databento.settings()
        for _ in range(2):
            with pytest.raises(NotEntitled, match="dataset_unavailable_range"):
                DatabentoHistory(settings).fetch(
                    "trades", ("Q2B.OPT",), to_ns(OPEN), to_ns(CLOSE), run_id="repair"
                )
        assert backfill(settings).state == "not_entitled"
        assert len(databento.metered) == 1 and open_ledger(settings).open_reservations() == []


def test_an_unknown_schema_is_a_settings_error(data: Path) -> None:
    with vendor(data) as databento, pytest.raises(SettingsError, match="schemas are trades, mbo"):
        backfill(databento.settings(), "status")
