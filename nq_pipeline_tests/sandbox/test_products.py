"""The synthetic market of every product, alone and side by side."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest
import requests

from nq_pipeline.clock import SystemClock, to_ns
from nq_pipeline.errors import SandboxError
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.products import PRODUCTS, PROXIES, Product
from nq_pipeline.sandbox.scenario import Scenario, format_options, parse_options
from nq_pipeline.sandbox.synthetic.instruments import universe
from nq_pipeline.sandbox.synthetic.market import RATE, Exchange, Market, market
from nq_pipeline.sandbox.synthetic.profiles import PROFILES
from nq_pipeline.sandbox.synthetic.records import definition_records
from nq_pipeline.sandbox.synthetic.tape import tape

OPEN = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
DAY = date(2025, 6, 10)
ALL = market(7, tuple(PRODUCTS))
EVERY = pytest.mark.parametrize("product", PRODUCTS.values(), ids=list(PRODUCTS))


def of(product: Product) -> Market:
    return market(7, (product.code,)).markets[0]


def on_ticks(prices: pl.Series, product: Product) -> bool:
    numbers = prices.drop_nulls().to_numpy()
    ticks = np.select([numbers <= bound for bound, _ in product.ticks], [tick for _, tick in product.ticks])
    return bool((np.abs(numbers / ticks - np.round(numbers / ticks)) < 1e-6).all())


def test_every_product_and_proxy_has_a_profile() -> None:
    assert list(PROFILES) == list(PRODUCTS)
    assert len({shape.number for shape in PROFILES.values()}) == len(PROFILES)
    proxies = {code: proxy.stands_for for code, proxy in PROXIES.items()}
    assert {
        code: product for product, shape in PROFILES.items() for code, _ in shape.proxy_strikes
    } == proxies


@EVERY
def test_each_products_quotes_are_on_ticks_and_not_crossed(product: Product) -> None:
    chain = of(product).chain(OPEN)
    assert on_ticks(chain["bid"], product)
    assert on_ticks(chain["ask"], product)
    assert (chain["bid"] < chain["ask"]).all()
    assert {ROOTS[root].product.code for root in chain["root"].unique()} == {product.code}
    assert set(chain["underlying"]) <= set(of(product).futures(OPEN)["symbol"])


@EVERY
def test_put_call_parity_gives_the_future(product: Product) -> None:
    chain = of(product).chain(OPEN).filter(exercise_style="european").drop_nulls(["bid", "ask"])
    mid = chain.with_columns(mid=(pl.col("bid") + pl.col("ask")) / 2, width=pl.col("ask") - pl.col("bid"))
    keys = ["series", "strike", "underlying", "expiration"]
    calls, puts = (
        mid.filter(option_type=side).select(*keys, pl.col("mid", "width").name.suffix(side)) for side in "CP"
    )
    both = calls.join(puts, on=keys)
    assert both.height > 100
    years = (both["expiration"].cast(pl.Int64).to_numpy() - to_ns(OPEN)) / (365 * 86_400e9)
    implied = both["strike"].to_numpy() + np.exp(RATE * years) * (both["midC"] - both["midP"]).to_numpy()
    prices = {name: float(of(product).future(name, to_ns(OPEN))[0]) for name in set(both["underlying"])}
    fair = both["underlying"].replace_strict(prices).to_numpy()
    assert (np.abs(implied - fair) <= (both["widthC"] + both["widthP"]).to_numpy() + 1e-6).all()


@EVERY
def test_each_products_price_stays_near_its_level(product: Product) -> None:
    level = PROFILES[product.code].level
    assert 0.5 * level < of(product).futures(OPEN)["last"][0] < 2 * level


def test_products_move_apart() -> None:
    minutes = to_ns(OPEN) + np.arange(120) * 60_000_000_000
    moves = [np.diff(np.log(of(product).index(minutes))) for product in PRODUCTS.values()]
    assert np.abs(np.corrcoef(moves)[np.triu_indices(len(moves), 1)]).max() < 0.5


def test_a_product_is_the_same_alone_and_with_others() -> None:
    assert isinstance(ALL, Exchange)
    together = ALL.chain(OPEN)
    first = 0
    for product in PRODUCTS.values():
        alone = of(product).chain(OPEN)
        assert together[first : first + alone.height].equals(alone)
        first += alone.height
    assert together["contract_key"].n_unique() == together.height


def test_ids_of_all_products_differ_and_fit_the_wire() -> None:
    ids = universe(ALL, DAY)["instrument_id"]
    assert ids.n_unique() == len(ids)
    assert ids.max() < 2**32  # type: ignore[operator]


def test_definitions_have_each_products_multiplier_and_exchange() -> None:
    instruments = universe(ALL, DAY).filter(pl.col("instrument_class") != "T")  # a spread has none
    records = definition_records(instruments, ts_event=0, ts_recv=0)
    found = pl.DataFrame(
        {
            "product": instruments["product"],
            "multiplier": records["unit_of_measure_qty"] / 1e9,
            "exchange": records["exchange"].astype(str),
        }
    ).unique()
    tabled = {(code, one.multiplier, PROFILES[code].exchange) for code, one in PRODUCTS.items()}
    assert set(found.rows()) == tabled
    assert {("ES", 50.0, "XCME"), ("GC", 100.0, "XCEC"), ("NQ", 20.0, "XCME")} <= tabled


def test_quotes_of_mixed_products_keep_their_order() -> None:
    listed = ALL.listed(DAY)
    some = listed[np.random.default_rng(1).permutation(listed.height)[:300]]
    books, one_by_one = ALL.quotes(some, to_ns(OPEN)), ALL.chain(OPEN)
    expected = some.join(one_by_one, on="contract_key", how="left", maintain_order="left")
    assert books["bid"].equals(expected["bid"])
    assert books["ask"].equals(expected["ask"])


def test_the_tape_has_trades_of_every_product_and_its_future() -> None:
    ids = np.unique(tape(ALL).records("trades", to_ns(OPEN), to_ns(OPEN) + 600 * 10**9)["instrument_id"])
    traded = universe(ALL, DAY).filter(pl.col("instrument_id").is_in(ids.astype(np.int64).tolist()))
    kinds = set(traded.select("product", pl.col("instrument_class") == "F").iter_rows())
    assert kinds == {(code, future) for code in PRODUCTS for future in (True, False)}


# ── scenarios ──────────────────────────────────────────────────────────────────────────────────────


def test_options_keep_what_they_do_not_name() -> None:
    options = format_options({"seed": 9, "products": "ES,GC"})
    scenario = parse_options(options, Scenario(market(7), SystemClock()))
    assert scenario.market is market(9, ("ES", "GC"))
    assert parse_options("seed=8", scenario).market is market(8, ("ES", "GC"))
    assert parse_options("products=GC", scenario).market is market(9, ("GC",))


def test_an_unknown_product_is_refused() -> None:
    with pytest.raises(SandboxError, match="products of NQ, ES, GC"):
        parse_options("products=CL", Scenario(market(7), SystemClock()))


def test_a_stand_in_shows_only_its_scenarios_products(at: Callable[..., str]) -> None:
    key = {"Authorization": "Bearer key"}
    ordinary = at("polygon")
    gold = ordinary.replace("seed=7", "seed=7;products=GC")
    assert requests.get(f"{ordinary}/v3/snapshot/options/I:NDX", headers=key, timeout=30).status_code == 200
    for base in (ordinary, gold):
        reply = requests.get(f"{base}/v3/snapshot/options/I:SPX", headers=key, timeout=30)
        assert reply.status_code == 404
    both = ordinary.replace("seed=7", "seed=7;products=NQ,ES")
    assert requests.get(f"{both}/v3/snapshot/options/I:SPX", headers=key, timeout=30).status_code == 200
