"""The profile of each product's synthetic market: level, volatility, strikes, names, ids.

The numbers are round ones near those of 2025 and match no real day. A product of the product table without an
entry here gets a plain market on its own ticks.
"""

from __future__ import annotations

from dataclasses import dataclass

from nq_pipeline.market.products import PRODUCTS, Product

Span = tuple[float, float, float]
"""A step between strikes, and the shares of the lowest and highest close that it spans."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One product's market; names are Barchart's, exchanges market identifier codes.

    Attributes
    ----------
    number
        Distinguishes the products in instrument ids and, from the second on, in random numbers.
    level
        Typical price in points.
    volatility
        Relative to the first product's.
    near_strikes, last_strikes
        Strikes added two weeks and six days before expiration.
    proxy_scale
        Price of a proxy that is a fund, per index point.
    """

    number: int
    level: float
    volatility: float
    future_tick: float
    future_volume: int
    strikes: tuple[Span, ...]
    near_strikes: tuple[Span, ...]
    last_strikes: tuple[Span, ...]
    name: str
    exchange: str = "XCME"
    carry: float = 0.043 - 0.007
    proxy_strikes: tuple[tuple[str, tuple[Span, ...]], ...] = ()
    proxy_scale: tuple[tuple[str, float], ...] = ()

    @property
    def first_id(self) -> int:
        """The first instrument id of the product; all its ids are below the next product's."""
        return self.number * 1_000_000_000

    def scale_of(self, proxy: str) -> float:
        return dict(self.proxy_scale).get(proxy, 1.0)


_CALIBRATED = {
    "NQ": Profile(
        number=0,
        level=21_500.0,
        volatility=1.0,
        future_tick=0.25,
        future_volume=560_000,
        strikes=((500, 0.62, 1.15), (250, 0.83, 1.09), (100, 0.86, 1.08), (50, 0.89, 1.07)),
        near_strikes=((25, 0.935, 1.04),),
        last_strikes=((10, 0.955, 1.02),),
        name="Nasdaq 100",
        proxy_strikes=(
            ("NDX", ((25, 0.985, 1.015), (50, 0.95, 1.04), (100, 0.90, 1.08), (500, 0.70, 1.15))),
            ("QQQ", ((1, 0.93, 1.05), (5, 0.80, 1.12))),
        ),
        proxy_scale=(("QQQ", 1 / 41.0),),
    ),
    "ES": Profile(
        number=1,
        level=6_000.0,
        volatility=0.8,
        future_tick=0.25,
        future_volume=1_300_000,
        strikes=((100, 0.50, 1.30), (50, 0.60, 1.20), (25, 0.83, 1.09)),
        near_strikes=((10, 0.90, 1.05),),
        last_strikes=((5, 0.95, 1.03),),
        name="S&P 500",
        proxy_strikes=(
            ("SPX", ((5, 0.96, 1.03), (25, 0.85, 1.08), (100, 0.60, 1.20))),
            ("SPY", ((1, 0.93, 1.05), (5, 0.80, 1.12))),
        ),
        proxy_scale=(("SPY", 1 / 10.0),),
    ),
    "GC": Profile(
        number=2,
        level=3_300.0,
        volatility=0.85,
        future_tick=0.10,
        future_volume=190_000,
        strikes=((100, 0.50, 1.50), (50, 0.70, 1.30), (25, 0.80, 1.20)),
        near_strikes=((10, 0.90, 1.10),),
        last_strikes=((5, 0.94, 1.06),),
        name="Gold",
        exchange="XCEC",
        carry=0.043,
    ),
}


def _plain_profile(number: int, product: Product) -> Profile:
    """A market at 10,000 ticks, with a strike for each per cent of that."""
    tick = product.ticks[-1][1]
    step = 100 * tick
    return Profile(
        number=number,
        level=10_000 * tick,
        volatility=1.0,
        future_tick=tick,
        future_volume=100_000,
        strikes=((5 * step, 0.50, 1.50), (step, 0.85, 1.15)),
        near_strikes=((step / 2, 0.95, 1.05),),
        last_strikes=(),
        name=product.name,
    )


PROFILES: dict[str, Profile] = {
    code: _CALIBRATED.get(code) or _plain_profile(number, product)
    for number, (code, product) in enumerate(PRODUCTS.items())
}
"""By product code, in the order of the product table."""
