"""How Databento's answers join into a chain."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from nq_pipeline.clock import to_ns
from nq_pipeline.dbn.layout import UNDEF_PRICE, record_layout
from nq_pipeline.dbn.stream import Records, decode
from nq_pipeline.errors import BadPayload
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.sources.databento.parse import Parsed, definitions, parse_chain, quotes, statistics
from nq_pipeline.sources.databento.query import DEFINITION, TRADES
from nq_pipeline_tests.testing.databento_answers import (
    SPANS,
    officially,
    plain,
    recorded,
    records_start,
    synthetic,
)
from nq_pipeline_tests.testing.databento_records import (
    A_CALL,
    A_FUTURE,
    A_PUT,
    CALL,
    DAYS,
    DEFINED,
    PUT,
    SERIES,
    body,
    quote,
    stat,
    trade,
)
from nq_pipeline_tests.testing.source_contract import MOMENT

NEVER = 2**63 - 1


def joined(
    definition: list[Mapping[str, Any]] = DEFINED,
    *,
    moment: datetime = MOMENT,
    **answers: list[Mapping[str, Any]],
) -> Parsed:
    bodies = {DEFINITION: definition} | {name.replace("_", "-"): rows for name, rows in answers.items()}
    records = {schema: decode(body(schema, rows, DAYS), schema) for schema, rows in bodies.items()}
    session = sessions.current_session(moment)
    asked_at = to_ns(moment + timedelta(hours=8))
    return parse_chain(records, SERIES, session=session, until=to_ns(moment) + 1, published=asked_at)


def cell(parsed: Parsed, symbol: str, column: str) -> Any:
    return parsed.frame.filter(pl.col("raw_symbol") == symbol)[column].item()


def test_the_last_definition_counts_and_drops_are_counted() -> None:
    call, put = A_CALL, A_PUT
    parsed = joined(
        [
            *DEFINED,
            {**call, "unit_of_measure_qty": 10},
            {**put, "security_update_action": b"D"},
            {**call, "instrument_id": 14, "raw_symbol": b"UD:1V: VT 1", "instrument_class": b"T"},
            {
                **call,
                "instrument_id": 14,
                "raw_symbol": b"UD:1V: VT 1",
                "instrument_class": b"T",
                "leg_index": 1,
            },
            {**call, "instrument_id": 15, "raw_symbol": b"UD:1V: C", "user_defined_instrument": b"Y"},
            {**call, "instrument_id": 16, "raw_symbol": b"Q2CM5 C1", "strike_price": UNDEF_PRICE},
            {**call, "instrument_id": 17, "raw_symbol": b"Q2CM5 C2", "strike_price": -1},
            {**call, "instrument_id": 18, "raw_symbol": b"Q2CM5 \xff"},
            {**call, "instrument_id": 19, "raw_symbol": b"Q2CM5 C3", "expiration": "2262-01-01T00:00:00Z"},
            {**call, "instrument_id": 20, "raw_symbol": b"Q2CM5 C4", "instrument_class": b"?"},
            {**call, "instrument_id": 21, "raw_symbol": b"Q2DM5 C21000", "asset": b"Q2D"},
            {**call, "instrument_id": 22, "raw_symbol": b"Q2CM5 C21000 again"},
        ]
    )
    assert parsed.frame["raw_symbol"].to_list() == ["Q2CM5 C21000 again"]
    assert parsed.dropped == Counter(
        spread=2, deleted_definition=1, malformed_definition=5, duplicate_contract=1, other_series=1
    )


def test_a_symbol_with_another_series_expiration_is_counted() -> None:
    parsed = joined([A_CALL, {**A_PUT, "expiration": "2025-06-18T20:00:00Z"}, A_FUTURE])
    assert parsed.frame["raw_symbol"].to_list() == [CALL]
    assert parsed.dropped == Counter(malformed_definition=1)


@pytest.mark.parametrize(
    ("future", "controls"),
    [(b"NQM5", {"underlying_by_rule": True}), (b"NQU5", {"underlying_by_rule": False}), (b"", {})],
)
def test_a_stated_future_is_compared_with_the_rule(future: bytes, controls: dict[str, bool]) -> None:
    parsed = joined([{**one, "underlying": future} for one in (A_CALL, A_PUT)])
    assert parsed.controls == {"ids_resolve": True, **controls}
    assert parsed.frame["underlying"].to_list() == [future.decode() or None] * 2


def test_an_expiration_at_midnight_utc_is_a_date() -> None:
    exact = joined().frame
    dated = [{**one, "expiration": "2025-06-11T00:00:00Z"} for one in (A_CALL, A_PUT)]
    day_before = {**A_CALL, "instrument_id": 20, "raw_symbol": b"Q2BM5 C21000", "asset": b"Q2B"}
    parsed = joined([*dated, A_FUTURE, {**day_before, "expiration": "2025-06-11T00:00:00Z"}])
    assert_frame_equal(parsed.frame, exact)
    assert parsed.dropped == Counter(expiration_without_time=2, other_series=1)


def test_definitions_alone_give_contracts_without_quotes() -> None:
    frame = joined().frame
    assert frame["contract_key"].to_list() == ["Q2C-2025-06-11-C-21000", "Q2C-2025-06-11-P-21000.5"]
    for column in ("bid", "ask", "last", "settlement", "volume", "open_interest", "underlying_price"):
        assert frame[column].null_count() == 2, column
    assert frame["is_settlement"].to_list() == [False, False]


def test_a_multiplier_the_vendor_leaves_out_is_the_products() -> None:
    assert joined([{**A_CALL, "unit_of_measure_qty": UNDEF_PRICE}]).frame["multiplier"].item() == 20.0


def test_the_quote_is_the_last_book_by_ts_recv() -> None:
    older = "2025-06-06T19:00:00Z"
    parsed = joined(
        bbo_1m=[
            quote(11, "2025-06-10T14:59:00Z", 100.25, None, price=99.5, ts_event=older),
            quote(11, "2025-06-10T14:58:00Z", 1.0, 2.0, price=98.0, ts_event="2025-06-10T14:57:59Z"),
            quote(12, "2025-06-10T15:00:00Z", None, 0.05, price=7.0),
            quote(13, "2025-06-10T15:00:00Z", 21_500.25, 21_500.75),
        ]
    )
    assert cell(parsed, CALL, "bid") == 100.25 and cell(parsed, CALL, "bid_size") == 3
    assert cell(parsed, CALL, "ask") is None and cell(parsed, CALL, "ask_size") is None
    assert cell(parsed, CALL, "quote_ts") == datetime(2025, 6, 10, 14, 59, tzinfo=UTC)
    assert cell(parsed, CALL, "last") == 99.5
    assert cell(parsed, CALL, "last_ts") == datetime.fromisoformat(older)
    assert cell(parsed, PUT, "last") is None and cell(parsed, PUT, "last_ts") is None
    assert cell(parsed, PUT, "underlying_price") == 21_500.5


def test_a_price_of_zero_is_no_quote() -> None:
    parsed = joined(bbo_1m=[quote(11, "2025-06-10T14:59:00Z", 0.0, 0.05)])
    sides = "bid", "bid_size", "ask", "ask_size"
    assert [cell(parsed, CALL, name) for name in sides] == [None, None, 0.05, 4]


def test_a_future_without_two_sides_is_worth_its_last_trade() -> None:
    parsed = joined(
        bbo_1m=[
            quote(
                13, "2025-06-10T15:00:00Z", 21_500.25, None, price=21_501.0, ts_event="2025-06-10T14:59:59Z"
            )
        ]
    )
    assert cell(parsed, CALL, "underlying_price") == 21_501.0


def test_ids_mean_what_the_answer_says_for_the_day_of_the_record() -> None:
    parsed = joined(
        bbo_1m=[
            quote(11, "2025-06-09T23:59:00Z", 5.0, 6.0),  # the put's, on that day
            quote(11, "2025-06-10T00:01:00Z", 8.0, 9.0),  # the call's
            quote(7, "2025-06-10T00:02:00Z", 1.0, 2.0),  # the call's the day before, nobody's today
            quote(99, "2025-06-10T00:02:00Z", 1.0, 2.0),
            {"instrument_id": 11, "bid_px_00": 1.0},
        ]
    )
    assert (cell(parsed, PUT, "bid"), cell(parsed, CALL, "bid")) == (5.0, 8.0)
    assert parsed.dropped == Counter(unknown_id=2, undefined_time=1)
    assert parsed.controls["ids_resolve"] is False


def test_records_after_the_query_end_are_dropped() -> None:
    late = "2025-06-10T15:06:00Z"
    now = "2025-06-10T14:59:00Z"
    parsed = joined(
        bbo_1m=[
            quote(11, now, 8.0, 9.0, price=8.5, ts_event=late),
            quote(11, late, 1.0, 2.0),
            quote(12, "2025-09-01T00:00:00Z", 1.0, 2.0),
        ],
        trades=[
            {"instrument_id": 11, "ts_recv": now, "ts_event": now, "price": 8.25, "size": 2},
            {"instrument_id": 11, "ts_recv": now, "ts_event": late, "price": 1.0, "size": 5},
            {"instrument_id": 11, "ts_recv": late, "ts_event": now, "price": 1.0, "size": 5},
        ],
    )
    assert [cell(parsed, CALL, name) for name in ("bid", "last", "volume")] == [8.0, 8.25, 2]
    assert cell(parsed, PUT, "quote_ts") is None
    assert parsed.dropped["future_instant"] == 5


def test_a_statistic_that_cannot_be_is_not_the_newest() -> None:
    parsed = joined(
        statistics=[
            stat(9, "2025-06-10T01:00:00Z", "2025-06-09", quantity=50),
            stat(9, "2025-06-10T01:00:00Z", "2025-06-10", number=12, quantity=51),
            stat(9, "2025-06-10T02:00:00Z", "2025-09-01", quantity=1),
            stat(9, "2025-06-10T23:06:00Z", "2025-06-09", quantity=2),
            stat(6, "2025-06-10T02:00:00Z", "2025-06-10", quantity=2**62),
            stat(6, "2025-06-10T02:00:00Z", "2025-06-10", number=12, quantity=-1),
        ]
    )
    assert (cell(parsed, CALL, "open_interest"), cell(parsed, PUT, "open_interest")) == (50, 51)
    assert parsed.frame["volume"].null_count() == 2
    assert parsed.dropped == Counter(future_instant=2, malformed_cell=2)


def test_an_instrument_without_definition_is_counted() -> None:
    parsed = joined([A_CALL, A_FUTURE], bbo_1m=[quote(12, "2025-06-10T15:00:00Z", 1.0, 2.0)])
    assert parsed.frame["raw_symbol"].to_list() == [CALL]
    assert parsed.dropped == Counter(undefined_instrument=1)


def test_open_interest_is_the_last_word_on_the_newest_trade_date() -> None:
    parsed = joined(
        statistics=[
            stat(9, "2025-06-10T01:00:00Z", "2025-06-09", quantity=50),
            stat(9, "2025-06-10T14:00:00Z", "2025-06-09", quantity=51),
            stat(9, "2025-06-10T14:30:00Z", "2025-06-06", quantity=40),  # a republication
            stat(9, "2025-06-10T14:31:00Z", None, quantity=1),
            stat(9, "2025-06-10T01:00:00Z", "2025-06-09", number=12, quantity=0),
        ]
    )
    assert (cell(parsed, CALL, "open_interest"), cell(parsed, PUT, "open_interest")) == (51, 0)


def test_a_final_settlement_beats_a_later_preliminary_one() -> None:
    parsed = joined(
        statistics=[
            stat(3, "2025-06-09T22:00:00Z", "2025-06-09", number=7, price=10.5, stat_flags=3),
            stat(3, "2025-06-09T23:00:00Z", "2025-06-09", number=7, price=10.0, stat_flags=2),
            stat(3, "2025-06-10T10:00:00Z", "2025-06-10", price=99.0, stat_flags=8),
            stat(3, "2025-06-10T10:00:00Z", "2025-06-09", number=12, price=3.0, stat_flags=1),
            stat(
                3, "2025-06-10T11:00:00Z", "2025-06-09", number=12, price=4.0, stat_flags=1, update_action=2
            ),
        ]
    )
    assert (cell(parsed, CALL, "settlement"), cell(parsed, CALL, "is_settlement")) == (10.5, True)
    assert (cell(parsed, PUT, "settlement"), cell(parsed, PUT, "is_settlement")) == (None, False)


@pytest.mark.parametrize(
    ("ts_ref", "expected"),
    [("2025-06-09", date(2025, 6, 9)), ("2025-06-10", date(2025, 6, 10)), ("2025-06-08", None), (None, None)],
)
def test_a_settlement_has_the_trade_date_its_statistic_is_of(
    ts_ref: str | None, expected: date | None
) -> None:
    settlement = stat(3, "2025-06-10T20:30:00Z", ts_ref, number=12, price=10.5, stat_flags=2)
    parsed = joined(statistics=[settlement])
    assert (cell(parsed, PUT, "settlement"), cell(parsed, PUT, "settlement_date")) == (10.5, expected)
    assert cell(parsed, CALL, "settlement_date") is None


def test_a_settlement_without_flags_is_not_final() -> None:
    settlement = [
        stat(3, "2025-06-09T22:00:00Z", "2025-06-09", number=7, price=10.5, stat_flags=1),
        stat(3, "2025-06-09T23:00:00Z", "2025-06-09", number=7, price=10.0, stat_flags=255),
        stat(3, "2025-06-10T10:00:00Z", "2025-06-09", number=12, price=3.0, stat_flags=255),
    ]
    parsed = joined(statistics=settlement)
    assert (cell(parsed, CALL, "settlement"), cell(parsed, PUT, "settlement")) == (10.5, 3.0)


def test_a_settlement_that_is_not_defined_is_null_and_no_number() -> None:
    settlement = stat(3, "2025-06-09T23:00:00Z", "2025-06-09", number=7, price=UNDEF_PRICE, stat_flags=1)
    parsed = joined(statistics=[settlement])
    assert (cell(parsed, CALL, "settlement"), cell(parsed, CALL, "is_settlement")) == (None, False)


def test_session_trades_give_last_range_and_volume() -> None:
    parsed = joined(
        bbo_1m=[quote(11, "2025-06-10T14:59:00Z", 1.0, 2.0, price=1.5, ts_event="2025-06-10T13:00:00Z")],
        statistics=[stat(3, "2025-06-09T22:00:00Z", "2025-06-09", number=7, price=10.5, stat_flags=3)],
        trades=[
            trade(7, "2025-06-09T21:59:59Z", 50.0, 9),  # before the open: the session before
            trade(7, "2025-06-09T22:00:00Z", 2.0, 3),
            trade(11, "2025-06-10T14:00:00Z", 4.0, 1),
            trade(11, "2025-06-10T13:00:00Z", 1.0, 2),
            {"instrument_id": 11, "ts_recv": "2025-06-10T14:00:00Z", "size": 5},
            trade(11, "2025-06-10T14:30:00Z", 0.05, 0),
        ],
    )
    row = parsed.frame.filter(pl.col("raw_symbol") == CALL).row(0, named=True)
    assert [row[name] for name in ("last", "open", "high", "low", "volume")] == [4.0, 2.0, 4.0, 1.0, 6]
    assert row["last_ts"] == datetime(2025, 6, 10, 14, tzinfo=UTC)
    assert row["settlement"] == 10.5 and row["is_settlement"] is False
    assert cell(parsed, PUT, "volume") == 0
    assert parsed.dropped == Counter(malformed_trade=2)


def test_cleared_volume_of_the_session_replaces_traded() -> None:
    trades = [trade(11, "2025-06-10T14:00:00Z", 4.0, 1)]
    before = [stat(6, "2025-06-10T01:00:00Z", "2025-06-09", quantity=70)]
    after = [*before, stat(6, "2025-06-10T22:30:00Z", "2025-06-10", quantity=80)]
    assert cell(joined(trades=trades, statistics=before), CALL, "volume") == 1
    assert cell(joined(trades=trades, statistics=after), CALL, "volume") == 80
    assert cell(joined(statistics=before), CALL, "volume") is None


def test_data_before_the_session_give_no_volume() -> None:
    records = {
        schema: decode(body(schema, rows, DAYS), schema)
        for schema, rows in {DEFINITION: DEFINED, TRADES: []}.items()
    }
    session = sessions.current_session(MOMENT)
    parsed = parse_chain(records, SERIES, session=session, until=to_ns(session.open))
    assert parsed.frame["volume"].null_count() == 2


# Recorded and damaged answers

STANDIN_SERIES = (Series.parse("Q2C-2025-06-11"), Series.parse("Q2D-2025-06-12"))


def test_recorded_definitions_become_contracts(shared: Path) -> None:
    for recording, schema in recorded(shared, "definition"):
        dropped: Counter[str] = Counter()
        frame = definitions(decode(recording, schema), dropped)
        official = {record.raw_symbol: record for record in officially(recording)}
        spreads = [record for record in official.values() if str(record.instrument_class) in ("T", "M", "S")]
        assert dropped == ({"spread": len(spreads)} if spreads else {})
        assert frame.height == len(official) - len(spreads)
        for row in frame.iter_rows(named=True):
            record = official[row["raw_symbol"]]
            assert row["instrument_id"] == record.instrument_id
            assert row["root"] == record.asset
            assert row["instrument_class"] == str(record.instrument_class)
            assert row["strike"] == (record.strike_price / 1e9 if row["instrument_class"] != "F" else None)
            assert to_ns(row["expiration"]) == record.expiration
            assert row["multiplier"] == record.unit_of_measure_qty / 1e9
            assert (row["underlying"] or "") == record.underlying


def test_a_recorded_option_has_its_last_book(shared: Path) -> None:
    ((body, schema),) = recorded(shared, "options_catalog__options_bbo-1m")
    known = pl.Series(["ESM4 P5230", "ESM4 P5250"])
    books = quotes(decode(body, schema), known, Counter(), latest=NEVER).sort("raw_symbol").row(0, named=True)
    assert books["raw_symbol"] == "ESM4 P5230"
    assert (books["bid"], books["bid_size"], books["ask"], books["ask_size"]) == (97.0, 16, 97.5, 75)
    assert to_ns(books["quote_ts"]) == 1_715_249_040_000_000_000
    assert books["quoted_last"] == 92.25
    assert books["quoted_last_ts"].date().isoformat() == "2024-05-08"


def test_recorded_statistics_of_other_types_are_ignored(shared: Path) -> None:
    ((body, schema),) = recorded(shared, "test_data.statistics")
    records = decode(body, schema)
    frame = statistics(records, pl.Series(["ESH1"]), Counter(), latest=NEVER, trade_date=date(2099, 1, 1))
    used = np.isin(records.array["stat_type"], (3, 6, 9))
    assert frame.height == int(used.any())


@cache
def sound_records() -> dict[str, Records]:
    return {schema: decode(synthetic(schema), schema) for schema in SPANS}


def chain_of(records: dict[str, Records]) -> Parsed:
    session = sessions.current_session(MOMENT)
    return parse_chain(records, STANDIN_SERIES, session=session, until=to_ns(MOMENT) + 1)


@cache
def sound_height() -> int:
    return chain_of(sound_records()).frame.height


@given(st.data())
def test_flipped_bytes_never_break_the_parser(data: st.DataObject) -> None:
    schema = data.draw(st.sampled_from(list(SPANS)))
    raw = bytearray(plain(synthetic(schema)))
    start, size = records_start(raw), record_layout(schema, 3).dtype.itemsize
    heads = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, start - 1) if heads else st.integers(start, len(raw) - 1))
        if not heads and (at - start) % size < 2:
            at += 2  # a wrong length or kind refuses the answer, which other tests show
        raw[at] = data.draw(st.sampled_from((0, 1, 127, 128, 255)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parsed = chain_of(sound_records() | {schema: decode(bytes(raw), schema)})
        except BadPayload:
            assert heads
            return
    assert parsed.frame["contract_key"].is_unique().all()
    if not heads and schema == "definition":
        assert sound_height() - parsed.frame.height <= 6
    assert parsed.frame["strike"].null_count() == parsed.frame["expiration"].null_count() == 0
