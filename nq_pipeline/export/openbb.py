"""A JSON file of the columns of OpenBB's `OptionsChainsData`."""

from __future__ import annotations

from pathlib import Path

import orjson
import polars as pl

from nq_pipeline.export import Exported
from nq_pipeline.export.selection import Selection
from nq_pipeline.files import write_atomically

_COLUMNS = "* EXCLUDE (trade_date, snapshot_ts, snapshot_ts_ns, source, series, contract_key)"


def write(selection: Selection, to: Path) -> Exported:
    """Write the chain of the selected moment to the file `to`."""
    chain = pl.concat(selection.read("openbb_history", _COLUMNS))
    write_atomically(to, orjson.dumps(chain.to_dict(as_series=False)))
    return Exported(to, {"openbb_chain": chain.height}, {})
