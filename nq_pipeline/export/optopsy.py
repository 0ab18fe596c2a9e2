"""A CSV file for `optopsy.csv_data`, in the order of columns that it expects."""

from __future__ import annotations

from pathlib import Path

from nq_pipeline.export import Exported
from nq_pipeline.export.csv import write_file
from nq_pipeline.export.selection import Selection

_COLUMNS = (
    "underlying_symbol, underlying_price, option_type, expiration, quote_date, strike, bid, ask, "
    "delta, gamma, theta, vega, volume, open_interest, implied_volatility"
)


def write(selection: Selection, to: Path) -> Exported:
    """Write the view `optopsy_chain` of the selected trade dates to the file `to`."""
    rows = write_file(selection.read("optopsy_chain", _COLUMNS, day="quote_date"), to)
    return Exported(to, {"optopsy_chain": rows}, {})
