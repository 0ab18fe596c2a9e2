"""The volatility surface of a chain: a curve for each expiration, and what lies between them.

Each expiration has a curve of `svi.py`. Between two expirations, total variance is linear in time at equal
log-moneyness, and so is the logarithm of the forward. The surface ends where the quotes end: before the
first and after the last expiration, and outside the strikes that both neighbouring expirations quote, there
is no volatility.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nq_pipeline.market import sessions, svi
from nq_pipeline.market.svi import Floats

INSTANT = pl.Datetime("ns", "UTC")
Expiration = datetime | date
SLICE = pl.Schema(
    {"series": pl.String(), "expiration": INSTANT, "years": pl.Float64(), "forward": pl.Float64()}
    | dict.fromkeys(svi.PARAMETERS, pl.Float64())
    | {"quotes": pl.Int64()}
    | dict.fromkeys(
        ("strike_min", "strike_max", "atm_iv", "inside_share", "rms_error", "max_error", "durrleman_min"),
        pl.Float64(),
    )
)
_PLACES = ("strike_from", "strike_to", "strike", "log_moneyness")
ARBITRAGE = pl.Schema(
    dict.fromkeys(("series", "kind", "earlier_series"), pl.String())
    | dict.fromkeys((*_PLACES, "durrleman_g", "volatility_drop", "iv_uncertainty"), pl.Float64())
)
POINTS = 201
"""Points of a curve that are examined for arbitrage."""
_ROUNDING = 1e-9


class VolatilitySurface:
    """The implied volatility of one product at any strike and expiration within its quotes.

    Parameters
    ----------
    smile
        Rows of `iv_smile` of one product, one snapshot of each series, with the series' `expiration`. Rows
        without `iv_uncertainty` have no quote and are left out.

    Attributes
    ----------
    slices
        One row per series that has enough quotes, by expiration: the columns of the table `surface_slices`
        from `series` on.
    quotes
        The rows that were fitted, with `fitted_volatility`.
    """

    def __init__(self, smile: pl.DataFrame) -> None:
        quoted = smile.filter(pl.col("iv_uncertainty") > 0, pl.col("years") > 0)
        quoted = quoted.with_columns(pl.col("expiration").cast(INSTANT)).sort(
            "expiration", "series", "strike"
        )
        by_series = quoted.partition_by("series", maintain_order=True)
        curves = svi.fit([_smile(rows) for rows in by_series])
        fitted = [
            rows.with_columns(fitted_volatility=_volatility(curve, rows["log_moneyness"].to_numpy(), rows))
            for rows, curve in zip(by_series, curves, strict=True)
        ]
        kept = [i for i in range(len(curves)) if not np.isnan(curves[i, 0])]
        self._curves = curves[kept]
        self._by_series = [fitted[i] for i in kept]
        self.quotes = (
            pl.concat(self._by_series) if kept else quoted.clear().with_columns(fitted_volatility=0.0)
        )
        rows = [_slice(rows, curve) for rows, curve in zip(self._by_series, self._curves, strict=True)]
        self.slices = pl.DataFrame(rows, SLICE, orient="row").with_columns(
            pl.col(*svi.PARAMETERS, "atm_iv").fill_nan(None)
        )

    def implied_volatility(
        self, strike: npt.ArrayLike, expiration: Expiration | Sequence[Expiration]
    ) -> pl.DataFrame:
        """The implied volatility, with an error band, at strikes and expirations; the two are broadcast.

        Parameters
        ----------
        strike
            Points (proxies: index points or dollars).
        expiration
            Instants with a time zone (else ValueError). A date means the last listed expiration of that date,
            or 15:00 in Chicago where none is listed.

        Returns
        -------
        One row per pair: `strike`, `expiration`, `forward`, `log_moneyness`, `implied_volatility` as a
        fraction, `lower` and `upper`: the bid's and the ask's volatility, interpolated between the strikes,
        and widened where the curve lies outside them. Between two expirations the band also holds the
        volatility of both at as many ATM standard deviations from the forward. Null outside the quotes.
        """
        given = [expiration] if isinstance(expiration, date) else list(expiration)
        instants = np.array([self._instant(one) for one in given], np.int64)
        k, e = np.broadcast_arrays(
            np.asarray(strike, np.float64), instants if len(given) > 1 else instants[0]
        )
        return self._at(k.ravel(), e.ravel())

    def grid(self, strikes: int = 41) -> pl.DataFrame:
        """`implied_volatility` at evenly spaced strikes of every listed expiration, within its quotes."""
        parts = [
            self._at(np.linspace(low, high, strikes), np.full(strikes, instant))
            for low, high, instant in self.slices.select(
                "strike_min", "strike_max", pl.col("expiration").to_physical()
            ).iter_rows()
        ]
        return pl.concat(parts) if parts else self._at(np.empty(0), np.empty(0, np.int64))

    def arbitrage(self) -> pl.DataFrame:
        """Where the curves admit arbitrage: the columns of `surface_arbitrage` from `series` on.

        `butterfly`: strikes where Durrleman's function is negative. `calendar`: strikes where total variance
        at equal log-moneyness is less than at the expiration before. Neighbouring points are one row.
        """
        return pl.DataFrame([*self._butterflies(), *self._calendars()], ARBITRAGE)

    def _instant(self, expiration: Expiration) -> int:
        """Nanoseconds since 1970 UTC."""
        if not isinstance(expiration, datetime):
            listed = self.slices.filter(
                pl.col("expiration").dt.convert_time_zone("America/Chicago").dt.date() == expiration
            )
            if listed.height:
                return int(listed["expiration"].to_physical()[-1])
            expiration = datetime.combine(expiration, time(15), sessions.CHICAGO)
        if expiration.tzinfo is None:
            raise ValueError(f"{expiration.isoformat()} has no time zone; pass an aware datetime or a date")
        return int(pl.Series([expiration], dtype=INSTANT).to_physical()[0])

    def _at(self, strike: Floats, instant: npt.NDArray[np.int64]) -> pl.DataFrame:
        forward, years = np.full((2, len(strike)), np.nan)
        variances = np.full((3, len(strike)), np.nan)
        listed = self.slices["expiration"].to_physical().to_numpy()
        if len(listed):
            within = (instant >= listed[0]) & (instant <= listed[-1])
            before = np.clip(np.searchsorted(listed, instant, "right") - 1, 0, len(listed) - 1)
            after = np.where(listed[before] == instant, before, np.minimum(before + 1, len(listed) - 1))
            gap = np.maximum(listed[after] - listed[before], 1)
            share = np.where(within, instant - listed[before], 0) / gap

            def between(earlier: Floats, later: Floats) -> Floats:
                return np.asarray(np.where(share > 0, (1 - share) * earlier + share * later, earlier))

            sides = before, after
            log_forward, time = np.log(self.slices["forward"].to_numpy()), self.slices["years"].to_numpy()
            forward = np.where(within, np.exp(between(*(log_forward[side] for side in sides))), np.nan)
            years = between(*(time[side] for side in sides))
            k = np.log(strike / forward)
            variances = between(*(self._variances(side, k) for side in sides))
            level = svi.total_variance(self._curves, 0.0)
            at_level = between(*(level[side] for side in sides))
            for side in sides:
                neighbour = self._variances(side, k * np.sqrt(level[side] / at_level))[0] * years / time[side]
                variances[1] = np.fmin(variances[1], neighbour)
                variances[2] = np.fmax(variances[2], neighbour)
        known = np.isfinite(variances[0])
        middle, lower, upper = np.where(known, np.sqrt(np.maximum(variances, 0.0) / years), np.nan)
        columns = {
            "strike": strike,
            "expiration": pl.Series(instant, dtype=pl.Int64).cast(INSTANT),
            "forward": forward,
            "log_moneyness": np.log(strike / forward),
            "implied_volatility": middle,
            "lower": lower,
            "upper": upper,
        }
        return pl.DataFrame(columns).with_columns(pl.selectors.float().fill_nan(None))

    def _variances(self, which: npt.NDArray[np.int64], k: Floats) -> Floats:
        """Total variance of slices at a log-moneyness each: of the curve, and of both ends of its band."""
        variances = np.full((3, len(k)), np.nan)
        for i in np.unique(which):
            rows, here = self._by_series[i], which == i
            at, volatility, half_width, fitted = (
                rows[name].to_numpy()
                for name in ("log_moneyness", "implied_volatility", "iv_uncertainty", "fitted_volatility")
            )
            curve = _volatility(self._curves[i], k[here], rows)
            low = curve + np.minimum(np.interp(k[here], at, volatility - half_width - fitted), 0.0)
            high = curve + np.maximum(np.interp(k[here], at, volatility + half_width - fitted), 0.0)
            inside = (k[here] >= at[0] - _ROUNDING) & (k[here] <= at[-1] + _ROUNDING)
            square = np.maximum(np.stack([curve, low, high]), 0.0) ** 2 * float(rows["years"][0])
            variances[:, here] = np.where(inside, square, np.nan)
        return variances

    def _range(self, i: int) -> tuple[float, float]:
        at = self._by_series[i]["log_moneyness"]
        return float(at[0]), float(at[-1])

    def _uncertainty(self, i: int, k: float) -> float:
        rows = self._by_series[i]
        return float(np.interp(k, rows["log_moneyness"].to_numpy(), rows["iv_uncertainty"].to_numpy()))

    def _butterflies(self) -> Iterator[dict[str, Any]]:
        for i, (series, forward) in enumerate(self.slices.select("series", "forward").iter_rows()):
            k = np.linspace(*self._range(i), POINTS)
            g = svi.durrleman(self._curves[i], k)
            for span, worst in _runs(g < -_ROUNDING, g):
                yield {
                    "series": series,
                    "kind": "butterfly",
                    **_places(forward, k, (*span, worst)),
                    "durrleman_g": float(g[worst]),
                    "iv_uncertainty": self._uncertainty(i, k[worst]),
                }

    def _calendars(self) -> Iterator[dict[str, Any]]:
        named = self.slices.select("series", "forward", "years", "expiration").rows()
        for i, (earlier, later) in enumerate(pairwise(named)):
            low, high = (
                pick(x, y) for pick, x, y in zip((max, min), self._range(i), self._range(i + 1), strict=True)
            )
            if low >= high or earlier[3] == later[3]:
                continue
            k = np.linspace(low, high, POINTS)
            before, after = (svi.total_variance(self._curves[n], k) for n in (i, i + 1))
            drop = (np.sqrt(np.maximum(before, 0)) - np.sqrt(np.maximum(after, 0))) / np.sqrt(later[2])
            for span, worst in _runs(drop > _ROUNDING, -drop):
                widths = self._uncertainty(i, k[worst]), self._uncertainty(i + 1, k[worst])
                yield {
                    "series": later[0],
                    "kind": "calendar",
                    "earlier_series": earlier[0],
                    **_places(later[1], k, (*span, worst)),
                    "volatility_drop": float(drop[worst]),
                    "iv_uncertainty": widths[0] * (earlier[2] / later[2]) ** 0.5 + widths[1],
                }


def _places(forward: float, k: Floats, places: tuple[int, int, int]) -> dict[str, float]:
    """The first, the last and the worst place of a range, as strikes; of the worst the log-moneyness, too."""
    strikes = [float(forward * np.exp(k[place])) for place in places]
    return dict(zip(_PLACES, [*strikes, float(k[places[-1]])], strict=True))


def _smile(rows: pl.DataFrame) -> svi.Smile:
    volatility, years = rows["implied_volatility"].to_numpy(), float(rows["years"][0])
    half_width = 2 * volatility * rows["iv_uncertainty"].to_numpy() * years
    return svi.Smile(rows["log_moneyness"].to_numpy(), volatility**2 * years, half_width)


def _volatility(curve: Floats, k: Floats, rows: pl.DataFrame) -> Floats:
    variance = svi.total_variance(curve, k) / float(rows["years"][0])
    return np.sqrt(np.maximum(variance, 0.0))


def _slice(rows: pl.DataFrame, curve: Floats) -> tuple[Any, ...]:
    """A row of `slices`."""
    error = (rows["fitted_volatility"] - rows["implied_volatility"]).to_numpy()
    k = rows["log_moneyness"]
    atm = float(_volatility(curve, np.zeros(1), rows)[0]) if k[0] <= 0 <= k[-1] else np.nan
    inside = np.abs(error) <= rows["iv_uncertainty"].to_numpy() * (1 + _ROUNDING)
    g = svi.durrleman(curve, np.linspace(k[0], k[-1], POINTS))
    quality = atm, inside.mean(), np.sqrt(np.mean(error**2)), np.abs(error).max(), g.min()
    return (
        *(rows[name][0] for name in ("series", "expiration", "years", "forward")),
        *curve.tolist(),
        rows.height,
        *(rows["strike"][i] for i in (0, -1)),
        *map(float, quality),
    )


def _runs(bad: npt.NDArray[np.bool_], size: Floats) -> Iterator[tuple[tuple[int, int], int]]:
    """The first and last index of every run of true values, and where `size` is least in it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], bad.astype(np.int8), [0]])))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        yield (int(first), int(end) - 1), int(first + np.argmin(size[first:end]))
