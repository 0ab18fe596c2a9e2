"""OpenBB, optopsy and NautilusTrader open what is exported for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nq_pipeline
from nq_pipeline.export import export
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.export_lake import CALL, MINUTELY, MONDAY, TUESDAY, noon
from nq_pipeline_tests.testing.foreign_tools import run_with

OPENBB = """
import json, sys
from openbb_core.provider.standard_models.options_chains import OptionsChainsData
with open(sys.argv[1]) as file:
    chain = OptionsChainsData.model_validate(json.load(file))
frame = chain.dataframe
print(json.dumps({
    "rows": len(frame), "expirations": chain.expirations,
    "has_iv": chain.has_iv, "has_greeks": chain.has_greeks,
    "open_interest": chain.total_oi["total"]["Total"], "size": float(frame["contract_size"].iloc[0]),
}, default=str))
"""

OPTOPSY = """
import json, sys
import optopsy
names = ("delta", "gamma", "theta", "vega", "volume", "open_interest")
data = optopsy.csv_data(sys.argv[1], **{name: 8 + at for at, name in enumerate(names)})
trades = optopsy.long_calls(data, raw=True, max_entry_dte=30, exit_dte=0)
print(json.dumps({"rows": len(data), "columns": list(data.columns), "sides": sorted(set(data.option_type))}))
"""

NAUTILUS = """
import json, sys
from nautilus_trader.persistence.catalog import ParquetDataCatalog
catalog = ParquetDataCatalog(sys.argv[1])
instruments = {str(i.id): i.to_dict(i) for i in catalog.instruments()}
print(json.dumps({
    "instruments": instruments,
    "trades": [t.to_dict(t) for t in catalog.trade_ticks()],
    "quotes": [q.to_dict(q) for q in catalog.quote_ticks()],
    "monday": len(catalog.trade_ticks(end=int(sys.argv[2]))),
}, default=str))
"""


def test_openbb_reads_the_chain(settings: Settings, tmp_path: Path) -> None:
    export(settings, "openbb", tmp_path / "chain.json")
    seen = run_with("openbb_core", OPENBB, tmp_path / "chain.json")
    chain = nq_pipeline.chain(settings=settings)
    assert seen["rows"] == chain.height and seen["size"] == 20.0
    assert seen["has_iv"] and seen["has_greeks"]
    assert seen["expirations"] == [str(day) for day in chain["expiration_date"].unique().sort()]
    assert int(seen["open_interest"]) == chain["open_interest"].sum()


def test_optopsy_reads_the_chains_of_trade_dates(settings: Settings, tmp_path: Path) -> None:
    written = export(settings, "optopsy", tmp_path / "chains.csv")
    seen = run_with("optopsy", OPTOPSY, tmp_path / "chains.csv")
    assert seen["rows"] == written.rows["optopsy_chain"] > 100
    assert seen["sides"] == ["c", "p"] and "delta" in seen["columns"]


@pytest.fixture(scope="module")
def catalog(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What NautilusTrader finds in a catalog whose Tuesday was exported twice."""
    folder = tmp_path_factory.mktemp("catalog")
    export(settings, "nautilus", folder, last=TUESDAY)
    export(settings, "nautilus", folder, first=TUESDAY, last=TUESDAY)
    seen = run_with("nautilus_trader", NAUTILUS, folder, noon(TUESDAY))
    assert isinstance(seen, dict)
    return seen


def test_nautilus_finds_every_instrument(settings: Settings, catalog: dict[str, Any]) -> None:
    chain = nq_pipeline.chain(settings=settings)
    found = catalog["instruments"]
    assert set(found) == {f"{symbol}.GLBX" for symbol in [*chain["raw_symbol"], "NQM5"]}
    call, future = found[f"{CALL}.GLBX"], found["NQM5.GLBX"]
    assert (call["type"], call["underlying"], call["option_kind"]) == ("OptionContract", "NQM5", "CALL")
    assert (call["strike_price"], call["multiplier"], call["price_increment"]) == ("21500.00", "20", "0.05")
    assert call["expiration_ns"] == noon(TUESDAY) + 8 * 3600 * 10**9  # 15:00 in Chicago
    assert (future["type"], future["underlying"], future["exchange"]) == ("FuturesContract", "NQ", "XCME")
    assert future["price_increment"] == "0.25"


def test_nautilus_reads_trades_exactly(catalog: dict[str, Any]) -> None:
    names = ("instrument_id", "price", "size", "aggressor_side", "trade_id", "ts_event", "ts_init")
    monday, tuesday = noon(MONDAY), noon(TUESDAY) + 2 * 10**9
    assert sorted(tuple(trade[name] for name in names) for trade in catalog["trades"]) == [
        ("NQM5.GLBX", "21400.25", "2", "SELLER", "0", monday, monday + 7),
        ("NQM5.GLBX", "21400.50", "1", "NO_AGGRESSOR", "1000", monday + 10**9, monday + 10**9 + 7),
        (f"{CALL}.GLBX", "60.05", "3", "BUYER", "2000", tuesday, tuesday + 7),
        (f"{CALL}.GLBX", "60.10", "1", "BUYER", "2000-1", tuesday, tuesday + 7),
    ]
    assert catalog["monday"] == 2


def test_nautilus_reads_the_finest_quotes_of_each(settings: Settings, catalog: dict[str, Any]) -> None:
    quotes = {quote["instrument_id"]: quote for quote in catalog["quotes"]}
    assert len(quotes) == len(catalog["quotes"]) == nq_pipeline.chain(settings=settings).height
    names = ("bid_price", "ask_price", "bid_size", "ask_size")
    of = {name: tuple(quotes[f"{name}.GLBX"][n] for n in names) for name in (CALL, MINUTELY, "Q2CM5 C21500")}
    assert of[CALL] == ("60.00", "60.25", "4", "5")
    assert of[MINUTELY] == ("59.00", "61.00", "7", "8")
    assert of["Q2CM5 C21500"][2:] == ("1", "1")  # the chain's, which has no sizes
