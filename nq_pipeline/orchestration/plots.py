"""Small pictures that travel inside metadata: SVG of a few kilobytes, no server needed."""

from __future__ import annotations

import base64

import polars as pl

WIDTH, HEIGHT, MARGIN = 640, 200, 18
AROUND = 0.10
"""Strikes shown lie within this share of the underlying."""


def open_interest_by_strike(chain: pl.DataFrame) -> str | None:
    """Open interest of the front series, calls up and puts down, as Markdown with an inline image.

    None when no series has both an underlying price and open interest.
    """
    near = (pl.col("strike") / pl.col("underlying_price") - 1).abs() <= AROUND
    ladder = chain.filter(near, pl.col("open_interest") > 0).sort("expiration", "root")
    if ladder.is_empty():
        return None
    series = ladder.item(0, "series")
    ladder = ladder.filter(pl.col("series") == series)
    spot = float(ladder.item(0, "underlying_price"))
    return f"![open interest of {series}](data:image/svg+xml;base64,{_encoded(_svg(ladder, series, spot))})"


def _svg(ladder: pl.DataFrame, series: str, spot: float) -> str:
    low, high = spot * (1 - AROUND), spot * (1 + AROUND)
    most = int(ladder["open_interest"].max())  # type: ignore[arg-type]
    middle, reach = HEIGHT / 2, HEIGHT / 2 - MARGIN

    def x(strike: float) -> float:
        return round(MARGIN + (WIDTH - 2 * MARGIN) * (strike - low) / (high - low), 1)

    def bars(side: str, direction: int) -> str:
        rows = ladder.filter(pl.col("option_type") == side).select("strike", "open_interest").iter_rows()
        return "".join(
            f"M{x(strike)} {middle:g}v{direction * reach * held / most:.1f}" for strike, held in rows
        )

    def text(left: float, top: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{left:g}" y="{top:g}" text-anchor="{anchor}">{words}</text>'

    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="11" fill="#555">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        f'<path d="M{MARGIN} {middle:g}H{WIDTH - MARGIN}" stroke="#999"/>'
        f'<path d="M{x(spot)} {MARGIN}V{HEIGHT - MARGIN}" stroke="#999" stroke-dasharray="3 3"/>'
        f'<path d="{bars("C", -1)}" stroke="#2a78d6" stroke-width="2"/>'
        f'<path d="{bars("P", 1)}" stroke="#d6552a" stroke-width="2"/>'
        + text(MARGIN, 13, f"{series}: open interest by strike, calls up, puts down; most {most:,}", "start")
        + text(x(spot), HEIGHT - 5, f"{spot:,.2f}")
        + text(MARGIN, HEIGHT - 5, f"{low:,.0f}", "start")
        + text(WIDTH - MARGIN, HEIGHT - 5, f"{high:,.0f}", "end")
        + "</svg>"
    )


def _encoded(svg: str) -> str:
    return base64.b64encode(svg.encode()).decode()
