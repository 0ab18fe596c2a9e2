"""The headline of a product: its most important numbers, and how they changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from nq_pipeline import charts
from nq_pipeline.report.facts import ProductFacts
from nq_pipeline.report.formats import NONE, known, number, ratio, share, signed, total

_WALLS = ("call_wall", "put_wall")


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number. `changes` are the words for its change since an earlier moment, by its name."""

    name: str
    value: str
    note: str = ""
    changes: dict[str, str] = field(default_factory=dict)


def tiles(product: ProductFacts) -> Iterator[Tile]:
    """The headline numbers of the front series and of all series together."""
    now = product.now
    front, level = now.front, now.levels.row(0, named=True)
    name, forward = charts.series_label_text(front["series"]), front["forward"]
    # A change is that of the same series, and of all series together.
    of_series = {
        moment: next(then.series.filter(pl.col("series") == front["series"]).iter_rows(named=True), {})
        for moment, then in product.earlier.items()
    }
    of_all = {moment: then.levels.row(0, named=True) for moment, then in product.earlier.items()}

    yield Tile(
        f"Future {product.underlying}",
        number(forward),
        f"by parity of {name}" if forward else "",
        _changes(front, of_series, "forward", _points),
    )
    far = now.series.filter(pl.col("atm_iv").is_not_null()).tail(1).to_dicts()
    later = [f"{share(one['atm_iv'])} by {charts.series_label_text(one['series'])}" for one in far]
    yield Tile(
        "ATM IV",
        share(front["atm_iv"]),
        "; ".join([name, *later]),
        _changes(front, of_series, "atm_iv", _percentage_points),
    )
    move = front["expected_move_iv"]
    straddle = f"straddle {number(front['expected_move_straddle'], 1)}"
    yield Tile(
        "Expected move",
        f"±{number(move, 0)}" if move else NONE,
        f"{share(move / forward, 2)} by {name}; {straddle}" if move else name,
    )
    # `level` is of the source with the most contracts, if there are several.
    whose = f", {level['source']}'s series" if now.levels.height > 1 else ""
    net, left_out = level["gex_per_pct"], level["open_interest_left_out"]
    yield Tile(
        "Net gamma",
        _in_words(net),
        f"dollars per 1 %{whose}; {_hedging(net)}; {left_out:,} open contracts left out",
        _changes(level, of_all, "gex_per_pct", lambda usd: f"{signed(usd / 1e6, 1)} million"),
    )
    zero = level["zero_gamma"]
    away = (
        f"{signed(100 * (zero / level['forward'] - 1), 2)}% from the future" if zero else "none within 10 %"
    )
    yield Tile("Zero gamma", number(zero, 0), away, _changes(level, of_all, "zero_gamma", _points))
    walls = [_changes(level, of_all, wall, lambda points: signed(points, 0)) for wall in _WALLS]
    yield Tile(
        "Call wall / put wall",
        " / ".join(number(level[wall], 0) for wall in _WALLS),
        "strikes with the largest gamma exposure of calls and of puts",
        {moment: " / ".join(side.get(moment, NONE) for side in walls) for moment in walls[0] | walls[1]},
    )
    reversal = front["risk_reversal_25"]
    yield Tile(
        "25-delta risk reversal",
        NONE if reversal is None else f"{signed(100 * reversal, 1)} points",
        f"IV of the call less the put, {name}",
        _changes(front, of_series, "risk_reversal_25", _percentage_points),
    )
    calls, puts, calls_traded, puts_traded = (
        known(now.series[f"{side}_{what}"])
        for what in ("open_interest", "volume")
        for side in ("call", "put")
    )
    yield Tile(
        "Put/call ratio",
        ratio(puts, calls),
        f"of {total([calls, puts])} open contracts; {ratio(puts_traded, calls_traded)} "
        f"of {total([calls_traded, puts_traded])} traded",
    )


def _changes(
    now: Mapping[str, Any], before: Mapping[str, Mapping[str, Any]], name: str, form: Callable[[float], str]
) -> dict[str, str]:
    """The words for the change of a number since each earlier moment that has it."""
    known = {moment: then.get(name) for moment, then in before.items()}
    value = now.get(name)
    return {
        moment: form(value - then) for moment, then in known.items() if value is not None and then is not None
    }


def _points(change: float) -> str:
    return signed(change, 2)


def _percentage_points(change: float) -> str:
    return f"{signed(100 * change, 2)} points"


def _in_words(usd: float | None) -> str:
    """Dollars with their sign as a word: `Negative $5.9M`."""
    if usd is None:
        return NONE
    return f"{'Positive' if usd > 0 else 'Negative' if usd < 0 else 'Zero,'} ${abs(usd) / 1e6:,.1f}M"


def _hedging(net: float | None) -> str:
    """What the sign of net gamma exposure means, under its assumption about dealers."""
    if not net:
        return "no exposure is known"
    return "hedging dampens moves" if net > 0 else "hedging amplifies moves"
