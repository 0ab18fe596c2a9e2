"""Pictures of the lake's tables: a polars frame in, an Altair chart out, no I/O.

Where a frame has nothing to draw, the function returns the sentence that says so instead of an
empty chart. Charts carry the light theme, so they can be shown as they are; `draw.svg` and `draw.png`
render them in another.

    from nq_pipeline import charts
    charts.smile(nq.connect().sql("select * from iv_smile").pl())
"""

from nq_pipeline.charts.flow import pressure
from nq_pipeline.charts.pipeline import source_agreement, spend
from nq_pipeline.charts.positions import gamma_exposure, open_interest, put_call, volume
from nq_pipeline.charts.theme import Picture, series_label, series_label_text
from nq_pipeline.charts.volatility import expected_move, smile, term_structure

__all__ = [
    "Picture",
    "expected_move",
    "gamma_exposure",
    "open_interest",
    "pressure",
    "put_call",
    "series_label",
    "series_label_text",
    "smile",
    "source_agreement",
    "spend",
    "term_structure",
    "volume",
]
