"""What the board makes of trades: the tape, the future's price, and volume and pressure by strike."""

from __future__ import annotations

from typing import Any

import polars as pl

from nq_pipeline.charts.positions import NEAR, WIDTHS
from nq_pipeline.charts.theme import series_label
from nq_pipeline.dbn.framer import NEAR_NS
from nq_pipeline.market.contracts import PRODUCT_OF

WINDOW = 300_000
"""Length of a window of trade pressure, milliseconds; windows begin on the clock's five minutes."""
SPANS = {"5 minutes": (0, 0), "the 5 minutes before": (1, 1), "30 minutes": (5, 0), "session": (10_000, 0)}
"""What the page offers: the first and the last window of each, counted back from the current one."""
MOST_BARS, LEAST_WIDTH = 24, 0.001
"""Neighbouring strikes are grouped: into at most so many bars, at least this fraction of the price wide."""
POINT, POINTS = 1_000, 3_600
"""One point of a future's prices, milliseconds, and how many are kept."""
LINE_POINT = 10_000
"""One point of the line that the page draws, milliseconds."""

_BY = ["product", "window", "option_type", "strike"]
_VOLUMES = ["bought", "sold", "undefined"]
_WINDOWS = {
    "product": pl.String,
    "window": pl.Int64,
    "option_type": pl.String,
    "strike": pl.Float64,
    **dict.fromkeys(_VOLUMES, pl.Int64),
}
_POINTS = {"symbol": pl.String, "time": pl.Int64, "price": pl.Float64}


def board_rows(trades: pl.DataFrame) -> pl.DataFrame:
    """The columns of `trades` that the board uses, of real trades with a price, in the order they came.

    Adds `product` and `time`, the moment of the trade in milliseconds UTC (`ts_recv` where it is misdated).
    """
    far = (pl.col("ts_event") - pl.col("ts_recv")).dt.total_nanoseconds().abs() > NEAR_NS
    moment = pl.when(far).then("ts_recv").otherwise("ts_event")
    return trades.filter(pl.col("size") > 0, pl.col("price").is_not_null()).select(
        *("raw_symbol", "instrument_kind", "root", "series", "option_type", "strike", "side", "price"),
        *("trade_date", "source_schema", "ts_recv"),
        pl.col("size").cast(pl.Int64),
        product=pl.col("root").replace_strict(PRODUCT_OF, default=pl.col("root"), return_dtype=pl.String),
        time=moment.dt.epoch("ms"),
    )


def tape_columns(rows: pl.DataFrame) -> dict[str, Any]:
    """A batch of trades as the page shows them, column by column.

    `side` has a letter for each trade, the aggressor's: B buys, A sells, N is not known.
    """
    option = pl.col("instrument_kind") == "option"
    shown = rows.select(
        "time",
        "price",
        "size",
        pl.when(option).then("option_type").alias("type"),
        pl.when(option).then("strike").alias("strike"),
        name=pl.when(option)
        .then(series_label(pl.col("series")))
        .otherwise(pl.col("raw_symbol").fill_null("no symbol")),
        side="side",
    )
    columns: dict[str, Any] = shown.to_dict(as_series=False)
    return {**columns, "side": "".join(columns["side"])}


class FuturePrices:
    """The prices of the futures: of each product's most traded one the last, the day's range, and a line.

    Attributes
    ----------
    points
        The last price of every second of the last hour: `symbol`, `time` (ms UTC, ascending) and `price`.
    """

    def __init__(self) -> None:
        self.points = pl.DataFrame(schema=_POINTS)
        self._days = pl.DataFrame(
            schema={
                "product": pl.String,
                "symbol": pl.String,
                **dict.fromkeys(("first", "low", "high", "last"), pl.Float64),
                **dict.fromkeys(("began", "time", "volume"), pl.Int64),
            }
        )

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows of `board_rows` that came after those before."""
        rows = rows.filter(pl.col("instrument_kind") == "future").sort("time", maintain_order=True)
        if rows.is_empty():
            return
        time, price = pl.col("time"), pl.col("price")
        symbol = pl.col("raw_symbol").alias("symbol")
        new = rows.group_by("product", symbol).agg(
            first=price.first(),
            low=price.min(),
            high=price.max(),
            last=price.last(),
            began=time.first(),
            time=time.max(),
            volume=pl.col("size").sum(),
        )
        self._days = (
            pl.concat([self._days, new])
            .group_by("product", "symbol", maintain_order=True)
            .agg(
                pl.col("first").sort_by("began", maintain_order=True).first(),
                pl.col("low").min(),
                pl.col("high").max(),
                pl.col("last").sort_by("time", maintain_order=True).last(),
                pl.col("began").min(),
                time.max(),
                pl.col("volume").sum(),
            )
        )
        points = rows.select(symbol, time // POINT * POINT, price)
        points = pl.concat([self.points, points]).unique(["symbol", "time"], keep="last", maintain_order=True)
        self.points = points.filter(time > time.max() - POINT * POINTS).sort("time")

    def latest(self) -> list[dict[str, Any]]:
        """For each product, its most traded future: symbol, last, change from the first, range, volume."""
        chosen = self._days.sort("volume", descending=True).unique("product", keep="first")
        shown = chosen.with_columns(change=pl.col("last") - pl.col("first")).sort("product")
        return shown.to_dicts()

    def lines(self) -> dict[str, Any]:
        """For each product, the line of the same future: times (ms UTC) and prices."""
        chosen = {row["product"]: row["symbol"] for row in self.latest()}
        return {
            product: {
                "symbol": symbol,
                **self.points.filter(pl.col("symbol") == symbol)
                .group_by(pl.col("time") // LINE_POINT * LINE_POINT, maintain_order=True)
                .agg(pl.col("price").last())
                .to_dict(as_series=False),
            }
            for product, symbol in chosen.items()
        }


class StrikeVolumes:
    """Contracts traded by strike and aggressor, in windows of five minutes of one trade date."""

    def __init__(self) -> None:
        self._windows = pl.DataFrame(schema=_WINDOWS)

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows of `board_rows`."""
        sides = {"bought": "B", "sold": "A", "undefined": "N"}
        window = pl.col("time") // WINDOW * WINDOW
        size = pl.col("size")
        new = rows.filter(pl.col("instrument_kind") == "option", pl.col("strike").is_not_null()).select(
            "product",
            window.alias("window"),
            "option_type",
            "strike",
            *(
                pl.when(pl.col("side") == side).then(size).otherwise(0).alias(name)
                for name, side in sides.items()
            ),
        )
        if new.height:
            self._windows = pl.concat([self._windows, new]).group_by(_BY).agg(pl.col(_VOLUMES).sum())

    def spans(self, now_ms: int, prices: dict[str, float]) -> dict[str, Any]:
        """For each product and span of `SPANS`, volumes by strike within 5 % of the future's price.

        `now_ms` is the market's time. A span has `from` (ms UTC), `width` of a group of strikes, the volume
        `beyond` the strikes shown, and the columns `option_type, strike, bought, sold, undefined`.
        """
        current = now_ms // WINDOW * WINDOW
        found: dict[str, Any] = {}
        for (product,), own in self._windows.partition_by(
            "product", as_dict=True, maintain_order=True
        ).items():
            back = ((current - pl.col("window")) // WINDOW).clip(0)  # clocks differ: none is in the future
            found[product] = {
                name: {
                    "from": max(current - first * WINDOW, own.select(pl.col("window").min()).item()),
                    **_by_strike(own.filter(back.is_between(last, first)), prices.get(product)),
                }
                for name, (first, last) in SPANS.items()
            }
        return found


def _by_strike(windows: pl.DataFrame, price: float | None) -> dict[str, Any]:
    near = windows.filter((pl.col("strike") / price - 1).abs() <= NEAR) if price else windows
    width = group_width(near["strike"], price or 0.0)
    rows = (
        near.group_by("option_type", strike=(pl.col("strike") / width).round() * width)
        .agg(pl.col(_VOLUMES).sum())
        .sort("option_type", "strike")
    )
    total, shown = (int(frame.select(pl.sum_horizontal(_VOLUMES).sum()).item()) for frame in (windows, rows))
    return {"width": width, "beyond": total - shown, **rows.to_dict(as_series=False)}


def group_width(strikes: pl.Series, price: float) -> int:
    """The least width (points) that groups strikes into few enough bars at a price of the future."""
    reach = float(strikes.max()) - float(strikes.min()) if len(strikes) else 0.0  # type: ignore[arg-type]
    least = max(reach / MOST_BARS, price * LEAST_WIDTH)
    return next((width for width in WIDTHS if width >= least), WIDTHS[-1])
