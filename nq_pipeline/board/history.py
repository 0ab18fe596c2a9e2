"""What the board reads from the lake: at its start the trades so far, later changed gaps and chains."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from nq_pipeline.board.feed import GREETING_TRADES
from nq_pipeline.board.trades import FuturePrices, StrikeVolumes, board_rows
from nq_pipeline.capture.log.segments import Position
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.charts.theme import series_label_text
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake

if TYPE_CHECKING:
    import duckdb

GAPS_SHOWN = 6
ROWS = 65_536
"""Trades that are read at a time."""


@dataclass(frozen=True)
class PublishedTrades:
    """What the lake has of a trade date, summed, and how far the capture log was published then.

    `quotes` has the newest quote of each option, as `LiveQuotes.add` takes them, and `newest` the last
    trades, as `board_rows` has them.
    """

    position: Position
    futures: FuturePrices
    strikes: StrikeVolumes
    quotes: pl.DataFrame
    newest: pl.DataFrame


def read_published_trades(log_folder: Path, lake: Lake, trade_date: date) -> PublishedTrades:
    """The trades of a trade date in the lake. Raises `LakeError` or DuckDB's errors if it cannot be read."""
    publisher = Publisher(log_folder, lake, run_id="board")
    with publisher.paused():
        position = publisher.position
        connection = catalog.connect(lake)
    futures, strikes, of_day = FuturePrices(), StrikeVolumes(), {"day": trade_date}
    with connection as lake_now:
        for batch in lake_now.sql(_TRADES, params=of_day).to_arrow_reader(ROWS):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            rows = board_rows(frame)
            futures.add(rows)
            strikes.add(rows)
        newest = board_rows(lake_now.sql(_NEWEST, params=of_day).pl().reverse())
        quotes = lake_now.sql(_QUOTES, params=of_day).pl()
    return PublishedTrades(position, futures, strikes, quotes, newest)


_TRADES = """
SELECT raw_symbol, instrument_kind, root, series, option_type, strike, side, price, size, trade_date,
       source_schema, ts_event, ts_recv
FROM trades WHERE trade_date = $day
"""

_NEWEST = f"{_TRADES} ORDER BY ts_recv_ns DESC, sequence DESC, ordinal DESC LIMIT {GREETING_TRADES}"

_QUOTES = """
SELECT series, contract_key, root, option_type, strike,
       arg_max(bid_px_00, (ts_recv_ns, sequence, ordinal)) AS bid,
       arg_max(ask_px_00, (ts_recv_ns, sequence, ordinal)) AS ask,
       max(ts_recv_ns) // 1000000 AS time
FROM mbp_1 WHERE trade_date = $day AND contract_key IS NOT NULL GROUP BY ALL
"""


def read_gaps(lake: duckdb.DuckDBPyConnection, trade_date: date) -> dict[str, Any]:
    """The gaps of a trade date: how many are open, their number by state, and the newest ones."""
    rows = lake.sql(_GAPS, params={"day": trade_date}).pl()
    return {
        "open": rows.filter(pl.col("state").is_in(["open", "replayed"])).height,
        "states": dict(rows["state"].value_counts(sort=True).iter_rows()),
        "newest": rows.head(GAPS_SHOWN).to_dicts(),
    }


_GAPS = """
SELECT epoch_ms(first_ts) AS "from", epoch_ms(last_ts) AS "to", schema, state, cause, reason
FROM gaps WHERE trade_date = $day
QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY revision DESC) = 1
ORDER BY first_ts DESC
"""


def read_last_chain(lake: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """By product: who won the last chain, when it was fetched, and why the others lost."""
    rows = lake.sql(_CHAIN).pl()
    return {
        product: {
            "snapshot": own["snapshot"].max(),
            "winners": own.filter("won").select("source", "series").to_dicts(),
            "losers": own.filter(~pl.col("won")).select("source", "reason").to_dicts(),
        }
        for (product,), own in rows.partition_by("product", as_dict=True, maintain_order=True).items()
    }


_CHAIN = """
WITH decided AS (
    SELECT *, product_of(split_part(series, '-', 1)) AS product FROM decisions
    WHERE trade_date = (SELECT max(trade_date) FROM decisions WHERE won)
), newest AS (
    SELECT product, arg_max(run_id, decided_at_ns) AS run_id FROM decided WHERE won GROUP BY product
)
SELECT product, source, bool_or(won) AS won, count(*) FILTER (won) AS series, mode(reason) AS reason,
       epoch_ms(max(snapshot_ts) FILTER (won)) AS snapshot
FROM decided JOIN newest USING (product, run_id)
GROUP BY product, source ORDER BY product, won DESC, min(rank)
"""


def read_chain_volatility(lake: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """By product: the front series of the last chain, as `LiveQuotes.measure` describes one."""
    rows = lake.sql(_VOLATILITY).pl()
    return {row.pop("product"): {**row, "label": series_label_text(row["series"])} for row in rows.to_dicts()}


_VOLATILITY = """
SELECT product, series, epoch_ms(expiration)::DOUBLE AS expiration, atm_iv, expected_move_iv AS expected_move,
       expected_move_straddle AS straddle, forward, epoch_ms(snapshot_ts) AS newest, source
FROM term_structure WHERE atm_iv IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY product ORDER BY expiration, series) = 1
"""
