"""NautilusTrader's Parquet catalog: instruments, trades and quotes of futures and of options on them.

The files are those that `ParquetDataCatalog` of NautilusTrader 1.221 and 1.231 writes (in builds with 128-bit
prices, the default on Linux and macOS): one per instrument and trade date for trades and for quotes, named by
the span of time that they cover. A trade date that is exported again replaces its files. The library itself
is not needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nq_pipeline.clock import to_ns
from nq_pipeline.export import Exported
from nq_pipeline.export.nautilus_instruments import DIGITS, VENUE, Span, data_file, write_instruments
from nq_pipeline.export.selection import BATCH_ROWS, Selection
from nq_pipeline.files import temporary_for
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.products import PRODUCTS


def write(selection: Selection, to: Path) -> Exported:
    """Add the instruments, trades and quotes of the selected trade dates to the catalog in the folder `to`.

    An instrument's quotes on a trade date come from `mbp_1`, or else from `bbo_1m`, or else from the chosen
    chains, whose `ts_init` is the snapshot. Where a vendor sends no size, it is one contract. An instrument
    that is already in the catalog stays as it is.
    """
    connection = selection.connection
    rows, left_out, files = Counter[str](), Counter[str](), Counter[str]()
    for day in filter(sessions.is_trade_date, selection.days):
        session = sessions.session(day)
        span = to_ns(session.open), to_ns(sessions.next_open(session.close)) - 1
        instruments = connection.sql(_INSTRUMENTS.format(day=day)).fetchall()
        for _ in write_instruments(instruments, to / "data", day, span):
            rows["instruments"] += 1
            selection.show("instruments", day, rows["instruments"])
        for kind, (source, columns) in _TICKS.items():
            ticks = source.format(day=day)
            counts = connection.sql(f"SELECT left_out, count(*) FROM ({ticks}) GROUP BY ALL")
            for reason, count in counts.fetchall():
                (left_out if reason else rows)[reason or f"{kind}s"] += count
            wanted = connection.sql(f"SELECT raw_symbol, {columns} FROM ({ticks}) WHERE left_out IS NULL")
            wanted = wanted.order("raw_symbol, ts_init, sequence, ordinal")
            for _ in _write_ticks(wanted, to / "data" / kind, span):
                files[kind] += 1
                selection.show(f"files of {kind}s", day, files[kind])
    return Exported(to, dict(rows), dict(left_out))


_KNOWN = f"""coalesce(regexp_full_match(raw_symbol, '[A-Z0-9]+( [CP][0-9.]+)?')
    AND (instrument_kind = 'option' AND series IS NOT NULL AND root IN {tuple(ROOTS)}
         OR instrument_kind = 'future' AND root IN {tuple(PRODUCTS)}), false)"""
"""Instruments of our products; their symbols are safe as names of folders."""
_TRADES = f"""
SELECT *, coalesce(ts_recv_ns, ts_event_ns) AS ts_init_ns,
       CASE WHEN NOT {_KNOWN} THEN 'trades of other instruments'
            WHEN price IS NULL OR size = 0 THEN 'trades without price or size'
            WHEN price <> round(price, {DIGITS}) THEN 'trades with a longer price' END AS left_out
FROM trades WHERE trade_date = DATE '{{day}}'
"""
_QUOTES = f"""
WITH quoted AS (
    SELECT 0 AS coarseness, raw_symbol, instrument_kind, root, series, ts_event_ns,
           coalesce(ts_recv_ns, ts_event_ns) AS ts_init_ns, sequence, ordinal,
           bid_px_00 AS bid, ask_px_00 AS ask, bid_sz_00 AS bid_size, ask_sz_00 AS ask_size
    FROM mbp_1 WHERE trade_date = DATE '{{day}}'
    UNION ALL
    SELECT 1, raw_symbol, instrument_kind, root, series, ts_recv_ns, ts_recv_ns, 0, ordinal,
           bid_px_00, ask_px_00, bid_sz_00, ask_sz_00
    FROM bbo_1m WHERE trade_date = DATE '{{day}}'
    UNION ALL
    SELECT 2, raw_symbol, 'option', root, series, coalesce(quote_ts_ns, as_of_ns), snapshot_ts_ns, 0, 0,
           bid, ask, coalesce(bid_size, 1), coalesce(ask_size, 1)
    FROM option_chain WHERE trade_date = DATE '{{day}}' AND underlying_class = 'future'
), finest AS (
    SELECT raw_symbol, min(coarseness) AS coarseness FROM quoted GROUP BY raw_symbol
)
SELECT *, CASE WHEN NOT {_KNOWN} THEN 'quotes of other instruments'
               WHEN bid IS NULL OR ask IS NULL THEN 'quotes without bid or ask'
               WHEN bid <> round(bid, {DIGITS}) OR ask <> round(ask, {DIGITS})
                   THEN 'quotes with a longer price' END AS left_out
FROM quoted JOIN finest USING (raw_symbol, coarseness)
"""
_INSTRUMENTS = f"""
SELECT raw_symbol, root, series, option_type, strike, max(underlying)
FROM (
    SELECT raw_symbol, 'option' AS instrument_kind, root, series, option_type, strike, underlying
    FROM option_chain WHERE trade_date = DATE '{{day}}' AND underlying_class = 'future'
    UNION ALL BY NAME
    SELECT raw_symbol, instrument_kind, root, series, option_type, strike, underlying
    FROM trades WHERE trade_date = DATE '{{day}}'
    UNION ALL BY NAME
    SELECT raw_symbol, instrument_kind, root, series, option_type, strike, underlying
    FROM mbp_1 WHERE trade_date = DATE '{{day}}'
    UNION ALL BY NAME
    SELECT raw_symbol, instrument_kind, root, series, option_type, strike
    FROM bbo_1m WHERE trade_date = DATE '{{day}}'
)
WHERE {_KNOWN}
GROUP BY ALL
"""


def _price(name: str) -> str:
    # In two steps, because a double holds hundredths, but no multiples of 10⁻¹⁶.
    return f"{name}::DECIMAL(18, {DIGITS})::DECIMAL(38, 16)"


_TIMES = "ts_event_ns::UBIGINT AS ts_event, ts_init_ns::UBIGINT AS ts_init, sequence, ordinal"
_TICKS = {
    "trade_tick": (
        _TRADES,
        f"{_price('price')} AS price, size::DECIMAL(38, 16) AS size, "
        "(CASE side WHEN 'B' THEN 1 WHEN 'A' THEN 2 ELSE 0 END)::UTINYINT AS aggressor_side, "
        f"concat_ws('-', sequence, nullif(ordinal, 0)) AS trade_id, {_TIMES}",
    ),
    "quote_tick": (
        _QUOTES,
        f"{_price('bid')} AS bid_price, {_price('ask')} AS ask_price, "
        f"bid_size::DECIMAL(38, 16) AS bid_size, ask_size::DECIMAL(38, 16) AS ask_size, {_TIMES}",
    ),
}
"""For each kind of ticks the rows, with the reason why one is left out, and the catalog's columns."""


_FIXED = pa.binary(16)
_TIME_FIELDS = {"ts_event": pa.uint64(), "ts_init": pa.uint64()}
_FIELDS = {
    "trade_tick": {
        **dict.fromkeys(("price", "size"), _FIXED),
        "aggressor_side": pa.uint8(),
        "trade_id": pa.string(),
        **_TIME_FIELDS,
    },
    "quote_tick": {
        **dict.fromkeys(("bid_price", "ask_price", "bid_size", "ask_size"), _FIXED),
        **_TIME_FIELDS,
    },
}
_SCHEMAS = {
    kind: pa.schema([pa.field(name, dtype, nullable=False) for name, dtype in fields.items()])
    for kind, fields in _FIELDS.items()
}


def _write_ticks(rows: duckdb.DuckDBPyRelation, folder: Path, span: Span) -> Iterator[Path]:
    """Write a file for each instrument; the rows come by instrument and are never all in memory."""
    with rows.to_arrow_reader(BATCH_ROWS) as reader:
        for symbol, parts in groupby(_split(reader), key=lambda part: part[0]):
            identifier = f"{symbol}.{VENUE}"
            path = data_file(folder, identifier, span)
            about = {"instrument_id": identifier, "price_precision": str(DIGITS), "size_precision": "0"}
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary_for(path) as temporary:
                with pq.ParquetWriter(temporary, _SCHEMAS[folder.name].with_metadata(about)) as file:
                    for _, part in parts:
                        file.write_batch(_fixed_width(part, file.schema))
                temporary.replace(path)
            yield path


def _split(batches: pa.RecordBatchReader) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Batches that are sorted by symbol, as one part per symbol and batch."""
    for batch in batches:
        start, runs = 0, pc.run_end_encode(batch["raw_symbol"])
        for symbol, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            yield symbol, batch.slice(start, end - start)
            start = end


def _fixed_width(part: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The part as the catalog stores it: a decimal is its 128-bit integer."""
    columns = (part[name] for name in schema.names)
    arrays = [column.view(_FIXED) if pa.types.is_decimal(column.type) else column for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
