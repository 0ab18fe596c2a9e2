"""A tape with a steady load at any hour, for tests and benchmarks of the gateway and its readers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from functools import lru_cache

import numpy as np

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.dbn.layout import Array
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.synthetic import price_path
from nq_pipeline.sandbox.synthetic.hashed_random import mix
from nq_pipeline.sandbox.synthetic.market import AnyMarket
from nq_pipeline.sandbox.synthetic.records import blank_records, definition_records
from nq_pipeline.sandbox.synthetic.tape import LAST, Tape, as_schema, new_instruments

_LOAD = 24
"""Stream of random numbers, apart from those of the tape."""
_TICK = 0.25


class LoadTape(Tape):
    """A tape with a fixed rate at any hour: one second of records, repeated with new times.

    It offers trades, mbo and books. About twenty records share each instant; sequence numbers and
    times tell the seconds apart.
    """

    schemas = frozenset({"trades", "mbp-1", "mbo", "definition"})
    max_blocks = 4

    def __init__(self, market: AnyMarket, records_per_s: int) -> None:
        super().__init__(market)
        self.records_per_s = records_per_s
        self.step_ns = max(300 // records_per_s, 1) * NS_PER_S  # no round for a handful of records

    def blocks(self, start: int, end: int) -> Iterable[int]:
        return range(start - start % NS_PER_S, end, NS_PER_S)

    def _build(self, schema: str, block: int) -> Array:
        day = sessions.trade_date(from_ns(block))
        if schema == "definition":
            opens = to_ns(sessions.session(day).open)
            whole = definition_records(new_instruments(self.market, day), ts_event=opens, ts_recv=opens)
            return whole if block == opens else whole[:0]
        array = _load_second(self.market, day, self.records_per_s, schema).copy()
        array["ts_event"] += np.uint64(block)
        array["ts_recv"] += np.uint64(block)
        array["sequence"] += np.uint32(block // NS_PER_S * self.records_per_s % 2**32)
        return array


@lru_cache(maxsize=4)
def _load_second(market: AnyMarket, day: date, n: int, schema: str) -> Array:
    """One second of load, with times from its start."""
    contracts, ordinal = market.listed(day), np.arange(n)
    key = (market.seed, _LOAD, price_path.day_number(day))
    traded = np.unique(market.trades(day)["row"].to_numpy())
    row = traded[(mix(*key, 0, ordinal) % len(traded)).astype(np.int64)]
    slots = max(n // 20, 1)
    slot = np.sort(mix(*key, 1, ordinal) % slots).astype(np.int64)
    value = market.quotes(contracts[row], to_ns(sessions.session(day).open))["value"].to_numpy()
    a = blank_records("mbp-1", contracts["instrument_id"].to_numpy()[row])
    tick = int(_TICK * NS_PER_S)
    a["bid_px_00"] = np.maximum(np.floor(value / _TICK), 1).astype(np.int64) * tick
    a["ask_px_00"] = a["bid_px_00"] + tick
    draw = mix(*key, 2, ordinal)
    buys = draw % 2 == 0
    a["price"] = np.where(buys, a["ask_px_00"], a["bid_px_00"])
    a["side"], a["action"], a["flags"] = np.where(buys, b"B", b"A"), b"T", LAST
    a["size"] = 1 + (draw >> np.uint64(8)) % 9
    a["bid_sz_00"], a["ask_sz_00"] = 10, 10
    a["bid_ct_00"], a["ask_ct_00"] = 3, 3
    # The last tenth of a millisecond stays free, so that all records are received within the second.
    a["ts_event"] = slot * ((NS_PER_S - 100_000) // slots)
    a["ts_recv"], a["ts_in_delta"] = a["ts_event"] + np.uint64(40_000), 11_000
    a["sequence"] = ordinal
    return a if schema == "mbp-1" else as_schema(schema, a)
