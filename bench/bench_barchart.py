"""Parse and normalize a Barchart answer of 10,000 contracts to Parquet, beside other ways to do it.

    python bench/bench_barchart.py

Every way starts from the same bytes (a synthetic answer in the site's format, about 7 MB) and ends with
the same Parquet file of the chain table, equal row by row; orjson alone only decodes. Prints the best of
several interleaved rounds and their ratios.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from nq_pipeline.lake import parquet
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.sources.barchart.normalize import chain_rows
from nq_pipeline.sources.barchart.parse import parse_chain
from nq_pipeline.sources.base import ChainRequest
from nq_pipeline.transport.vendor_session import Reply

CONTRACTS = 10_000
ROUNDS = 7
DAY = date(2025, 6, 10)
SERIES, CODE, GLOBEX = Series("Q2C", date(2025, 6, 11)), "MC2M5", "Q2CM5"
DISPLAYED = "%m/%d/%y"
"""The site's format of a settlement's date."""


def synthetic_answer(contracts: int = CONTRACTS) -> bytes:
    """A synthetic answer: a quarter traded today, the rest settled, some without quotes or interest."""
    today = int(datetime(2025, 6, 10, 14, 30, tzinfo=UTC).timestamp())
    before = int(datetime(2025, 6, 9, tzinfo=UTC).timestamp())
    groups: dict[str, list[dict[str, Any]]] = {"Call": [], "Put": []}
    for i in range(contracts):
        side = "Call" if i % 2 == 0 else "Put"
        strike = 10_000 + 5 * (i // 2)
        symbol = f"{CODE}|{strike}{side[0]}"
        traded = i % 4 == 1
        price = 0.25 * (4 + (i * 37) % 20_000)
        last = (f"{price:,.2f}", price) if traded else (f"{price:,.2f}s", price)
        cells: dict[str, tuple[Any, Any]] = {
            "strike": (f"{strike:,.2f}{side[0]}", strike),
            "openPrice": (f"{price:,.2f}", price) if traded else ("N/A", 0),
            "highPrice": (f"{price + 1:,.2f}", price + 1),
            "lowPrice": (f"{price - 0.5:,.2f}", price - 0.5),
            "lastPrice": last,
            "priceChange": ("unch", 0) if i % 7 == 0 else (f"{-20.5 + i % 40:+,.2f}", -20.5 + i % 40),
            "bidPrice": ("N/A", 0) if i % 11 == 0 else (f"{price - 0.25:,.2f}", price - 0.25),
            "askPrice": (f"{price + 0.25:,.2f}", price + 0.25),
            "volume": (f"{i:,}", i) if traded else ("N/A", None),
            "openInterest": ("N/A", None) if i % 3 == 0 else (f"{i * 3:,}", i * 3),
            "premium": (f"{price * 20:,.2f}", price * 20),
            "tradeTime": ("09:30 CT", today) if traded else ("06/09/25", before),
            "longSymbol": (symbol, symbol),
            "optionType": (side, side),
            "symbol": (symbol, symbol),
            "symbolCode": ("FUTOPT", "FUTOPT"),
            "symbolType": (12, 12),
        }
        row = {name: shown for name, (shown, _) in cells.items()}
        row["raw"] = {name: _plain(raw) for name, (_, raw) in cells.items()}
        groups[side].append(row)
    return orjson.dumps({"count": 2, "total": contracts, "data": groups, "meta": {"field": {}}})


def _plain(raw: Any) -> Any:
    """The site writes a whole number without a decimal point."""
    return int(raw) if isinstance(raw, float) and raw.is_integer() else raw


# ── the ways ────────────────────────────────────────────────────────────────────────────────────


def ours(body: bytes) -> pl.DataFrame:
    """As a run does it, including the comparison of display and raw values."""
    return parse_chain(body, SERIES, CODE, trade_date=DAY).rows


class Raw(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)
    strike: float
    open_price: float | None
    high_price: float | None
    low_price: float | None
    last_price: float | None
    price_change: float | None
    bid_price: float | None
    ask_price: float | None
    volume: int | None
    open_interest: int | None
    premium: float | None
    trade_time: int


class Row(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)
    open_price: str
    high_price: str
    low_price: str
    last_price: str
    price_change: str
    bid_price: str
    ask_price: str
    volume: str
    open_interest: str
    premium: str
    trade_time: str
    option_type: str
    symbol: str
    raw: Raw


def pydantic_rows(body: bytes) -> pl.DataFrame:
    """One validated model per row, one normalized dict per model."""
    rows = []
    for group in orjson.loads(body)["data"].values():
        for item in group:
            row = Row.model_validate(item)
            raw, settled, today = row.raw, row.last_price.endswith("s"), row.trade_time.endswith("CT")
            side = row.option_type[0]
            rows.append(
                {
                    "is_settlement": settled,
                    "raw_symbol": f"{GLOBEX} {side}{raw.strike:g}",
                    "vendor_symbol": row.symbol,
                    "contract_key": f"{SERIES.key}-{side}-{raw.strike:g}",
                    "strike": raw.strike,
                    "option_type": side,
                    "bid": None if row.bid_price == "N/A" else raw.bid_price,
                    "ask": None if row.ask_price == "N/A" else raw.ask_price,
                    "last": None if settled else raw.last_price,
                    "settlement": raw.last_price if settled else None,
                    "settlement_date": datetime.strptime(row.trade_time, DISPLAYED).date()
                    if settled
                    else None,
                    "last_ts": None if raw.volume is None else raw.trade_time * 10**9,
                    "open": None if row.open_price == "N/A" else raw.open_price,
                    "high": None if row.high_price == "N/A" else raw.high_price,
                    "low": None if row.low_price == "N/A" else raw.low_price,
                    "change": None if row.price_change == "N/A" else raw.price_change,
                    "volume": raw.volume if today else None,
                    "open_interest": raw.open_interest,
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def json_normalize(body: bytes) -> pl.DataFrame:
    """`pandas.json_normalize` and the usual cleaning of columns."""
    import pandas as pd

    data = orjson.loads(body)["data"]
    table = pd.concat([pd.json_normalize(data["Call"]), pd.json_normalize(data["Put"])], ignore_index=True)
    settled = table["lastPrice"].str.endswith("s")
    today = table["tradeTime"].str.endswith("CT")
    side, strike = table["optionType"].str[0], table["raw.strike"].astype(int).astype(str)

    def number(name: str) -> Any:
        return pd.to_numeric(table[f"raw.{name}"]).astype(float).where(table[name] != "N/A")

    volume = number("volume")
    clean = pd.DataFrame(
        {
            "is_settlement": settled,
            "raw_symbol": f"{GLOBEX} " + side + strike,
            "vendor_symbol": table["symbol"],
            "contract_key": f"{SERIES.key}-" + side + "-" + strike,
            "strike": table["raw.strike"].astype(float),
            "option_type": side,
            "bid": number("bidPrice"),
            "ask": number("askPrice"),
            "last": number("lastPrice").where(~settled),
            "settlement": number("lastPrice").where(settled),
            "settlement_date": pd.to_datetime(table["tradeTime"].where(settled), format=DISPLAYED),
            "last_ts": (table["raw.tradeTime"] * 10**9).where(volume.notna()).astype("Int64"),
            "open": number("openPrice"),
            "high": number("highPrice"),
            "low": number("lowPrice"),
            "change": number("priceChange"),
            "volume": volume.where(today),
            "open_interest": number("openInterest"),
        }
    )
    return pl.from_pandas(clean).with_columns(pl.col("settlement_date").cast(pl.Date))


# ── measuring ───────────────────────────────────────────────────────────────────────────────────


def finish(rows: pl.DataFrame, body: bytes, out: Path) -> pl.DataFrame:
    """The same last step for all: the chain table's columns, and the lake's own writer."""
    now = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
    request = ChainRequest(DAY, now, now, (SERIES,), "bench", "sandbox")
    reply = Reply("chain", 200, {}, body, int(now.timestamp()) * 10**9, "request", "digest", False, "")
    frame = chain_rows(rows, SERIES, reply, request, {}, timedelta(minutes=10))
    parquet.write(out, SOURCE_CHAIN, [frame], ["bench"])
    return frame


def main() -> dict[str, float]:
    """Measure, check, print; milliseconds by way."""
    body = synthetic_answer()
    sessions.trade_date(datetime(2025, 6, 10, tzinfo=UTC))  # the calendar is loaded once per process
    ways: dict[str, Callable[[bytes], pl.DataFrame]] = {
        "nq_pipeline": ours,
        "pydantic v2, row by row": pydantic_rows,
        "pandas.json_normalize": json_normalize,
    }
    best = dict.fromkeys((*ways, "orjson alone"), math.inf)
    frames: dict[str, pl.DataFrame] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "chain.parquet"
        for _ in range(ROUNDS):
            for name, way in ways.items():
                gc.collect()
                started = time.perf_counter()
                frames[name] = finish(way(body), body, out)
                best[name] = min(best[name], time.perf_counter() - started)
            gc.collect()
            started = time.perf_counter()
            orjson.loads(body)
            best["orjson alone"] = min(best["orjson alone"], time.perf_counter() - started)
    mine = best["nq_pipeline"]
    for name, frame in frames.items():
        if not frame.equals(frames["nq_pipeline"]):
            raise SystemExit(f"{name} comes to other rows: the comparison means nothing")
    print(
        f"Barchart answer, {CONTRACTS:,} contracts, {len(body) / 1e6:.1f} MB, to Parquet (best of {ROUNDS})"
    )
    for name, seconds in best.items():
        print(f"  {name:<26}{seconds * 1e3:7.1f} ms   {seconds / mine:5.2f} x")
    print(f"  {'against decoding alone':<26}{mine / best['orjson alone']:21.2f} x")
    return {name: seconds * 1e3 for name, seconds in best.items()}


if __name__ == "__main__":
    main()
