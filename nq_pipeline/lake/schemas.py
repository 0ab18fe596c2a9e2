"""The tables of the lake, declared once: columns, keys, order on disk, version.

Everything else derives from here: the cast on write, the Parquet footer, Dagster's column
schema, the views and the table reference in the documentation. Missing is null, never 0.
Instants are `timestamp[ns, UTC]`; prices and strikes are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from nq_pipeline.errors import LakeError

INSTANT = pl.Datetime("ns", "UTC")
PARTITION = "trade_date"
"""The column every table has and is partitioned by."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, polars type and what it means (unit, zone, when it is null)."""

    name: str
    dtype: pl.DataType
    meaning: str
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the lake.

    Attributes
    ----------
    meaning
        What a row is, in one sentence.
    key
        Columns that make a row unique; appending a row whose key is there adds nothing.
    order
        Sort order inside a file.
    since
        The instant column whose range a manifest keeps per file, so that readers prune files.
    """

    name: str
    version: int
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    order: tuple[str, ...]
    since: str

    @property
    def schema(self) -> pl.Schema:
        return pl.Schema({column.name: column.dtype for column in self.columns})

    @property
    def total_order(self) -> list[str]:
        """`order`, made unambiguous by the key, so that sorted rows have one order."""
        return list(dict.fromkeys((*self.order, *self.key)))

    def empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self.schema)


def conform(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Bring a frame to a table's columns, order and types; a nullable column may be missing.

    Raises
    ------
    LakeError
        A column is unknown, missing, of a type that does not fit, or null where it may not be.
    """
    names = table.schema.names()
    required = [column.name for column in table.columns if not column.nullable]
    unknown = sorted(set(frame.columns) - set(names))
    missing = [name for name in required if name not in frame.columns]
    if unknown or missing:
        raise LakeError(f"rows for {table.name} have unknown columns {unknown} and lack {missing}")
    given = {name: pl.col(name) if name in frame.columns else pl.lit(None) for name in names}
    try:
        frame = frame.select(given[name].cast(dtype).alias(name) for name, dtype in table.schema.items())
    except pl.exceptions.PolarsError as error:
        raise LakeError(f"rows for {table.name} do not have its types: {error}") from None
    holes = [name for name in required if frame[name].null_count()]
    if holes:
        raise LakeError(f"rows for {table.name} hold nulls where none may be: {holes}")
    return frame


def _c(name: str, dtype: object, meaning: str, nullable: bool = True) -> Column:
    return Column(name, dtype, meaning, nullable)  # type: ignore[arg-type]


_S, _F, _I, _B, _D = pl.String(), pl.Float64(), pl.Int64(), pl.Boolean(), pl.Date()

CHAIN_COLUMNS = (
    _c("source", _S, "vendor: barchart, polygon, tradovate, databento", False),
    _c("environment", _S, "sandbox (synthetic) or live", False),
    _c("snapshot_ts", INSTANT, "when the pipeline asked; a cache hit keeps the original", False),
    _c("as_of", INSTANT, "the moment the vendor's quotes speak of", False),
    _c("trade_date", _D, "CME session date of the snapshot", False),
    _c("underlying_class", _S, "future (NQ), index (NDX) or etf (QQQ)", False),
    _c("underlying", _S, "underlying future (NQM5), index (NDX) or fund (QQQ)"),
    _c("underlying_price", _F, "price of the underlying as the vendor showed it, index points or dollars"),
    _c("root", _S, "Globex product code, or NDX, NDXP, QQQ", False),
    _c("series", _S, "root and expiration date, Q1B-2025-07-01", False),
    _c("raw_symbol", _S, "exchange symbol: 'Q1BN5 C21330', or the OCC-style ticker"),
    _c("vendor_symbol", _S, "the vendor's own code for the contract, as sent", False),
    _c("contract_key", _S, "series, side and strike, Q1B-2025-07-01-C-21330", False),
    _c("expiration", INSTANT, "the instant trading ends", False),
    _c("expiration_date", _D, "its local date", False),
    _c("settlement_style", _S, "AM or PM", False),
    _c("exercise_style", _S, "american or european", False),
    _c("strike", _F, "index points or dollars", False),
    _c("option_type", _S, "C or P", False),
    _c("multiplier", _F, "dollars per point: 20 for NQ, 100 for NDX and QQQ", False),
    _c("bid", _F, "best bid; null when the vendor shows none"),
    _c("bid_size", _I, "contracts at the bid"),
    _c("ask", _F, "best ask; null when the vendor shows none"),
    _c("ask_size", _I, "contracts at the ask"),
    _c("quote_ts", INSTANT, "when bid and ask were last updated, where the vendor says so"),
    _c("last", _F, "last trade; null on a settlement row"),
    _c("last_ts", INSTANT, "when the contract last traded (a date-only time is its midnight UTC)"),
    _c("is_settlement", _B, "the vendor's price is a settlement, not a trade", False),
    _c("settlement", _F, "settlement price"),
    _c("open", _F, "first trade of the session the row speaks of"),
    _c("high", _F, "session high"),
    _c("low", _F, "session low"),
    _c("change", _F, "last or settlement less the previous settlement"),
    _c("volume", _I, "contracts traded in the current session; null when of another session"),
    _c("open_interest", _I, "open contracts, as of the previous trade date"),
    _c("implied_volatility", _F, "the vendor's, as a fraction"),
    _c("delta", _F, "the vendor's, as a fraction"),
    _c("gamma", _F, "the vendor's, per point"),
    _c("theta", _F, "the vendor's, per day"),
    _c("vega", _F, "the vendor's, per 1.00 of volatility"),
    _c("instrument_id", _I, "Databento's id; reused over time, never a key across days"),
    _c("run_id", _S, "the run that wrote the row", False),
    _c("request_id", _S, "the request that brought it (fetches.request_id)", False),
    _c("raw_sha256", _S, "digest of the archived answer", False),
)

SOURCE_CHAIN = Table(
    name="source_chain",
    version=1,
    meaning="What vendors sent: one row per source, snapshot and contract.",
    columns=CHAIN_COLUMNS,
    key=("source", "snapshot_ts", "contract_key"),
    order=("snapshot_ts", "source", "expiration", "root", "option_type", "strike"),
    since="snapshot_ts",
)

OPTION_CHAIN = Table(
    name="option_chain",
    version=1,
    meaning="The chosen rows: one row per snapshot and contract, from the source that won its series.",
    columns=(
        *CHAIN_COLUMNS,
        _c("selected_at", INSTANT, "when this source was first chosen for the series (real time)", False),
        _c("selection_reason", _S, "why this source won, in words", False),
    ),
    key=("source", "snapshot_ts", "contract_key"),
    order=("snapshot_ts", "expiration", "root", "option_type", "strike"),
    since="snapshot_ts",
)

DECISIONS = Table(
    name="decisions",
    version=1,
    meaning="Which source won each series and why the others lost: one row per run, series and candidate.",
    columns=(
        _c("run_id", _S, "the run that decided", False),
        _c("decided_at", INSTANT, "when (real time)", False),
        _c("snapshot_ts", INSTANT, "snapshot of the source's rows; the run's own where it has none", False),
        _c("trade_date", _D, "CME session date", False),
        _c("environment", _S, "sandbox or live", False),
        _c("series", _S, "the series decided on; the proxy's own series where a proxy stood", False),
        _c("source", _S, "the candidate", False),
        _c("rank", _I, "its place in the priority, from 1", False),
        _c("outcome", _S, "outcome of the candidate for this series", False),
        _c("won", _B, "whether it was chosen", False),
        _c("reason", _S, "why it won or lost, one sentence", False),
        _c("contracts", _I, "rows it offered", False),
        _c("quoted", _I, "rows with a bid or an ask", False),
        _c("newest_ts", INSTANT, "newest quote or trade among them"),
    ),
    key=("run_id", "series", "source"),
    order=("decided_at", "series", "rank"),
    since="decided_at",
)

FETCHES = Table(
    name="fetches",
    version=1,
    meaning="One row per request to a vendor and what came of it.",
    columns=(
        _c("request_id", _S, "unique per request", False),
        _c("run_id", _S, "the run that asked", False),
        _c("source", _S, "vendor", False),
        _c("environment", _S, "sandbox or live", False),
        _c("trade_date", _D, "CME session date of the run", False),
        _c("snapshot_ts", INSTANT, "snapshot the answer belongs to; of the original on a hit", False),
        _c("requested_at", INSTANT, "when it was asked (real time)", False),
        _c("operation", _S, "what was asked: chain, page, snapshot, definition, …", False),
        _c("url", _S, "address without secrets", False),
        _c("status", _I, "HTTP status; null when nothing answered or not HTTP"),
        _c("outcome", _S, "what came of it", False),
        _c("detail", _S, "one sentence when it was not ok"),
        _c("latency_ms", _F, "from asking to the last byte, retries included", False),
        _c("bytes", _I, "size of the body", False),
        _c("cache", _S, "hit, miss or none", False),
        _c("cost_usd", _F, "metered cost; 0 where asking is free", False),
        _c("raw_sha256", _S, "digest of the archived body; null when nothing was archived"),
    ),
    key=("request_id",),
    order=("requested_at",),
    since="requested_at",
)

TABLES: dict[str, Table] = {t.name: t for t in (SOURCE_CHAIN, OPTION_CHAIN, DECISIONS, FETCHES)}
