"""Fake vendors with small chains that obey put-call parity."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from typing import Literal

import polars as pl

from nq_pipeline.errors import SourceError
from nq_pipeline.market.contracts import ROOTS, Contract, Series
from nq_pipeline.market.symbology import globex_symbol
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, Probe, SeriesAnswer, chain_frame
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import VendorSession

UNDERLYING = 21_500.0
STRIKES = [UNDERLYING + 50.0 * n for n in range(-10, 11)]
NDXP = Series("NDXP", date(2025, 6, 13))


def chain(
    request: ChainRequest,
    source: str,
    *,
    series: tuple[Series, ...] | None = None,
    underlying_class: str = "future",
    underlying: float = UNDERLYING,
    age: timedelta = timedelta(minutes=1),
) -> pl.DataFrame:
    """A chain with a spread of one point around call = (U - K)+ + time value, put likewise."""
    rows = []
    for s in series or request.series:
        for strike in STRIKES:
            value = max(5.0, 60.0 - abs(strike - underlying) / 10)
            sides: tuple[tuple[Literal["C", "P"], float], ...] = (
                ("C", underlying - strike),
                ("P", strike - underlying),
            )
            for side, intrinsic in sides:
                mid = max(0.0, intrinsic) + value
                rows.append(
                    {
                        "source": source,
                        "environment": request.environment,
                        "snapshot_ts": request.snapshot_ts,
                        "as_of": request.moment,
                        "trade_date": request.trade_date,
                        "underlying_class": underlying_class,
                        "underlying": "NQM5",
                        "underlying_price": underlying,
                        "root": s.root,
                        "series": s.key,
                        "raw_symbol": globex_symbol(Contract(s, side, strike)) if s.root in ROOTS else None,
                        "vendor_symbol": s.contract_key(side, strike),
                        "contract_key": s.contract_key(side, strike),
                        "expiration": s.expiration,
                        "expiration_date": s.expiration_date,
                        "settlement_style": "PM",
                        "exercise_style": "european",
                        "strike": strike,
                        "option_type": side,
                        "multiplier": 20.0,
                        "bid": mid - 0.5,
                        "ask": mid + 0.5,
                        "quote_ts": request.moment - age,
                        "last": mid,
                        "last_ts": request.moment - age,
                        "is_settlement": False,
                        "volume": 3,
                        "open_interest": 40,
                        "run_id": request.run_id,
                        "request_id": "r1",
                        "raw_sha256": "0" * 64,
                    }
                )
    return chain_frame(pl.DataFrame(rows))


class FakeVendor:
    """A vendor that answers every requested series, or fails in one way.

    Parameters
    ----------
    raises
        The error of every answer.
    breaks_controls
        Whether a control total of its answer does not hold.
    underlying_class
        Anything but `future` makes it a proxy with one series of its own.
    """

    metered = False
    base_url = "http://127.0.0.1:9"
    policy = Policy()

    def __init__(
        self,
        name: str,
        *,
        raises: SourceError | None = None,
        breaks_controls: bool = False,
        underlying_class: str = "future",
        age: timedelta = timedelta(minutes=1),
    ) -> None:
        self.name = name
        self.underlying_classes = frozenset({underlying_class})
        self._raises, self._breaks_controls, self._age = raises, breaks_controls, age
        self.asked = 0

    def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
        self.asked += 1
        if self._raises is not None:
            raise self._raises
        (kind,) = self.underlying_classes
        series = request.series if kind == "future" else (NDXP,)
        return ChainAnswer(
            source=self.name,
            outcome=Outcome.OK,
            reason="",
            frame=chain(request, self.name, series=series, underlying_class=kind, age=self._age),
            series={s.key: SeriesAnswer(Outcome.OK) for s in series},
            dropped=Counter(spread=2),
            controls={"rows_equal_total": not self._breaks_controls},
        )

    def probe(self, session: VendorSession) -> Probe:
        return Probe(True, True, True, "a fake")
