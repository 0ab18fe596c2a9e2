"""Barchart's quotes answers, read: every value comes twice, as displayed and raw.

Neither suffices alone: `N/A` is raw 0 for a price, and a settlement is told from a trade only
by the `s` behind the displayed price. So both are read and compared cell by cell, and a cell
whose twins disagree is null and counted. What they mean, seen in recorded boards and true there
of every row:

- A price with an `s` is a settlement, one without is the last. The site forgets the mark on the
  first call of every board: there `last` is as sent, but has no time.
- `tradeTime` speaks of a trade only where the row has a volume, or an opening price beside an
  unmarked one; then it is `last_ts`. A settled row that traded has its session's date, at midnight UTC.
- A settlement is dated by the session `tradeTime` lies in. Of a quiet row that may be the time of its last
  quote, so its settlement may be of an earlier session.
- `volume` is of the session `tradeTime` lies in, and null unless that is the session asked about.
- Open, high, low and change are as sent, of the session the row speaks of.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import orjson
import polars as pl

from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.errors import BadPayload
from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.symbology import barchart_rows, contract_keys, globex_code, globex_symbols
from nq_pipeline.sources.plausibility import FUTURE, MOST_CONTRACTS, OTHER
from nq_pipeline.transport.json_columns import decode, loads, number

PRICES = ("openPrice", "highPrice", "lowPrice", "lastPrice", "priceChange", "bidPrice", "askPrice", "premium")
COUNTS = ("volume", "openInterest")

SIDES = ("Call", "Put")
_SHOWN = (*PRICES, *COUNTS, "tradeTime", "optionType", "symbol")
_RAW = (*PRICES, *COUNTS, "strike", "tradeTime")
_NULL_DOCUMENT = re.compile(rb"}\s*null")
"""Found in no single JSON document; Arrow's reader crashes on a document that is null."""

_MISSING = ("N/A", "-", "")
_ROUNDING = 0.005 + 1e-9
"""Displayed numbers have two decimals."""

END_OF_TIME = to_ns(datetime(2100, 1, 1, tzinfo=UTC))
"""The calendar ends there."""


@dataclass(frozen=True, slots=True)
class BarchartChain:
    """One series as the site showed it.

    Attributes
    ----------
    rows
        The columns of `SOURCE_CHAIN` that the body speaks of.
    seen
        Rows in the body, used or not.
    newest
        The latest session any row's time lies in.
    settled
        Whether no row's price is a trade.
    """

    rows: pl.DataFrame
    seen: int = 0
    newest: date | None = None
    settled: bool = False
    dropped: Counter[str] = field(default_factory=Counter)
    controls: Mapping[str, bool] = field(default_factory=dict)


def parse_chain(
    body: bytes, series: Series, code: str, *, trade_date: date, latest: int = END_OF_TIME
) -> BarchartChain:
    """Read one board.

    Parameters
    ----------
    body
        The JSON as sent: rows grouped by type or by strike, or listed.
    code
        The series' code as rows carry it, with one digit of the year (`MM1N5`).
    trade_date
        The session asked about: a row's volume is kept only if it is of this session.
    latest
        No trade can be later, nanoseconds UTC, and no settlement of a later trade date than the one
        asked about.

    Returns
    -------
    A row that is not a contract of the series is dropped and counted (`unknown_symbol`,
    `other_series`, `malformed_row`, `duplicate`); a cell that cannot be read, or whose displayed
    and raw values disagree, is null and counted (`malformed_cell`), so is a time that is yet to come
    (`future_instant`).

    Raises
    ------
    BadPayload
        Not a quotes answer, or of another product: a premium is the price times the multiplier.
    """
    cells, total = _rows(body)
    if cells.is_empty():
        if total:
            raise BadPayload(f"{code}: {total:g} rows are stated and none is there")
        return BarchartChain(pl.DataFrame(), controls={"rows_equal_total": True})
    table = _read(cells, (*PRICES, *COUNTS), trade_date, latest).with_columns(
        barchart_rows(pl.col("symbol")).struct.unnest().name.prefix("of_")
    )
    table = table.with_columns(fate=_fate(code))
    dropped = Counter[str](table["fate"].drop_nulls().to_list())
    if dropped:
        table = table.filter(pl.col("fate").is_null())
    future = int(table["to_come"].sum())
    dropped[FUTURE] = future
    dropped["malformed_cell"] = sum(table.select(pl.col("^bad_.*$").sum()).row(0)) - future
    dropped = +dropped
    controls = {"rows_equal_total": cells.height == total}
    multiplier = series.root_info.product.multiplier
    off = (pl.col("premium") - pl.col("lastPrice") * multiplier).abs() > multiplier * _ROUNDING
    shares = table.select(off.drop_nulls().mean()).item()
    if shares is not None:
        if shares > 0.5:
            raise BadPayload(f"{code}: premiums are not the price times {multiplier:g}, so another product")
        controls[f"premium_is_last_times_{multiplier:g}"] = not shares
    rows, newest = _meaning(table, series, trade_date)
    prints = rows.select((pl.col("last").is_not_null() & pl.col("last_ts").is_not_null()).any()).item()
    return BarchartChain(rows, cells.height, newest, not prints, dropped, controls)


def parse_futures(
    body: bytes, symbols: Sequence[str], *, trade_date: date, latest: int = END_OF_TIME
) -> dict[str, tuple[float, int]]:
    """Last price and its time (ns UTC) of the symbols asked for; one without either is left out.

    `trade_date` and `latest` as in `parse_chain`.
    """
    cells, _ = _rows(body)
    if cells.is_empty():
        return {}
    table = _read(cells, ("lastPrice",), trade_date, latest).select("symbol", "lastPrice", "time")
    table = table.drop_nulls().filter(pl.col("symbol").is_in(symbols))
    return {symbol: (price, ns) for symbol, price, ns in table.iter_rows()}


def _rows(body: bytes) -> tuple[pl.DataFrame, float | None]:
    """All rows of an answer, displays as text beside `raw_` numbers, and its stated total.

    A body of exactly the page's shape is decoded straight into columns, in less time than
    Python objects would take. Any node of another shape makes it decode tolerantly instead: what
    does not fit is null. On a regular body both give the same.
    """
    return _strict_rows(body) or _tolerant_rows(body)


def _strict_rows(body: bytes) -> tuple[pl.DataFrame, float | None] | None:
    """The rows of a regular body; None when it is not one."""
    import pyarrow as pa
    from pyarrow import json

    if not body.startswith(b"{") or _NULL_DOCUMENT.search(body):
        return None
    raw = pa.struct([(name, pa.float64()) for name in _RAW])
    rows = pa.list_(pa.struct([*((name, pa.string()) for name in _SHOWN), ("raw", raw)]))
    shape = pa.schema([("total", pa.float64()), ("data", pa.struct([(side, rows) for side in SIDES]))])
    try:
        body.decode()  # Arrow takes any bytes for text
        table = json.read_json(
            pa.BufferReader(body),
            json.ReadOptions(use_threads=False, block_size=len(body) + 1),
            json.ParseOptions(explicit_schema=shape, unexpected_field_behavior="ignore"),
        )
    except (UnicodeDecodeError, pa.ArrowException):
        return None
    data = table.column("data").combine_chunks()
    sides = [data.field(side) for side in SIDES]
    if len(data) != 1 or data.null_count or any(side.null_count for side in sides):
        return None
    found = pa.concat_arrays([side.flatten() for side in sides])
    cells = pl.DataFrame(pa.table(dict(zip(found.type.names, found.flatten(), strict=True))))
    return _beside(cells), table.column("total")[0].as_py()


def _tolerant_rows(body: bytes) -> tuple[pl.DataFrame, float | None]:
    """The rows of any body that has some; `BadPayload` when it has none to have."""
    text, uncounted = pl.String(), Counter[str]()  # counted later, as the cells they cost
    raw = pl.Struct(dict.fromkeys(_RAW, text))
    rows = pl.List(pl.Struct({**dict.fromkeys(_SHOWN, text), "raw": raw}))
    shape = pl.Struct({"total": text, "data": pl.Struct(dict.fromkeys(SIDES, rows))})
    document = decode(body, shape, uncounted, what="quotes").struct.unnest()
    sides = _sides(document)
    if not sides:
        document = decode(_regrouped(body), shape, uncounted, what="quotes").struct.unnest()
        sides = _sides(document)
    found = pl.concat([side.explode(empty_as_null=False) for side in sides])
    return _beside(found.struct.unnest()), document.select(number("total")).item()


def _sides(document: pl.DataFrame) -> list[pl.Series]:
    """The lists of rows that are there, calls first."""
    sides = [document["data"].struct.field(side) for side in SIDES]
    return [side for side in sides if not side.null_count()]


def _beside(cells: pl.DataFrame) -> pl.DataFrame:
    """The raw twins as finite numbers in columns of their own."""
    raw = cells["raw"].struct.unnest()
    return cells.drop("raw").hstack(raw.select(number(name).alias(f"raw_{name}") for name in _RAW))


def _regrouped(body: bytes) -> bytes:
    """A list of rows, or rows grouped by strike, in the shape of the page's own answer."""
    try:
        value = loads(body)
        data = value.get("data")
        if isinstance(data, dict) and data:
            data = [row for group in data.values() if isinstance(group, list) for row in group] or None
        if data == {}:
            data = []
        if isinstance(data, list):
            return orjson.dumps({"total": value.get("total"), "data": {"Call": data, "Put": []}})
    except (ValueError, orjson.JSONEncodeError):
        pass  # not JSON to either decoder, or nested deeper than any answer
    raise BadPayload("quotes: JSON without a list or groups of rows")


def _read(cells: pl.DataFrame, names: Sequence[str], trade_date: date, latest: int) -> pl.DataFrame:
    """Numbers from display and raw twins: `<name>` and `bad_<name>`, `time` (ns) and `bad_time`.

    The raw number counts; the displayed one says whether it is there at all and must agree.
    `to_come` says of a bad time that it is one, but later than can be.
    """
    # Only roots priced in eighths need the slower reading, and then all of their rows do.
    fractions = bool(cells["lastPrice"].str.contains(r"\d-\d").any())
    moment = pl.col("raw_tradeTime")
    stamp = pl.when(moment.is_between(1, END_OF_TIME // NS_PER_S) & (moment % 1 == 0)).then(
        moment.cast(pl.Int64, strict=False) * NS_PER_S
    )
    # A date stands for a trade date, whose session begins the evening before.
    midnight = datetime(trade_date.year, trade_date.month, trade_date.day, tzinfo=UTC)
    day_end = to_ns(midnight + timedelta(days=1)) - 1
    dated = pl.col("tradeTime").str.contains("/", literal=True).fill_null(False)
    known = stamp <= pl.when(dated).then(max(latest, day_end)).otherwise(latest)
    return (
        cells.lazy()
        .with_columns(
            *(_displayed(pl.col(name), fractions=fractions).alias(f"shown_{name}") for name in names),
            *(pl.col(name).is_in(_MISSING).alias(f"none_{name}") for name in (*names, "tradeTime")),
            settled=pl.col("lastPrice").str.ends_with("s"),
        )
        .with_columns(
            *(_agreed(name).alias(name) for name in names),
            *(_bad(name, _agreed(name)).alias(f"bad_{name}") for name in names),
            time=pl.when(known).then(stamp),
            bad_time=_bad("tradeTime", pl.when(known).then(stamp)),
            to_come=(~known & ~pl.col("none_tradeTime")).fill_null(False),
        )
        .collect()
    )


def _displayed(text: pl.Expr, *, fractions: bool) -> pl.Expr:
    """A displayed number: `7,534.38s`, `+137.25`, `unch`; with fractions also `539-4`, in eighths."""
    plain = text.str.strip_chars_end("s").str.replace_all(",", "", literal=True)
    value = pl.when(text == "unch").then(0.0).otherwise(plain.cast(pl.Float64, strict=False))
    if not fractions:
        return value
    part = plain.str.extract_groups(r"^([+-]?)(\d+)-([0-7])$").struct
    size = part[1].cast(pl.Float64) + part[2].cast(pl.Float64) / 8
    return pl.coalesce(value, pl.when(part[0] == "-").then(-size).otherwise(size))


def _agreed(name: str) -> pl.Expr:
    raw, shown = pl.col(f"raw_{name}"), pl.col(f"shown_{name}")
    agree = raw.is_null() | ((raw - shown).abs() <= _ROUNDING)
    sane = shown.is_finite() if name in PRICES else shown.is_between(0, MOST_CONTRACTS) & (shown % 1 == 0)
    return pl.when(~pl.col(f"none_{name}") & sane & agree).then(pl.coalesce(raw, shown))


def _bad(name: str, value: pl.Expr) -> pl.Expr:
    """Whether a cell was sent but has no value: unreadable, or its twins disagree."""
    none = pl.col(name).is_null() | pl.col(f"none_{name}")
    return pl.when(none).then((pl.col(f"raw_{name}") != 0).fill_null(False)).otherwise(value.is_null())


def _fate(code: str) -> pl.Expr:
    """Why a row is dropped; null for a row that is kept."""
    strike, side = pl.col("of_strike"), pl.col("of_option_type")
    other_strike = pl.col("raw_strike") != strike
    other_side = pl.col("optionType").str.slice(0, 1) != side
    return (
        pl.when(pl.col("of_code").is_null())
        .then(pl.lit("unknown_symbol"))
        .when(pl.col("of_code") != code)
        .then(pl.lit(OTHER))
        .when(other_strike.fill_null(False) | other_side.fill_null(False))
        .then(pl.lit("malformed_row"))
        .when(~pl.struct("of_code", "of_strike", "of_option_type").is_first_distinct())
        .then(pl.lit("duplicate"))
    )


def _meaning(table: pl.DataFrame, series: Series, trade_date: date) -> tuple[pl.DataFrame, date | None]:
    """Rows in the terms of `SOURCE_CHAIN`, and the newest session they speak of."""
    ours = pl.Series("session", sessions.trade_dates(table["time"].fill_null(0).to_numpy()))
    price, volume = pl.col("lastPrice"), pl.col("volume")
    settled = price.is_not_null() & pl.col("settled")
    traded = volume.is_not_null() | (price.is_not_null() & ~settled & pl.col("openPrice").is_not_null())
    strike, side = pl.col("of_strike"), pl.col("of_option_type")
    meant = table.lazy().with_columns(ours, is_settlement=settled.fill_null(False))
    rows = meant.select(
        "is_settlement",
        raw_symbol=globex_symbols(pl.lit(globex_code(series)), side, strike),
        vendor_symbol="symbol",
        contract_key=contract_keys(pl.lit(series.key), side, strike),
        strike=strike,
        option_type=side,
        bid="bidPrice",
        ask="askPrice",
        last=pl.when(~pl.col("is_settlement")).then(price),
        settlement=pl.when(pl.col("is_settlement")).then(price),
        settlement_date=pl.when(pl.col("is_settlement")).then("session"),
        last_ts=pl.when(traded).then(pl.col("time")).cast(INSTANT),
        open="openPrice",
        high="highPrice",
        low="lowPrice",
        change="priceChange",
        volume=pl.when(pl.col("session") == trade_date).then(volume),
        open_interest="openInterest",
    ).collect()
    newest = ours.max()
    return rows, newest if isinstance(newest, date) else None
