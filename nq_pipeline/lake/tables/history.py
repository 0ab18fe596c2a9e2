"""Purchases from the historical API, and every attempt at one."""

from __future__ import annotations

from nq_pipeline.lake.tables.table import (
    CONTRACT,
    DATASET,
    DATE,
    ENVIRONMENT,
    FLOAT,
    INSTANT,
    INT,
    RUN_ID,
    TEXT,
    U8,
    U16,
    U32,
    U64,
    USD,
    Column,
    Table,
    nullable,
    required,
)

_CONTRACT = (
    nullable("raw_symbol", TEXT, "exchange symbol on that day; null when the vendor does not say"),
    nullable("instrument_kind", TEXT, "option, future, spread (UD: and legs with a dash) or other"),
    nullable("underlying_class", TEXT, "future; null when the symbol is not one of ours"),
    *CONTRACT,
)


def _history(name: str, meaning: str, own: tuple[Column, ...], instant: str = "ts_recv") -> Table:
    """A table of purchases from the historical API: Databento's columns and the contract's."""
    return Table(
        name=name,
        version=1,
        meaning=meaning,
        columns=(
            required("trade_date", DATE, "CME session date: from its open to the next session's"),
            required("publisher_id", U16, "Databento's number of dataset and venue: 1 is GLBX.MDP3"),
            required("instrument_id", U32, "Databento's id; reused over time, never a key across days"),
            *own,
            required("ordinal", U32, f"which record of its instrument and {instant} it is, from 0"),
            *_CONTRACT,
            ENVIRONMENT,
            RUN_ID,
        ),
        key=("publisher_id", "instrument_id", instant, "ordinal"),
        order=("instrument_id", instant),
        pruning_column=instant,
    )


_RECV = required("ts_recv", INSTANT, "when Databento received it")

_EVENT = nullable("ts_event", INSTANT, "when the matching engine received it")

DEFINITION = _history(
    "definition",
    "Instrument definitions (schema definition): daily snapshots and changes; a spread has a row per leg.",
    (
        _RECV,
        _EVENT,
        nullable("instrument_class", TEXT, "C call, P put, F future, T option, M mixed, S future spread"),
        nullable("asset", TEXT, "product root of the instrument"),
        nullable(
            "security_type", TEXT, "OOF option on a future or spread of such, FUT future, MLEG other spread"
        ),
        nullable("exchange", TEXT, "XCME"),
        nullable("currency", TEXT, "USD"),
        nullable("underlying", TEXT, "raw symbol of the underlying future"),
        nullable("underlying_id", U32, "its instrument_id on that day"),
        nullable("strike_price", FLOAT, "points"),
        nullable("expiration", INSTANT, "the instant trading ends"),
        nullable("activation", INSTANT, "the instant it was listed"),
        nullable("unit_of_measure_qty", FLOAT, "dollars per point: the multiplier"),
        nullable("min_price_increment", FLOAT, "tick, points; null for options, whose tick varies"),
        nullable("security_update_action", TEXT, "A added, M modified, D deleted"),
        nullable("user_defined_instrument", TEXT, "Y or N"),
        nullable("leg_count", U16, "legs of a spread"),
        nullable("leg_index", U16, "which leg the row is of"),
        nullable("leg_instrument_id", U32, "its instrument_id"),
        nullable("leg_raw_symbol", TEXT, "its raw symbol"),
        nullable("leg_side", TEXT, "A or B"),
    ),
)

STATISTICS = _history(
    "statistics",
    "Settlements, open interest, volume and other statistics of the venue (schema statistics). Many are "
    "published in a later session: ts_ref is the one they are about.",
    (
        _RECV,
        _EVENT,
        nullable("ts_ref", INSTANT, "the trade date the statistic is about, as its midnight UTC"),
        required("stat_type", U16, "3 settlement, 4 session low, 5 high, 6 cleared volume, 9 open interest"),
        nullable("price", FLOAT, "points; null for quantities"),
        nullable("quantity", INT, "contracts; null for prices"),
        required("sequence", U32, "the venue's number of the message, per channel"),
        required("channel_id", U16, "the venue's channel"),
        required("update_action", U8, "1 new, 2 deleted"),
        required(
            "stat_flags",
            U8,
            "of a settlement, as a third party reads it: 1 final, 2 actual, 4 rounded to the tick, "
            "8 intraday; 255 says nothing",
        ),
    ),
)

_BAR = (
    required("ts_event", INSTANT, "when the bar begins"),
    nullable("open", FLOAT, "points"),
    nullable("high", FLOAT, "points"),
    nullable("low", FLOAT, "points"),
    nullable("close", FLOAT, "points"),
    required("volume", U64, "contracts"),
)

OHLCV_1M = _history("ohlcv_1m", "Minute bars (schema ohlcv-1m); none without a trade.", _BAR, "ts_event")

OHLCV_1D = _history("ohlcv_1d", "Bars of UTC days (schema ohlcv-1d), not of sessions.", _BAR, "ts_event")

BBO_1M = _history(
    "bbo_1m",
    "The book's best bid and ask at the end of each minute in which it changed (schema bbo-1m).",
    (
        required("ts_recv", INSTANT, "end of the minute"),
        nullable("ts_event", INSTANT, "time of the last trade, also of an earlier session; null without"),
        nullable("price", FLOAT, "of the last trade"),
        nullable("size", U32, "of the last trade, contracts"),
        nullable("side", TEXT, "of the last trade, the aggressor"),
        nullable("flags", U8, "Databento's bits"),
        nullable("bid_px_00", FLOAT, "best bid; null when there is none"),
        nullable("ask_px_00", FLOAT, "best ask; null when there is none"),
        nullable("bid_sz_00", U32, "contracts at the bid"),
        nullable("ask_sz_00", U32, "contracts at the ask"),
        nullable("bid_ct_00", U32, "orders at the bid"),
        nullable("ask_ct_00", U32, "orders at the ask"),
    ),
)

BACKFILLS = Table(
    name="backfills",
    version=1,
    meaning="Purchases from the historical API: one row per attempt at a trade date of a schema.",
    columns=(
        required("run_id", TEXT, "the run that made the attempt"),
        required("changed_at", INSTANT, "when the attempt ended (real time)"),
        required("trade_date", DATE, "CME session date"),
        ENVIRONMENT,
        DATASET,
        required("schema", TEXT, "Databento's schema"),
        required("symbols", TEXT, "requested parents, in order, separated by commas"),
        required("first_ts", INSTANT, "start of the requested span (ts_recv; of bars ts_event), included"),
        required("last_ts", INSTANT, "its end, not included"),
        required("state", TEXT, "complete, empty, missing, pending, over_budget, not_entitled or failed"),
        nullable("reason", TEXT, "why it is not complete, one sentence"),
        nullable(
            "condition", TEXT, "the vendor's condition of the days: available, degraded, pending, missing"
        ),
        required("records", INT, "proven records: as many as the vendor counts"),
        required("rows", INT, "rows that were new in the lake"),
        required("known", INT, "rows that were already in the lake, e.g. from the live capture"),
        required("dropped", INT, "records that could not become rows"),
        required("bytes", INT, "bytes of the records, uncompressed: what is billed"),
        required("cost_usd", USD, "paid in this attempt, or still reserved by it"),
        nullable("mode", TEXT, "historical-streaming, historical (a batch job), or null: nothing bought"),
        nullable("request_ids", TEXT, "of the ledger's commits, or the batch job, separated by commas"),
        nullable("sha256", TEXT, "digests of the stored files, separated by commas"),
    ),
    key=("run_id", "dataset", "schema", "trade_date", "symbols"),
    order=("changed_at",),
    pruning_column="changed_at",
)
