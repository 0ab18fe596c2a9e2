"""The live feed: its records, the gaps in them and the sessions with the gateway."""

from __future__ import annotations

from nq_pipeline.lake.tables.table import (
    BOOL,
    CONTRACT,
    DATASET,
    DATE,
    ENVIRONMENT,
    FLOAT,
    I32,
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


def _ticks(name: str, meaning: str, *own: Column) -> Table:
    """A table of DBN records: Databento's common columns, those of the schema, and ours."""
    columns = (
        required("ts_event", INSTANT, "when the matching engine received it"),
        nullable("ts_recv", INSTANT, "when Databento received it"),
        required("trade_date", DATE, "CME session date of ts_event, of ts_recv where it is misdated"),
        required("publisher_id", U16, "Databento's number of dataset and venue: 1 is GLBX.MDP3"),
        required("instrument_id", U32, "Databento's id; reused over time, never a key across days"),
        required("sequence", U32, "the venue's number of the message, per channel"),
        required("ordinal", U32, "which record of its instrument, ts_event and sequence it is, from 0"),
        required("action", TEXT, "T trade, F fill, A add, C cancel, M modify, R clear, N none"),
        required("side", TEXT, "of a trade, the aggressor: A sells, B buys, N not known"),
        nullable("price", FLOAT, "points; null where there is none"),
        required("size", U32, "contracts"),
        required("flags", U8, "Databento's bits: 128 last of its event, 8 ts_recv is doubtful, …"),
        required("ts_in_delta", I32, "nanoseconds from the venue's sending to ts_recv"),
        *own,
        nullable("raw_symbol", TEXT, "exchange symbol from the gateway's mapping; null without one"),
        nullable("instrument_kind", TEXT, "option, future, spread (UD: and legs with a dash) or other"),
        nullable("underlying_class", TEXT, "future; null when the symbol is not one of ours"),
        nullable("underlying", TEXT, "of an option: the future it exercises into, by CME's rule"),
        *CONTRACT,
        nullable("receive_latency_ns", INT, "ts_recv less ts_event"),
        nullable("is_misdated", BOOL, "ts_event is over a minute from ts_recv; null in older rows"),
        nullable("publish_latency_ns", INT, "time of writing the row less ts_recv; null when bought"),
        required("source_schema", TEXT, "the schema that was streamed: trades, mbp-1, mbo"),
        ENVIRONMENT,
        required("log_session", INT, "log segment at which its session began; 0 when bought later"),
        RUN_ID,
    )
    return Table(
        name=name,
        version=3,
        meaning=meaning,
        columns=columns,
        key=("publisher_id", "instrument_id", "ts_event", "sequence", "ordinal"),
        order=("instrument_id", "ts_event", "sequence"),
        pruning_column="ts_event",
    )


TRADES = _ticks(
    "trades",
    "Trades as Databento sent them, streamed in any schema or bought: one row per trade.",
    nullable("depth", U8, "level of the book; null where mbo was streamed"),
)

MBP_1 = _ticks(
    "mbp_1",
    "Every change of the best bid and ask, and every trade, with the book after it (schema mbp-1).",
    required("depth", U8, "level of the book: 0"),
    nullable("bid_px_00", FLOAT, "best bid; null when there is none"),
    nullable("ask_px_00", FLOAT, "best ask; null when there is none"),
    required("bid_sz_00", U32, "contracts at the bid"),
    required("ask_sz_00", U32, "contracts at the ask"),
    required("bid_ct_00", U32, "orders at the bid"),
    required("ask_ct_00", U32, "orders at the ask"),
)

MBO = _ticks(
    "mbo",
    "Every event of every order (schema mbo), without the snapshots of the book.",
    required("order_id", U64, "the venue's number of the order"),
    required("channel_id", U8, "the venue's channel"),
)

GAPS = Table(
    name="gaps",
    version=3,
    meaning="Gaps in the live capture: one row per gap and state; the highest revision is current.",
    columns=(
        required("gap_id", TEXT, "the same through all states of a gap"),
        required("revision", INT, "number of the state, from 0"),
        required("changed_at", INSTANT, "when the gap came into this state, by the capture's clock"),
        required("trade_date", DATE, "CME session date of first_ts"),
        ENVIRONMENT,
        DATASET,
        required("schema", TEXT, "what is missing: trades, mbp-1, mbo"),
        required("cause", TEXT, "how the previous session ended, late start, not running, or another schema"),
        nullable("detail", TEXT, "message of the gateway or the operating system"),
        required("first_ts", INSTANT, "the last moment (ts_event) proven before the gap"),
        nullable("last_ts", INSTANT, "the first moment proven after it; null until then"),
        required("state", TEXT, "open, replayed, verified or unfillable"),
        nullable("reason", TEXT, "why unfillable or open again; when verified, how the lake differs"),
        nullable("filled_by", TEXT, "live replay, historical (bought) or already there; null until filled"),
        nullable("records_replayed", INT, "records of the span that the replay or purchase brought"),
        nullable("records_counted", INT, "records of the span that an independent count found"),
        nullable("rows_published", INT, "rows of them then in the lake; null where not counted"),
        required("attempts", INT, "replays with which the count did not agree"),
        required("cost_usd", USD, "paid to the historical API; 0 for a live replay", was=FLOAT),
        required("run_id", TEXT, "the capture that wrote the row"),
    ),
    key=("gap_id", "revision"),
    order=("changed_at", "gap_id", "revision"),
    pruning_column="changed_at",
)

SESSIONS = Table(
    name="sessions",
    version=1,
    meaning="Sessions with the live gateway and attempts at one: a row when one ended.",
    columns=(
        required("session_key", TEXT, "unique: the capture's run and the number of the attempt"),
        nullable("gateway_session", TEXT, "the gateway's own id; null when it gave none"),
        required("trade_date", DATE, "CME session date of the end"),
        ENVIRONMENT,
        DATASET,
        required("started_at", INSTANT, "when the connection was opened, by the capture's clock"),
        required("ended_at", INSTANT, "when it ended"),
        required("schemas", TEXT, "what was subscribed to, separated by commas"),
        nullable("replay_from", INSTANT, "earliest start of its replays; null without one"),
        required("records", INT, "market data received"),
        required("bytes", INT, "bytes received"),
        required("ended", TEXT, "how: closed, reset, cut, silent, garbage, unreachable, refused, error, …"),
        nullable("detail", TEXT, "message of the gateway or the operating system"),
        nullable("code", INT, "code of the gateway's error, where it sent one"),
        nullable("proven_ts", INSTANT, "all data up to here arrived; null when its replay was incomplete"),
        nullable("missing", TEXT, "always listed parents that were not named, separated by commas"),
        required("run_id", TEXT, "the capture"),
    ),
    key=("session_key",),
    order=("ended_at",),
    pruning_column="ended_at",
)
