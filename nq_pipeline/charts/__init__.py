"""Charts of the lake's tables: a polars frame in, an Altair chart out, no I/O.

A function whose frame has nothing to draw returns a sentence that says why, instead of an empty chart.
Charts have the light theme. `render.svg` and `render.png` turn them into images, in any palette.

    from nq_pipeline import charts
    charts.smile(nq.connect().sql("select * from iv_smile").pl())
"""

from nq_pipeline.charts.explorer import AXES, smile_explorer
from nq_pipeline.charts.history import gamma_history, level_history, volatility_history
from nq_pipeline.charts.positions import (
    REACHES,
    first_reach,
    gamma_exposure,
    open_interest,
    open_interest_change,
    put_call,
    volume,
)
from nq_pipeline.charts.spend_and_sources import source_agreement, spend
from nq_pipeline.charts.surface import surface
from nq_pipeline.charts.theme import Picture, series_label, series_label_text
from nq_pipeline.charts.trade_pressure import pressure
from nq_pipeline.charts.volatility import expected_move, smile, term_structure

__all__ = [
    "AXES",
    "REACHES",
    "Picture",
    "expected_move",
    "first_reach",
    "gamma_exposure",
    "gamma_history",
    "level_history",
    "open_interest",
    "open_interest_change",
    "pressure",
    "put_call",
    "series_label",
    "series_label_text",
    "smile",
    "smile_explorer",
    "source_agreement",
    "spend",
    "surface",
    "term_structure",
    "volatility_history",
    "volume",
]
