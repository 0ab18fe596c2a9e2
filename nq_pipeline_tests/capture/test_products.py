"""A capture of several products: what is subscribed to, and what the lake says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nq_pipeline.capture.capture import Capture
from nq_pipeline.capture.gateway import future_parents, missing_parents, option_parents
from nq_pipeline.clock import ShiftedClock
from nq_pipeline.errors import SettingsError
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.symbology import globex_code
from nq_pipeline.sandbox.gateway.fault_script import Fault, FaultScript
from nq_pipeline.sandbox.gateway.gateway import Gateway
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline_tests.testing.capture_runs import NOW, RunningCapture, capture_settings
from nq_pipeline_tests.testing.feeds import publisher, rows
from nq_pipeline_tests.testing.load_tape import LoadTape

CHOSEN = tuple(PRODUCTS)


def test_the_parents_are_those_of_every_chosen_product() -> None:
    assert len(set(option_parents(CHOSEN))) == len(ROOTS)
    assert option_parents(("GC",))[0] == "OG.OPT"
    assert future_parents(("GC", "ES")) == ("GC.FUT", "ES.FUT")
    assert set(option_parents()) < set(option_parents(CHOSEN))


def test_an_unknown_product_has_no_parents_and_starts_no_capture(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="products are NQ, ES, GC"):
        option_parents(("NQ", "CL"))
    with pytest.raises(SettingsError, match="products are NQ, ES, GC"):
        Capture(capture_settings(None, tmp_path, products=("CL",)))


def test_missing_parents_tells_always_listed_from_weeklies() -> None:
    always, at_times = missing_parents((*option_parents(CHOSEN), *future_parents(CHOSEN)), set())
    assert set(always) == {"NQ.OPT", "ES.OPT", "OG.OPT", "NQ.FUT", "ES.FUT", "GC.FUT"}
    assert not {"Q5A.OPT", "E5D.OPT", "G5W.OPT", "OG5.OPT"} & set(at_times)
    assert {"QNE.OPT", "EW3.OPT", "G4R.OPT"} <= set(at_times)


def test_trades_of_all_products_have_their_own_series(tmp_path: Path) -> None:
    """Also those of gold's monthly option, whose code is of another month than its expiration."""
    recording, script = LoadTape(market(7, CHOSEN), 1_000), FaultScript(Fault("fin", after_records=300))
    with Gateway(recording, clock=ShiftedClock(NOW), script=script).serve_in_thread() as it:
        running = RunningCapture(it, tmp_path, products=CHOSEN)
        try:
            running.until(lambda: running.stats.records > 2_000)
        finally:
            totals = running.finish()
    assert not totals.missing
    root = tmp_path / "sandbox" / "capture"
    publisher(root, at=NOW).publish()
    found = rows(root).select("raw_symbol", "instrument_kind", "underlying_class", "root", "series").unique()
    assert set(found["instrument_kind"]) == {"option"}
    assert set(found["underlying_class"]) == {"future"}
    assert {ROOTS[code].product.code for code in found["root"]} == set(CHOSEN)
    for symbol, key in found.select("raw_symbol", "series").iter_rows():
        assert globex_code(Series.parse(key)) == symbol.partition(" ")[0]
    assert not found.filter(root="OG").is_empty()
